"""The contract: the structural types that applications and providers compile against.

Three methods are required of a backend (`MessageQueueBackendProtocol`), and the required surface
is never widened. Everything else a backend may offer is optional and has a small ``Supports…``
protocol here, so that code asking for it type-checks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeAlias, runtime_checkable

__all__ = [
    "AsyncEventHandlerFunc",
    "ConsumerGroup",
    "EventHandlerFunc",
    "EventHandlerProtocol",
    "JSONDict",
    "JSONList",
    "JSONPrimitive",
    "JSONValue",
    "KeyStats",
    "MessageQueueBackendConfig",
    "MessageQueueBackendProtocol",
    "MessageQueueKey",
    "MessageQueueMessage",
    "MessageQueuePayload",
    "QueueKey",
    "QueuePayload",
    "QueueStats",
    "SupportsAdmin",
    "SupportsClose",
    "SupportsDeadLetters",
    "SupportsDelay",
    "SupportsHeaders",
    "SupportsKeys",
    "SupportsPeek",
    "SupportsPing",
    "SupportsPublishMany",
    "SupportsStats",
    "SyncEventHandlerFunc",
    "WebhookEventPayload",
]

JSONPrimitive: TypeAlias = str | int | float | bool | None
"""A JSON scalar. NaN and the infinities are not JSON."""
JSONValue: TypeAlias = "JSONPrimitive | JSONDict | JSONList"
"""Any JSON value."""
JSONDict: TypeAlias = "dict[str, JSONValue]"
"""A JSON object."""
JSONList: TypeAlias = "list[JSONValue]"
"""A JSON array."""

MessageQueueKey: TypeAlias = str
"""Routing key: dot-separated segments, e.g. ``orders.eu.created``, as in AMQP's topic exchanges.

1 to 200 bytes of UTF-8, no control characters, white space or any of ``* ? [ ] # >``, no empty
segment, no leading ``$``.
"""
MessageQueuePayload: TypeAlias = dict[str, Any]
"""What is published: a JSON object."""
MessageQueueMessage: TypeAlias = dict[str, Any]
"""What ``consume()`` yields: the payload. First-party backends yield `abe.Message`, a dict too."""
MessageQueueBackendConfig: TypeAlias = Mapping[str, str]
"""Environment variables that configure a backend, as given to ``load_backend(env=…)``."""
ConsumerGroup: TypeAlias = str | None
"""Name of a consumer group; ``None`` is the backend's default group, a group like any other.

Groups are those of Kafka and Redis Streams; a name follows the rules of keys.
"""

QueueKey: TypeAlias = MessageQueueKey
"""Short for `MessageQueueKey`."""
QueuePayload: TypeAlias = MessageQueuePayload
"""Short for `MessageQueuePayload`."""
WebhookEventPayload: TypeAlias = dict[str, Any]
"""A JSON object received over HTTP and published as it is."""

SyncEventHandlerFunc: TypeAlias = Callable[[Any], object]
"""A plain function that handles one message; consumers run it in a worker thread."""
AsyncEventHandlerFunc: TypeAlias = Callable[[Any], Awaitable[object]]
"""A coroutine function that handles one message."""


@runtime_checkable
class EventHandlerProtocol(Protocol):
    """An object that handles messages."""

    async def handle_event(self, event: Any) -> object:
        """Handle one message; returning settles it, raising fails it."""


EventHandlerFunc: TypeAlias = SyncEventHandlerFunc | AsyncEventHandlerFunc | EventHandlerProtocol
"""Whatever a consumer can run."""


@runtime_checkable
class MessageQueueBackendProtocol(Protocol):
    """What every backend provides; nothing more is ever required.

    ``consume`` may be an async generator, a plain function that returns an async iterator, or a
    coroutine function that returns one: callers await its result if it is awaitable.
    """

    @classmethod
    def from_env(cls) -> Self:
        """Create a backend from environment variables, without connecting.

        Raises:
            ConfigurationError: If a variable is missing or malformed.
        """

    async def publish(self, key: MessageQueueKey, payload: MessageQueuePayload) -> None:
        """Publish one message; returns once the broker has accepted it.

        The caller may change ``payload``, a JSON object, afterwards.

        Raises:
            InvalidKeyError: If ``key`` is malformed.
            PayloadError: If ``payload`` would not arrive exactly as given.
            PublishError: If the broker does not accept it.
        """

    def consume(self, *, group: ConsumerGroup = None) -> AsyncIterator[MessageQueueMessage]:
        """Iterate over the messages of ``group``, waiting for new ones; it never ends by itself.

        Each group sees every message; within a group each message goes to one consumer.
        """


@dataclass(frozen=True, slots=True)
class KeyStats:
    """Numbers of one key in one group. ``None`` where the broker cannot say.

    Attributes:
        key: The routing key.
        group: The group, ``None`` for the default group.
        ready: Messages that a consumer could take now.
        in_flight: Messages handed over and not settled.
        delayed: Messages whose time has not come.
        dead: Dead letters.
        oldest_age: Age in seconds of the oldest message neither settled nor dead.
    """

    key: str
    group: ConsumerGroup
    ready: int | None = None
    in_flight: int | None = None
    delayed: int | None = None
    dead: int | None = None
    oldest_age: float | None = None


@dataclass(frozen=True, slots=True)
class QueueStats:
    """What a backend knows of its backlog, at one moment.

    Attributes:
        entries: One entry for each key and group.
        approximate: Whether the broker only estimates these numbers.
    """

    entries: tuple[KeyStats, ...] = ()
    approximate: bool = False

    def total(self, number: str, *, group: ConsumerGroup = None) -> int:
        """Sum of one number (``"ready"``, ``"dead"`` …) over the keys of ``group``.

        Keys for which the broker cannot say count as 0.
        """
        return sum(getattr(e, number) or 0 for e in self.entries if e.group == group)


class SupportsKeys(Protocol):
    """Capability ``keys``: consume only keys that match a filter."""

    def consume(
        self, *, group: ConsumerGroup = None, keys: Sequence[str] | None = None
    ) -> AsyncIterator[MessageQueueMessage]:
        """Iterate over messages whose key matches one of ``keys``.

        ``*`` stands for one segment, a final ``**`` for one or more.
        """


class SupportsHeaders(Protocol):
    """Capability ``headers``: text metadata beside the payload."""

    async def publish(
        self,
        key: MessageQueueKey,
        payload: MessageQueuePayload,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Publish ``payload`` under ``key`` with ``headers``, which become ``message.headers``."""


