"""`aconnect`: a backend with every extra typed, on the running event loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

from abe._redact import Variables
from abe.backends.message_queue.base import (
    BaseBackend,
    Capabilities,
    Message,
    MessageStream,
    Outgoing,
    backend_name,
    capabilities_of,
    check_backend,
    decode_payload,
    encode_payload,
    not_published,
)
from abe.backends.message_queue.base.capabilities import unsupported
from abe.backends.message_queue.base.outgoing import (
    Label,
    check_extras,
    item_label,
    no_label,
    prepare,
)
from abe.backends.message_queue.base.process import Unshareable
from abe.backends.message_queue.base.publisher import NOT_SENT
from abe.backends.message_queue.client_host import BackendHost, LocalHost
from abe.backends.message_queue.loader import load_backend
from abe.errors import ConfigurationError
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
    env = None if env is None else Variables(env)  # no frame of a traceback shows its secrets
    if name_or_backend is None or isinstance(name_or_backend, str):
        return AsyncBackend(load_backend(name_or_backend, env=env))
    if env is not None:
        raise ConfigurationError("env configures a backend by name; this one is already created")
    if isinstance(name_or_backend, AsyncBackend):
        return name_or_backend
    check_backend(name_or_backend)
    return AsyncBackend(name_or_backend)


class AsyncBackend(Unshareable):
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

    def __init__(
        self, backend: MessageQueueBackendProtocol, host: BackendHost | None = None
    ) -> None:
        """Wrap ``backend``.

        Args:
            backend: Any backend.
            host: Where its calls run; by default, on the loop that awaits them.
        """
        self.backend: Any = backend
        self.name = backend_name(backend)
        self._host: BackendHost = host if host is not None else LocalHost(backend)
        self._local = host is None
        self._first_party = isinstance(backend, BaseBackend)

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
        return f"<AsyncBackend {self.name}{' closed' if self._host.closed else ''}>"

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
        if self._host.closed:
            self._host.check_open()
        if self._first_party:
            call = self.backend.publish(key, payload, headers=headers, delay=delay)
            await (call if self._local else self._host.run(call))
        else:
            await self.send(
                self.prepare([payload], key=key, headers=headers, delay=delay, label=no_label)
            )

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
        self._host.check_open()
        prepared = self.prepare(items, key=key)
        await self.send(prepared)
        return len(prepared)

    def prepare(
        self,
        items: Iterable[tuple[MessageQueueKey, MessageQueuePayload]] | Iterable[Any],
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
        if isinstance(self.backend, BaseBackend):
            return self.backend.prepare(items, key=key, headers=headers, delay=delay, label=label)
        checked = check_extras(self.name, self.capabilities, headers, delay)
        return prepare(items, key, checked, delay, encode=encode_payload, label=label)

    async def send(self, prepared: Sequence[Outgoing]) -> None:
        """Publish what `prepare` has returned, or a part of it, in order.

        Raises:
            PublishError: If not all were accepted; ``published`` and ``failed`` say which.
            BackendClosedError: If the backend is closed.
        """
        self._host.check_open()
        await self._host.run(self._send(prepared))

    async def _send(self, prepared: Sequence[Outgoing]) -> None:
        if self._first_party:
            await self.backend.send(prepared)
            return
        for n, (key, body, headers, delay) in enumerate(prepared):
            extras = {
                **({"headers": headers} if headers else {}),
                **({"delay": delay} if delay else {}),
            }
            try:
                await self.backend.publish(key, decode_payload(body), **extras)
            except Exception as error:  # a plain backend raises what it likes
                if len(prepared) == 1:
                    raise
                rest = dict.fromkeys(range(n, len(prepared)), NOT_SENT)
                raise not_published({**rest, n: error}, len(prepared)) from error

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
        self._host.check_open()
        return self._host.consume(keys, group, prefetch)

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
        self._host.check_open()
        self._need(self.capabilities.peek, "peek()", "peek")
        found: list[Message] = await self._look("peek", keys, group=group, limit=limit)
        return found

    async def stats(self) -> QueueStats:
        """Return the backlog of every key and group.

        Raises:
            UnsupportedError: If the backend cannot.
        """
        self._host.check_open()
        self._need(self.capabilities.stats, "stats()", "stats")
        found: QueueStats = await self._look("stats")
        return found

    async def dead_letters(self, *, group: ConsumerGroup = None, limit: int = 100) -> list[Message]:
        """Return up to ``limit`` dead letters of ``group``, oldest first, taking none.

        Args:
            group: The consumer group.
            limit: Most messages.

        Raises:
            UnsupportedError: If the backend keeps none.
        """
        self._host.check_open()
        self._need(self.capabilities.dead_letters, "dead_letters()", "dead_letters")
        found: list[Message] = await self._look("dead_letters", group=group, limit=limit)
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
            group: The group whose dead letters are replayed.
            ids: Only the messages with these ids; ``None`` for all.
            limit: At most this many, oldest first.

        Returns:
            How many were put back.

        Raises:
            UnsupportedError: If the backend keeps none.
        """
        self._host.check_open()
        self._need(self.capabilities.dead_letters, "replay()", "dead_letters")
        found: int = await self._look("replay", group=group, ids=ids, limit=limit)
        return found

    async def groups(self) -> list[ConsumerGroup]:
        """Return the groups that exist; ``None`` stands for the default group.

        Raises:
            UnsupportedError: If the backend cannot list them.
        """
        self._host.check_open()
        self._need(self.capabilities.admin, "groups()", "admin")
        return list(await self._look("groups"))

    async def delete_group(self, name: ConsumerGroup) -> None:
        """Forget a group, its backlog and its dead letters.

        Raises:
            UnsupportedError: If the backend cannot.
            ConfigurationError: If there is no such group.
        """
        self._host.check_open()
        self._need(self.capabilities.admin, "delete_group()", "admin")
        await self._look("delete_group", name)

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
        self._host.check_open()
        self._need(self.capabilities.admin, "purge()", "admin")
        found: int = await self._look("purge", keys, group=group)
        return found

    async def ping(self, timeout: float = 5.0) -> None:
        """Return once the broker has answered.

        Raises:
            UnsupportedError: If the backend has no such probe.
            ConnectionLostError: If it has not within ``timeout`` seconds.
        """
        self._host.check_open()
        self._need(hasattr(self.backend, "ping"), "ping()", "ping")
        await self._look("ping", timeout)

    async def aclose(self) -> None:
        """Close the backend, where it can be closed; closing twice is fine."""
        await self._host.aclose()

    async def __aenter__(self) -> Self:
        self._host.check_open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _look(self, method: str, *args: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        return await self._host.look(partial(getattr(self.backend, method), *args, **options))

    def _need(self, has: object, what: str, capability: str) -> None:
        if not has:
            raise unsupported(self.name, what, capability)
