"""Where the calls of a client run: on the caller's loop, or on another one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from abe.backends.message_queue.base import (
    Keys,
    MessageStream,
    backend_name,
    open_stream,
    validate_group,
)
from abe.errors import BackendClosedError
from abe.types import ConsumerGroup

__all__ = ["BackendHost", "LocalHost"]

T = TypeVar("T")


class BackendHost(Protocol):
    """Where the calls of an `AsyncBackend` run: on the caller's loop, or on another one."""

    @property
    def closed(self) -> bool:
        """Whether the backend was closed."""
        ...

    def check_open(self) -> None:
        """Raise `BackendClosedError` if the backend was closed."""
        ...

    def run(self, coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """Return an awaitable of the caller's loop that runs ``coroutine``."""
        ...

    def look(self, method: Callable[[], Coroutine[Any, Any, T]]) -> Coroutine[Any, Any, T]:
        """Run a method that shows or changes the backlog."""
        ...

    def consume(self, keys: Keys, group: ConsumerGroup, prefetch: int | None) -> MessageStream:
        """Return a stream for the caller's loop."""
        ...

    async def aclose(self) -> None:
        """Close the backend; closing twice is fine."""
        ...


class LocalHost:
    """Runs the calls of a client on the loop that awaits them.

    Attributes:
        closed: Whether the backend was closed.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._closer: asyncio.Future[Any] | None = None
        self.closed = False

    def check_open(self) -> None:
        """Raise `BackendClosedError` if the backend was closed."""
        if self.closed:
            name = backend_name(self._backend)
            raise BackendClosedError(f"backend {name!r} is closed; open a new one")

    def run(self, coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """Return ``coroutine`` itself."""
        return coroutine

    def look(self, method: Callable[[], Coroutine[Any, Any, T]]) -> Coroutine[Any, Any, T]:
        """Call ``method``."""
        return method()

    def consume(self, keys: Keys, group: ConsumerGroup, prefetch: int | None) -> MessageStream:
        """Return a stream of the running loop."""
        group = validate_group(group)
        return open_stream(self._backend, group=group, keys=keys, prefetch=prefetch)

    async def aclose(self) -> None:
        """Close the backend, where it can be closed; closing twice is fine."""
        self.closed = True
        if self._closer is None:
            self._closer = asyncio.ensure_future(self._close())
        elif self._closer.done():
            return
        await asyncio.shield(self._closer)

    async def _close(self) -> None:
        close = getattr(self._backend, "aclose", None)
        if close is not None:
            await close()