class SupportsDelay(Protocol):
    """Capability ``delay``: messages that become visible later."""

    async def publish(
        self, key: MessageQueueKey, payload: MessageQueuePayload, *, delay: float = 0.0
    ) -> None:
        """Publish ``payload`` under ``key``, delivered after ``delay`` seconds at the earliest."""


@runtime_checkable
class SupportsPublishMany(Protocol):
    """Capability ``publish_many``: many messages in few round trips."""

    async def publish_many(
        self, items: Iterable[Any], *, key: MessageQueueKey | None = None
    ) -> int:
        """Publish ``(key, payload)`` pairs, or payloads if ``key`` is given; return how many.

        In order, and everything is checked before anything is sent.

        Raises:
            PublishError: If some were not accepted; its ``published`` and ``failed`` say which.
        """


@runtime_checkable
class SupportsPeek(Protocol):
    """Capability ``peek``: look without taking."""

    async def peek(
        self,
        keys: Sequence[str] | str | None = None,
        *,
        group: ConsumerGroup = None,
        limit: int = 10,
    ) -> Sequence[MessageQueueMessage]:
        """Return up to ``limit`` messages waiting for ``group``, oldest first, taking none.

        ``keys`` limits them to those that match one of these filters.
        """


@runtime_checkable
class SupportsStats(Protocol):
    """Capability ``stats``: numbers."""

    async def stats(self) -> QueueStats:
        """Return the backlog of every key and group."""


@runtime_checkable
class SupportsDeadLetters(Protocol):
    """Capability ``dead_letters``: look at what failed for good, and try it again."""

    async def dead_letters(
        self, *, group: ConsumerGroup = None, limit: int = 100
    ) -> Sequence[MessageQueueMessage]:
        """Return up to ``limit`` dead letters of ``group``, oldest first, taking none."""

    async def replay(
        self,
        *,
        group: ConsumerGroup = None,
        ids: Iterable[str] | None = None,
        limit: int | None = None,
    ) -> int:
        """Put dead letters back for ``group`` alone, counted as never delivered; return how many.

        Only those with one of ``ids``, if given; at most ``limit``, oldest first.
        """


@runtime_checkable
class SupportsAdmin(Protocol):
    """Capability ``admin``: list and clean up."""

    async def groups(self) -> Sequence[ConsumerGroup]:
        """Return the groups that exist; ``None`` stands for the default group."""

    async def delete_group(self, name: ConsumerGroup) -> None:
        """Forget a group, its backlog and its dead letters."""

    async def purge(
        self, keys: Sequence[str] | str | None = None, *, group: ConsumerGroup = None
    ) -> int:
        """Drop what waits for ``group`` (not what is in flight) and return the number."""


@runtime_checkable
class SupportsPing(Protocol):
    """Health: does the broker answer?"""

    async def ping(self, timeout: float = 5.0) -> None:
        """Return once the broker has answered; `ConnectionLostError` after ``timeout`` seconds."""


@runtime_checkable
class SupportsClose(Protocol):
    """Life: give connections back."""

    async def aclose(self) -> None:
        """Close streams and connections; closing twice is fine."""
