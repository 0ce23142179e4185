"""The driver side: what a provider writes, and what passes between it and the stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from abe.backends.message_queue.base.message import Message
from abe.backends.message_queue.base.outcome import Outcome, Settler

__all__ = ["Delivery", "EndOfStream", "Receiver", "SettleFailure", "Settlement", "checked"]

T = TypeVar("T")


class EndOfStream(Exception):
    """Raised by a `Receiver` whose source has an end; brokers' sources have none."""


class Delivery:
    """One handing-over of a message to a group.

    Args:
        message: What the stream will yield.
        receipt: Whatever the receiver needs to settle this delivery later.
        begun: How often handling of this message had begun before, where the receiver has
            ``begin``.

    Attributes:
        began: Whether handling of this delivery has begun: a release takes that back.
        owned: Whether somebody settles it explicitly, so that asking for more does not ack it.
        claims: The codes of the outcomes recorded for it; the first one wins. Appending is one
            step, in any thread, and bytes are nothing that the garbage collector looks at.
    """

    __slots__ = (
        "began",
        "begun",
        "claims",
        "deadline",
        "message",
        "owned",
        "receipt",
        "since",
        "subscription",
    )

    since: float
    """When it arrived; like the next, by the clock of the leases and set by the subscription."""
    deadline: float
    """When its lease ends."""

    def __init__(self, message: Message, receipt: Any, begun: int = 0) -> None:
        self.message = message
        self.receipt = receipt
        self.begun = begun
        self.began = False
        self.owned = False
        self.claims = bytearray()
        self.subscription: Settler | None = None


class Settlement(NamedTuple):
    """How one delivery ended.

    Attributes:
        delivery: Which.
        outcome: ``ack``, ``nack``, ``release`` or ``reject``.
        delay: Seconds until a nacked message may come back.
        reason: Why it was rejected.
    """

    delivery: Delivery
    outcome: Outcome
    delay: float = 0.0
    reason: str = ""


class SettleFailure(NamedTuple):
    """A settlement the broker did not accept.

    Attributes:
        settlement: Which.
        error: ``None`` if the delivery is *lost*: it belongs to somebody else by now and nothing
            was changed. A `ConnectionError` or `TimeoutError` is tried again; any other error is
            permanent and reaches the consumer.
    """

    settlement: Settlement
    error: Exception | None = None


class Receiver(Protocol):
    """One consumer's connection to its group.

    The driver below a portable stream that does everything else, as in Go CDK's pubsub.

    All methods are called on one event loop. ``receive`` is called by one task at a time and is
    never cancelled; ``settle`` and ``extend`` may run while it waits. Any method may raise
    `abe.errors.ConnectionLostError`: the stream then closes this receiver and opens a new one.
    """

    lease: float | None
    """Seconds until the broker redelivers what is not settled; ``None`` = it never does."""

    async def open(self) -> None:
        """Connect, and create the group if it does not exist."""

    async def receive(self, max_messages: int, timeout: float) -> Sequence[Delivery]:
        """Return 1 to ``max_messages`` deliveries as soon as there are any.

        Returns an empty sequence after ``timeout`` seconds, or soon after `wake`.
        """

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleFailure]:
        """Tell the broker; an empty result means that it accepted them all.

        Settling a delivery that somebody else now owns changes nothing and is reported lost.
        """

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Delivery]:
        """Let the leases of ``deliveries`` end ``seconds`` from now; return those already lost."""

    def wake(self) -> None:
        """End a waiting `receive` early, and the next one if none waits."""

    async def aclose(self) -> None:
        """Give the connection back. Never settles anything; closing twice is fine.

        A `receive` that waits ends soon, empty or with `abe.errors.ConnectionLostError`: where
        `settle` or `extend` found the connection broken, it is closed under a waiting `receive`.
        """


def checked(failures: Sequence[T] | None, receiver: Receiver, method: str) -> Sequence[T]:
    """Return what ``settle`` or ``extend`` returned, unless it forgot to."""
    if failures is None:
        raise TypeError(
            f"{type(receiver).__name__}.{method}() returned None; it must return a list of what"
            " failed, empty if nothing did"
        )
    return failures
