"""Messages: the payload as a dict, delivery metadata as attributes, settlement as methods."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from abe.backends.message_queue.base.outcome import Outcome, Settleable
from abe.errors import Reject, UnsupportedError

__all__ = ["BaseMessage", "Message", "Outcome", "SyncMessage"]

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


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
        self._delivery: Settleable | None = None
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
        """Settle, from any thread; False if settled differently before."""
        delivery = self._delivery
        # The delivery decides, not the outcome: an interrupt may have come between the two.
        if delivery is not None and delivery.subscription is not None:
            return delivery.subscription.settle(delivery, outcome, delay, reason)
        if self._outcome is None:
            raise UnsupportedError(
                f"cannot {outcome} this message: only what consume() or take() handed over can be "
                "settled, not what came from peek(), dead_letters(), a copy or a pickle"
            )
        return self._outcome is outcome


class Message(BaseMessage):
    """A message consumed with ``async for``.

    Settling is idempotent; the first settlement wins. Each method returns once the settlement is
    *recorded*, which never waits and is possible in any thread; ``await stream.flush()`` returns
    when the broker has accepted it.
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
            self._delivery.owned = True


class SyncMessage(BaseMessage):
    """A message consumed through the synchronous facade, or by a synchronous handler.

    Settling is idempotent; the first settlement wins. Each method returns once the settlement is
    recorded, without blocking, and may be called from any thread.
    """

    __slots__ = ("_message",)

    def __init__(self, message: Message) -> None:
        """Wrap ``message``, as the stream yielded it."""
        super().__init__(
            message, message.id, message.key, message._time, message.attempt, message.headers
        )
        self._message = message

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle_sync, super().__reduce__()[1]

    @property
    def outcome(self) -> Outcome | None:
        """How this delivery was settled; ``None`` while it is not."""
        return self._message.outcome

    def ack(self) -> bool:
        """Done: the group never sees this message again. False if settled differently before."""
        return self._message._record(Outcome.ACK)

    def nack(self, delay: float = 0.0) -> bool:
        """Failed: counts, and is redelivered after ``delay`` seconds at the earliest.

        Returns:
            False if the message was already settled differently, or its lease was lost.
        """
        return self._message._record(Outcome.NACK, delay)

    def release(self) -> bool:
        """Not processed: redelivered at once, not counted. False if settled differently before."""
        return self._message._record(Outcome.RELEASE)

    def reject(self, reason: object = "") -> bool:
        """To the dead letters, with ``reason``. False if settled differently before."""
        return self._message._record(Outcome.REJECT, reason=Reject(reason).reason)


def _unpickle_sync(*state: Any) -> SyncMessage:
    return SyncMessage(Message(*state))
