"""The protocols of backends and consumers under their working names."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from abe.types import EventHandlerFunc
from abe.types import MessageQueueBackendProtocol as MessageQueueBackend

__all__ = ["EventConsumer", "MessageQueueBackend"]


@runtime_checkable
class EventConsumer(Protocol):
    """Runs a handler for each message until it is shut down."""

    async def run(self, handler: EventHandlerFunc) -> None:
        """Handle messages until `shutdown`."""

    async def shutdown(self) -> None:
        """Stop taking messages and return once those in hand are settled."""
