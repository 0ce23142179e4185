"""Messages: the payload as a dict, delivery metadata as attributes, settlement as methods."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from abe.errors import Reject, UnsupportedError

if TYPE_CHECKING:
    from abe.backends.message_queue.base.receiver import Delivery

__all__ = ["BaseMessage", "Message", "Outcome", "SyncMessage"]

T = TypeVar("T")

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Outcome(StrEnum):
    """How a delivery ends.

    ``ACK``, ``NACK`` and ``REJECT`` are AMQP's words; here a nacked message always comes again, and
    a rejected one never.
    """

    ACK = "ack"
    NACK = "nack"
    RELEASE = "release"
    REJECT = "reject"
    LOST = "lost"
    """Not by us: the lease lapsed, or the connection the delivery came on is gone."""


class BaseMessage(dict[str, Any]):
    """A payload with metadata. Equality, JSON and ``match`` see the payload only.

    Copying with ``dict(m)``, ``{**m}`` or ``m.copy()`` gives the bare payload. Pickling and
    `copy.copy` keep the metadata and drop the ability to settle.

    Attributes:
        id: Stable across redeliveries and groups; ``None`` from a plain backend.
        key: The routing key it was published under; ``None`` from a plain backend.
        attempt: 1 + earlier deliveries to this group that were not ended by release.
        headers: Text metadata given to ``publish``.
    """

    __slots__ = ("__weakref__", "_delivery", "_outcome", "_time", "attempt", "headers", "id", "key")

    def __init__(
        self,
        payload: Mapping[str, Any],
        id: str | None = None,
        key: str | None = None,
        timestamp: datetime | float | None = None,
        attempt: int = 1,
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> None:
        """Create a message.

        Args:
            payload: The JSON object; it is copied shallowly.
            id: Identity of the message.
            key: Routing key.
            timestamp: When it was published: an aware datetime, or seconds since the epoch.
            attempt: Which delivery to its group this is, from 1.
            headers: Text metadata.
        """
        dict.__init__(self, payload)  # quicker than super(), and there is one for every delivery
        self.id = id
        self.key = key
        self._time = timestamp
        self.attempt = attempt
        self.headers = headers
        self._delivery: Delivery | None = None
        self._outcome: Outcome | None = None

    @property
    def timestamp(self) -> datetime | None:
        """When it was published, in UTC; ``None`` from a plain backend."""
        if isinstance(self._time, float | int):
            self._time = datetime.fromtimestamp(self._time, UTC)
        return self._time

    @property
    def outcome(self) -> Outcome | None:
        """How this delivery was settled; ``None`` while it is not."""
        return self._outcome

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({super().__repr__()}, id={self.id!r}, key={self.key!r},"
            f" attempt={self.attempt})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        state = (dict(self), self.id, self.key, self._time, self.attempt, dict(self.headers))
        return type(self), state

    def _record(self, outcome: Outcome, delay: float = 0.0, reason: str = "") -> bool:
        """Settle on the thread of the stream's loop; False if settled differently before."""
        if self._delivery is not None:
            return self._delivery.settle(outcome, delay, reason)
        if self._outcome is None:
            raise UnsupportedError(
                f"cannot {outcome} this message: only what consume() or take() handed over can be "
                "settled, not what came from peek(), dead_letters(), a copy or a pickle"
            )
        return self._outcome is outcome


class Message(BaseMessage):
    """A message consumed with ``async for``.

    Settling is idempotent; the first settlement wins. Each method returns once the settlement is
    *recorded*; ``await stream.flush()`` returns when the broker has accepted it. Not thread-safe:
    call from the event loop that consumes.
    """

    __slots__ = ()

    async def ack(self) -> bool:
        """Done: the group never sees this message again.

        Returns:
            False if the message was already settled differently, or its lease was lost.
        """
        return self._record(Outcome.ACK)

    async def nack(self, delay: float = 0.0) -> bool:
        """Failed: counts as an attempt; delivered again after ``delay`` seconds at the earliest.

        Returns:
            False if the message was already settled differently, or its lease was lost.

        Raises:
            UnsupportedError: If the backend does not redeliver, or not with such a delay.
        """
        return self._record(Outcome.NACK, delay)

    async def release(self) -> bool:
        """Not processed: delivered again at once, to any consumer, not counted as an attempt.

        Returns:
            False if the message was already settled differently, or its lease was lost.

        Raises:
            UnsupportedError: If the backend cannot.
        """
        return self._record(Outcome.RELEASE)

    async def reject(self, reason: object = "") -> bool:
        """Never deliver again: to the dead letters of the group, with ``reason``.

        Args:
            reason: Kept with the dead letter, as by `abe.Reject`.

        Returns:
            False if the message was already settled differently, or its lease was lost.

        Raises:
            UnsupportedError: If the backend has no dead letters.
        """
        return self._record(Outcome.REJECT, reason=Reject(reason).reason)

    def detach(self) -> None:
        """Take over settlement: asking the stream for the next message no longer acks this one.

        The lease is extended until the message is settled or the stream is closed.
        """
        if self._delivery is not None:
            self._delivery.detached = True


class SyncMessage(BaseMessage):
    """A message consumed through the synchronous facade, or by a synchronous handler.

    Settling is idempotent; the first settlement wins. Each method blocks until the settlement is
    recorded on the event loop that owns the message, and may be called from any other thread.
    """

    __slots__ = ("_call", "_message")

    def __init__(
        self, message: Message, call: Callable[[Coroutine[Any, Any, bool]], bool] | None = None
    ) -> None:
        """Wrap ``message``.

        Args:
            message: What the stream yielded.
            call: Runs a coroutine on the loop that owns ``message`` and returns its result.
        """
        super().__init__(
            message, message.id, message.key, message._time, message.attempt, message.headers
        )
        self._message: Message | None = message
        self._call = call

    def __reduce__(self) -> tuple[Any, ...]:
        state = (dict(self), self.id, self.key, self._time, self.attempt, dict(self.headers))
        return _unpickle_sync, state

    @property
    def outcome(self) -> Outcome | None:
        """How this delivery was settled; ``None`` while it is not."""
        return self._message.outcome if self._message is not None else None

    def ack(self) -> bool:
        """Done: the group never sees this message again. False if settled differently before."""
        return self._settle(Message.ack)

    def nack(self, delay: float = 0.0) -> bool:
        """Failed: counts; comes back after ``delay`` seconds. False if settled differently."""
        return self._settle(lambda message: message.nack(delay))

    def release(self) -> bool:
        """Not processed: comes back at once, not counted. False if settled differently before."""
        return self._settle(Message.release)

    def reject(self, reason: object = "") -> bool:
        """To the dead letters, with ``reason``. False if settled differently before."""
        return self._settle(lambda message: message.reject(reason))

    def _settle(self, method: Callable[[Message], Coroutine[Any, Any, bool]]) -> bool:
        if self._message is None or self._call is None:
            method(Message(self)).send(None)
            raise AssertionError("unreachable: nothing here can be settled")
        return self._call(method(self._message))


def _unpickle_sync(*state: Any) -> SyncMessage:
    message = SyncMessage(Message(*state))
    message._message = None
    return message
