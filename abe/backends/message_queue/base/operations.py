"""`BackendOperations`: what `BaseBackend` and `abe.AsyncBackend` offer, declared once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Self, TypeVar

from abe.backends.message_queue.base.closing import Closer, ExitGuard
from abe.backends.message_queue.base.message import Message
from abe.backends.message_queue.base.outgoing import Label, Outgoing, item_label
from abe.backends.message_queue.base.process import Unshareable
from abe.types import ConsumerGroup, MessageQueueKey, MessageQueuePayload, QueueStats

__all__ = ["BackendOperations", "Items", "Keys", "documented"]

Items = Iterable[tuple[MessageQueueKey, MessageQueuePayload]] | Iterable[Any]
"""``(key, payload)`` pairs, or payloads where the key is given."""
Keys = Sequence[str] | str | None
"""Key filters: one, several, or ``None`` for every key."""


C = TypeVar("C", bound=type)


class BackendOperations(Unshareable, ABC):
    """The methods of `BaseBackend` and of `abe.AsyncBackend`.

    Each raises `BackendClosedError` once the backend is closed, and `UnsupportedError`, before
    anything is sent or taken, where the backend does not declare what is asked for.
    """

    _closer: Closer

    @abstractmethod
    async def publish(
        self,
        key: MessageQueueKey,
        payload: MessageQueuePayload,
        *,
        headers: Mapping[str, str] | None = None,
        delay: float = 0.0,
    ) -> None:
        """Publish one message; returns once the broker has accepted it.

        Args:
            key: Routing key, e.g. ``orders.created``.
            payload: A JSON object; it may be changed afterwards.
            headers: Text metadata, received as ``message.headers``.
            delay: Seconds before it is delivered, at least.

        Raises:
            InvalidKeyError: If ``key`` is malformed.
            PayloadError: If ``payload`` or ``headers`` would not arrive exactly as given.
            UnsupportedError: If the backend cannot delay or carry headers.
            PublishError: If the broker does not accept it.
            BackendClosedError: If the backend is closed.
        """

    async def publish_many(self, items: Items, *, key: MessageQueueKey | None = None) -> int:
        """Publish many messages in order; everything is checked before anything is sent.

        Args:
            items: ``(key, payload)`` pairs, or payloads if ``key`` is given.
            key: Routing key of all of them.

        Returns:
            How many were published.

        Raises:
            InvalidKeyError: If a key is malformed; the text names the item.
            PayloadError: If a payload is not JSON; the text names the item.
            PublishError: If not all were accepted; ``published`` and ``failed`` say which.
            BackendClosedError: If the backend is closed.
        """
        self._bind()
        prepared = self.prepare(items, key=key)
        await self.send(prepared)
        return len(prepared)

    @abstractmethod
    def prepare(
        self,
        items: Items,
        *,
        key: MessageQueueKey | None = None,
        headers: Mapping[str, str] | None = None,
        delay: float = 0.0,
        label: Label = item_label,
    ) -> list[Outgoing]:
        """Check and encode messages once, for `send`; nothing is sent. Safe in any thread.

        Args:
            items: ``(key, payload)`` pairs, or payloads if ``key`` is given.
            key: Routing key of all of them.
            headers: Text metadata of each.
            delay: Seconds before each is delivered, at least.
            label: Returns how errors name the item at a position (0-based).

        Raises:
            InvalidKeyError: If a key is malformed; the text names the item.
            PayloadError: If a payload or ``headers`` would not arrive exactly as given.
            UnsupportedError: If the backend cannot delay or carry headers.
        """

    @abstractmethod
    async def send(self, prepared: Sequence[Outgoing]) -> None:
        """Publish what `prepare` has returned, or a part of it, in order.

        Raises:
            PublishError: If not all were accepted; ``published`` and ``failed`` say which.
            BackendClosedError: If the backend is closed.
        """

    @abstractmethod
    def consume(
        self, *, group: ConsumerGroup = None, keys: Keys = None, prefetch: int | None = None
    ) -> AsyncIterator[Message]:
        """Return a stream over the messages of ``group``; see `MessageStream`.

        Args:
            group: The consumer group; it exists once the stream is opened.
            keys: Only keys that match one of these: ``*`` is one segment, a final ``**`` one or
                more.
            prefetch: Most messages to receive ahead of the caller; ``None`` leaves it to the
                backend. Up to there it depends on how fast the caller is.

        Raises:
            InvalidKeyError: If ``group`` or a filter is malformed.
            UnsupportedError: If ``group`` or ``keys`` is given and the backend has no groups or
                cannot filter.
            BackendClosedError: If the backend is closed.
        """

    async def peek(
        self, keys: Keys = None, *, group: ConsumerGroup = None, limit: int = 10
    ) -> list[Message]:
        """Return messages that ``group`` could take now, oldest first, taking none.

        Args:
            keys: Only keys that match one of these.
            group: The consumer group; of one that does not exist, what it would see.
            limit: Most messages.

        Raises:
            UnsupportedError: If the backend cannot.
        """
        found: list[Message] = await self._operate("peek", keys=keys, group=group, limit=limit)
        return found

    async def stats(self) -> QueueStats:
        """Return the backlog of every key and group; what is retained for none, under ``None``.

        Raises:
            UnsupportedError: If the backend cannot.
        """
        found: QueueStats = await self._operate("stats")
        return found

    async def dead_letters(self, *, group: ConsumerGroup = None, limit: int = 100) -> list[Message]:
        """Return dead letters, oldest first, taking none.

        Their headers ``abe-dead-…`` say why, where the backend knows.

        Args:
            group: The consumer group.
            limit: Most messages.

        Raises:
            UnsupportedError: If the backend keeps none.
        """
        found: list[Message] = await self._operate("dead_letters", group=group, limit=limit)
        return found

    async def replay(
        self,
        *,
        group: ConsumerGroup = None,
        ids: Iterable[str] | None = None,
        limit: int | None = None,
    ) -> int:
        """Put dead letters back for ``group`` alone, counted as never delivered.

        Args:
            group: The consumer group.
            ids: Only the messages with these ids; ``None`` for all.
            limit: At most this many, oldest first.

        Returns:
            How many were put back.

        Raises:
            UnsupportedError: If the backend keeps none.
        """
        count: int = await self._operate("replay", group=group, ids=ids, limit=limit)
        return count

    async def groups(self) -> list[ConsumerGroup]:
        """Return the groups that exist; ``None`` stands for the default group.

        Raises:
            UnsupportedError: If the backend cannot list them.
        """
        return list(await self._operate("groups"))

    async def delete_group(self, name: ConsumerGroup) -> None:
        """Forget a group, its backlog and its dead letters; its open streams fail.

        Raises:
            UnsupportedError: If the backend cannot.
            ConfigurationError: If there is no such group.
        """
        await self._operate("delete_group", name=name)

    async def purge(self, keys: Keys = None, *, group: ConsumerGroup = None) -> int:
        """Drop what waits for ``group``, delayed messages included, not what is in flight.

        Dead letters stay. While no group exists, retained messages are dropped.

        Args:
            keys: Only keys that match one of these.
            group: The consumer group.

        Returns:
            How many messages were dropped.

        Raises:
            UnsupportedError: If the backend cannot.
        """
        count: int = await self._operate("purge", keys=keys, group=group)
        return count

    async def ping(self, timeout: float = 5.0) -> None:
        """Return once the broker has answered.

        Raises:
            UnsupportedError: If the backend has no such probe.
            ConnectionLostError: If it has not within ``timeout`` seconds.
            ConfigurationError: If it refuses: credentials, rights, a certificate.
            BackendClosedError: If the backend is closed.
        """
        await self._operate("ping", timeout=timeout)

    @abstractmethod
    async def aclose(self) -> None:
        """Close every stream and connection; closing twice is fine, also at the same time."""

    async def __aenter__(self) -> Self:
        self._bind()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        with ExitGuard(kind, "backend", self._closer.backend):
            await self.aclose()

    @abstractmethod
    def _bind(self) -> None:
        """Raise if the backend is closed, or does not belong here."""

    @abstractmethod
    async def _operate(self, method: str, **arguments: Any) -> Any:
        """Carry out one of the methods that look or clean up."""


def documented(cls: C) -> C:
    """Give the methods of a class the documentation that those of `BackendOperations` have."""
    for name, member in vars(cls).items():
        if name in vars(BackendOperations) and member.__doc__ is None:
            member.__doc__ = vars(BackendOperations)[name].__doc__
    return cls
