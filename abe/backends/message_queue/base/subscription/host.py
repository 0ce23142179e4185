"""Where the subscription of a stream lives: on the stream's own loop, or on another one."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from abe.backends.message_queue.base.log_records import log_message
from abe.backends.message_queue.base.receiver import Delivery
from abe.backends.message_queue.base.subscription.subscription import Subscription

__all__ = ["LocalHost", "StreamHost"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class StreamHost(Protocol):
    """Where the subscription of a stream lives: the stream's own loop, or another one."""

    @property
    def subscription(self) -> Subscription | None:
        """The subscription, once `open` has run."""

    def run(self, coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """Return an awaitable of the stream's loop that runs ``coroutine`` on the host's."""

    @property
    def pop(self) -> Callable[[list[Delivery]], bool]:
        """Moves the next message into a hand, in the reader's thread."""

    def enter(self) -> None:
        """Refuse a reader on a loop that it cannot be read from."""

    async def open(self) -> None:
        """Make sure, on the host's loop, that there is a subscription and its group exists."""

    async def leave(self, hand: list[Delivery]) -> None:
        """Give back, on the host's loop, what is in ``hand`` and close the subscription."""

    def forget(self, hand: list[Delivery], stream: object) -> None:
        """Do as `leave`, from the finalizer of ``stream`` in any thread, without waiting."""


class LocalHost:
    """The host of a stream whose subscription runs on the stream's own loop."""

    __slots__ = ("pop", "subscription")

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.pop = subscription.pop

    def run(self, coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        return coroutine

    def enter(self) -> None:
        self.subscription.start()

    async def open(self) -> None:
        self.subscription.start()

    async def leave(self, hand: list[Delivery]) -> None:
        await self.subscription.aclose()

    def forget(self, hand: list[Delivery], stream: object) -> None:
        """Close the subscription without waiting, and warn of messages that are not settled."""
        subscription = self.subscription
        unsettled = [d.message for d in hand if not d.claims and not d.owned]
        subscription.abandon()  # first: warnings may be errors
        for message in unsettled:
            text = (
                f"a stream of backend {subscription.backend!r} was dropped with message"
                f" {message.id} of key {message.key!r} unsettled; it will be redelivered."
                " Close streams with 'async with', and ack the last message before 'break'"
            )
            log_message(
                logger,
                logging.WARNING,
                text,
                message,
                backend=subscription.backend,
                group=subscription.group,
            )
            warnings.warn(text, ResourceWarning, stacklevel=3, source=stream)
