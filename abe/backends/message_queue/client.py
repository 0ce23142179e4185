"""`aconnect`: a backend with every extra typed, on the running event loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from abe.backends.message_queue.base import (
    Capabilities,
    Message,
    MessageStream,
    capabilities_of,
    decode_payload,
    encode_payload,
    open_stream,
    validate_group,
    validate_key,
)
from abe.backends.message_queue.base.backoff import transient
from abe.backends.message_queue.base.capabilities import unsupported
from abe.backends.message_queue.base.payload import split_pair
from abe.backends.message_queue.base.subscription.plain import backend_name, check_backend
from abe.backends.message_queue.loader import load_backend
from abe.errors import BackendClosedError, ConfigurationError, PublishError
from abe.types import (
    ConsumerGroup,
    MessageQueueBackendProtocol,
    MessageQueueKey,
    MessageQueuePayload,
    QueueStats,
)

__all__ = ["AsyncBackend", "aconnect"]


def aconnect(
    name_or_backend: str | MessageQueueBackendProtocol | AsyncBackend | None = None,
    *,
    env: Mapping[str, str] | None = None,
) -> AsyncBackend:
    """Open a backend for asyncio; use it with ``async with``.

    Args:
        name_or_backend: An installed backend's name, a backend object, or ``None`` to choose as
            `abe.load_backend` does.
        env: Environment variables that overlay the process's while the backend is created.

    Returns:
        The backend with every extra typed; it connects when first used.

    Raises:
        UnknownBackendError: If no backend of that name is installed.
        BackendLoadError: If the provider is broken.
        ConfigurationError: If a variable is missing or malformed, or ``env`` is given with an
            object.
        TypeError: If it is not a backend.
    """
    if name_or_backend is None or isinstance(name_or_backend, str):
        return AsyncBackend(load_backend(name_or_backend, env=env))
    if env is not None:
        raise ConfigurationError("env configures a backend by name; this one is already created")
    if isinstance(name_or_backend, AsyncBackend):
        return name_or_backend
    check_backend(name_or_backend)
    return AsyncBackend(name_or_backend)


class AsyncBackend:
    """Any backend, with every extra typed and `abe.Message` objects out of ``consume``.

    What the backend does not declare raises `abe.UnsupportedError` before anything is sent or
    taken. Two things are done here for backends that cannot: ``publish_many`` publishes one by
    one, and keys and payloads are checked. Bound to the event loop that first uses it, unless the
    backend says otherwise.

    Attributes:
        backend: The backend itself.
        name: What errors and the log call it.
        capabilities: What it declares.
    """

    def __init__(self, backend: MessageQueueBackendProtocol) -> None:
        self.backend: Any = backend
        self.name = backend_name(backend)
        self._closed = False

    @classmethod
    def from_env(cls) -> Self:
        """Open the backend that the environment selects, as `aconnect` does without a name.

        So this is a backend too, wherever one is asked for.
        """
        return cls(load_backend())

    @property
    def capabilities(self) -> Capabilities:
        """What the backend declares; a plain backend declares nothing."""
        return capabilities_of(self.backend)

    def __repr__(self) -> str:
        return f"<AsyncBackend {self.name}{' closed' if self._closed else ''}>"

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
            key: Routing key.
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
        self._check_open()
        extras: dict[str, Any] = {}
        if headers:
            self._need(self.capabilities.headers, "publish(headers=…)", "headers")
            extras["headers"] = headers
        if delay:
            self._need(self.capabilities.delay, "publish(delay=…)", "delay")
            extras["delay"] = delay
        if self._plain:
            key, payload = self._check(key, payload)
        await self.backend.publish(key, payload, **extras)

    async def publish_many(
        self,
        items: Iterable[tuple[MessageQueueKey, MessageQueuePayload]] | Iterable[Any],
        *,
        key: MessageQueueKey | None = None,
    ) -> int:
        """Publish many messages in order; everything is checked before anything is sent.

        Args:
            items: ``(key, payload)`` pairs, or payloads if ``key`` is given.
            key: Routing key of all of them.

        Returns:
            How many were published.

        Raises:
            InvalidKeyError: If a key is malformed.
            PayloadError: If a payload is not JSON.
            PublishError: If not all were accepted; ``published`` and ``failed`` say which.
            BackendClosedError: If the backend is closed.
        """
        self._check_open()
        if self.capabilities.publish_many:
            count: int = await self.backend.publish_many(items, key=key)
            return count
        if key is not None:
            validate_key(key)
        pairs = [self._pair(n, item, key) for n, item in enumerate(items)]
        for n, pair in enumerate(pairs):
            try:
                await self.backend.publish(*pair)
            except Exception as error:  # a plain backend raises what it likes
                failed = {n: str(error), **dict.fromkeys(range(n + 1, len(pairs)), "not sent")}
                raise PublishError(
                    f"published {n} of {len(pairs)}; item {n} failed: {error}",
                    retryable=transient(error),
                    published=range(n),
                    failed=failed,
                ) from error
        return len(pairs)

    def consume(
        self,
        keys: Sequence[str] | str | None = None,
        *,
        group: ConsumerGroup = None,
        prefetch: int | None = None,
    ) -> MessageStream:
        """Return a stream over the messages of ``group``; see `MessageStream`.

        Args:
            keys: Only keys that match one of these: ``*`` is one segment, a final ``**`` one or
                more.
            group: The consumer group.
            prefetch: Most messages to receive ahead of the caller; ``None`` adapts to its speed.

        Raises:
            InvalidKeyError: If ``group`` or a filter is malformed.
            UnsupportedError: If ``keys`` is given and the backend cannot filter.
            BackendClosedError: If the backend is closed.
        """
        self._check_open()
        group = validate_group(group)
        return open_stream(self.backend, group=group, keys=keys, prefetch=prefetch)

    async def peek(
        self,
        keys: Sequence[str] | str | None = None,
        *,
        group: ConsumerGroup = None,
        limit: int = 10,
    ) -> list[Message]:
        """Return up to ``limit`` messages that ``group`` could take now, taking none.

        Args:
            keys: Only keys that match one of these.
            group: The consumer group.
            limit: Most messages.

        Raises:
            UnsupportedError: If the backend cannot.
        """
        self._check_open()
        self._need(self.capabilities.peek, "peek()", "peek")
        messages: list[Message] = await self.backend.peek(keys, group=group, limit=limit)
        return messages

    async def stats(self) -> QueueStats:
        """Return the backlog of every key and group.

        Raises:
            UnsupportedError: If the backend cannot.
        """
        self._check_open()
        self._need(self.capabilities.stats, "stats()", "stats")
        stats: QueueStats = await self.backend.stats()
        return stats

    async def dead_letters(self, *, group: ConsumerGroup = None, limit: int = 100) -> list[Message]:
        """Return up to ``limit`` dead letters of ``group``, oldest first, taking none.

        Args:
            group: The consumer group.
            limit: Most messages.

        Raises:
            UnsupportedError: If the backend keeps none.
        """
        self._check_open()
        self._need(self.capabilities.dead_letters, "dead_letters()", "dead_letters")
        messages: list[Message] = await self.backend.dead_letters(group=group, limit=limit)
        return messages

    async def replay(
        self,
        *,
        group: ConsumerGroup = None,
        ids: Iterable[str] | None = None,
        limit: int | None = None,
    ) -> int:
        """Put dead letters back for ``group`` alone, counted as never delivered.

        Args:
            group: The group whose dead letters are replayed.
            ids: Only the messages with these ids; ``None`` for all.
            limit: At most this many, oldest first.

        Returns:
            How many were put back.

        Raises:
            UnsupportedError: If the backend keeps none.
        """
        self._check_open()
        self._need(self.capabilities.dead_letters, "replay()", "dead_letters")
        count: int = await self.backend.replay(group=group, ids=ids, limit=limit)
        return count

    async def groups(self) -> list[ConsumerGroup]:
        """Return the groups that exist; ``None`` stands for the default group.

        Raises:
            UnsupportedError: If the backend cannot list them.
        """
        self._check_open()
        self._need(self.capabilities.admin, "groups()", "admin")
        return list(await self.backend.groups())

    async def delete_group(self, name: ConsumerGroup) -> None:
        """Forget a group, its backlog and its dead letters.

        Raises:
            UnsupportedError: If the backend cannot.
            ConfigurationError: If there is no such group.
        """
        self._check_open()
        self._need(self.capabilities.admin, "delete_group()", "admin")
        await self.backend.delete_group(name)

    async def purge(
        self, keys: Sequence[str] | str | None = None, *, group: ConsumerGroup = None
    ) -> int:
        """Drop what waits for ``group``, not what is in flight, and return how many.

        Args:
            keys: Only keys that match one of these.
            group: The consumer group.

        Raises:
            UnsupportedError: If the backend cannot.
        """
        self._check_open()
        self._need(self.capabilities.admin, "purge()", "admin")
        count: int = await self.backend.purge(keys, group=group)
        return count

    async def ping(self, timeout: float = 5.0) -> None:
        """Return once the broker has answered.

        Raises:
            UnsupportedError: If the backend has no such probe.
            ConnectionLostError: If it has not within ``timeout`` seconds.
        """
        self._check_open()
        self._need(hasattr(self.backend, "ping"), "ping()", "ping")
        await self.backend.ping(timeout)

    async def aclose(self) -> None:
        """Close the backend, where it can be closed; closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        close = getattr(self.backend, "aclose", None)
        if close is not None:
            await close()

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    @property
    def _plain(self) -> bool:
        return not isinstance(getattr(self.backend, "capabilities", None), Capabilities)

    def _check_open(self) -> None:
        if self._closed:
            raise BackendClosedError(f"backend {self.name!r} is closed; open a new one")

    def _need(self, has: object, what: str, capability: str) -> None:
        if not has:
            raise unsupported(self.name, what, capability)

    def _check(
        self, key: MessageQueueKey, payload: MessageQueuePayload
    ) -> tuple[MessageQueueKey, MessageQueuePayload]:
        """Return what a plain backend is given: a copy, which the caller cannot change."""
        return validate_key(key), decode_payload(encode_payload(payload))

    def _pair(
        self, position: int, item: Any, key: MessageQueueKey | None
    ) -> tuple[MessageQueueKey, MessageQueuePayload]:
        pair = split_pair(position, item) if key is None else (key, item)
        try:
            return self._check(*pair)
        except ValueError as error:
            raise type(error)(f"item {position}: {error}") from None
