"""`aconnect`: a backend with every extra typed, on the running event loop."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Self, TypeVar

from abe._redact import Variables
from abe.backends.message_queue.base import (
    BackendOperations,
    BaseBackend,
    Capabilities,
    Keys,
    MessageStream,
    Outgoing,
    backend_name,
    capabilities_of,
    check_backend,
    decode_payload,
    encode_payload,
    not_published,
    open_stream,
    validate_group,
)
from abe.backends.message_queue.base.capabilities import check_method, unsupported
from abe.backends.message_queue.base.closing import Closer
from abe.backends.message_queue.base.operations import Items
from abe.backends.message_queue.base.outgoing import (
    Label,
    check_extras,
    item_label,
    no_label,
    prepare,
)
from abe.backends.message_queue.base.publisher import NOT_SENT
from abe.backends.message_queue.loader import load_backend
from abe.errors import BackendClosedError, ConfigurationError
from abe.types import (
    ConsumerGroup,
    MessageQueueBackendProtocol,
    MessageQueueKey,
    MessageQueuePayload,
)

__all__ = ["AsyncBackend", "aconnect"]

T = TypeVar("T")


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


class AsyncBackend(BackendOperations):
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

    _bridged: ClassVar[bool] = False
    """Whether its calls run elsewhere than on the loop that awaits them."""

    def __init__(self, backend: MessageQueueBackendProtocol) -> None:
        self.backend: Any = backend
        self.name = backend_name(backend)
        self._first_party = isinstance(backend, BaseBackend)
        self._closed = False
        self._closer = Closer(self.name)

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
        if self._closed or self._bridged:
            self._bind()
        if self._first_party:
            call = self.backend.publish(key, payload, headers=headers, delay=delay)
            await (self._run(call) if self._bridged else call)
        else:
            await self.send(
                self.prepare([payload], key=key, headers=headers, delay=delay, label=no_label)
            )

    def prepare(
        self,
        items: Items,
        *,
        key: MessageQueueKey | None = None,
        headers: Mapping[str, str] | None = None,
        delay: float = 0.0,
        label: Label = item_label,
    ) -> list[Outgoing]:
        if isinstance(self.backend, BaseBackend):
            return self.backend.prepare(items, key=key, headers=headers, delay=delay, label=label)
        checked = check_extras(self.name, self.capabilities, headers, delay)
        return prepare(items, key, checked, delay, encode=encode_payload, label=label)

    async def send(self, prepared: Sequence[Outgoing]) -> None:
        self._bind()
        await self._run(self._send(prepared))

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
        self, keys: Keys = None, *, group: ConsumerGroup = None, prefetch: int | None = None
    ) -> MessageStream:
        self._bind()
        group = validate_group(group)
        return open_stream(self.backend, group=group, keys=keys, prefetch=prefetch)

    async def aclose(self) -> None:
        self._closed = True
        await self._closer.run(self._close)

    async def _close(self) -> None:
        if hasattr(self.backend, "aclose"):
            await self.backend.aclose()

    def _bind(self) -> None:
        if self._closed:
            raise BackendClosedError(f"backend {self.name!r} is closed; open a new one")

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """Return an awaitable of the running loop for a coroutine of the backend's."""
        return coroutine

    async def _operate(self, method: str, **arguments: Any) -> Any:
        __tracebackhide__ = True
        self._bind()
        if method != "ping":
            check_method(self.capabilities, self.name, method)
        elif not hasattr(self.backend, method):
            raise unsupported(self.name, "ping()", "ping")
        return await self._look(partial(getattr(self.backend, method), **arguments))

    def _look(self, call: Callable[[], Coroutine[Any, Any, T]]) -> Coroutine[Any, Any, T]:
        return call()
