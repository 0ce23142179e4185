"""`BaseBackend`: what first-party backends share, so that a provider writes only the driver."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, ClassVar, Self

from abe.backends.message_queue.base.capabilities import Capabilities, check_method, unsupported
from abe.backends.message_queue.base.closing import Closer, raise_failures
from abe.backends.message_queue.base.keys import KeyFilter, validate_group, validate_key
from abe.backends.message_queue.base.message import Message
from abe.backends.message_queue.base.operations import BackendOperations, Items, Keys
from abe.backends.message_queue.base.outgoing import (
    NO_HEADERS,
    Label,
    Outgoing,
    check_extras,
    item_label,
    prepare,
)
from abe.backends.message_queue.base.payload import encode_payload
from abe.backends.message_queue.base.process import fork_error, identity
from abe.backends.message_queue.base.receiver import Receiver
from abe.backends.message_queue.base.settings import Setting, naming_variables, read_settings
from abe.backends.message_queue.base.subscription.prefetch import MAX_PREFETCH
from abe.backends.message_queue.base.subscription.stream import MessageStream
from abe.backends.message_queue.base.subscription.subscription import Subscription
from abe.errors import BackendClosedError, ConnectionLostError, LoopError
from abe.types import ConsumerGroup, MessageQueueKey, MessageQueuePayload, QueueStats

__all__ = ["BaseBackend"]


ALL = 2**31
"""Stands for no limit: more messages than any backend could return."""


class BaseBackend(BackendOperations):
    """Checks what is published, opens streams and closes them; a provider adds the transport.

    Subclassing is a convenience: any object with the three methods of
    `abe.types.MessageQueueBackendProtocol` is a backend. A subclass sets `name` and
    `capabilities`, declares its `settings` and implements `_send` and `_receiver`; where it
    declares them, ``_peek``, ``_stats`` and so on, which get the arguments checked.
    """

    name: ClassVar[str]
    settings: ClassVar[tuple[Setting, ...]] = ()
    """The environment variables, each of which sets an argument of the constructor."""
    loop_bound: ClassVar[bool] = True
    """Whether connections belong to the event loop that first uses them."""
    max_prefetch: ClassVar[int] = MAX_PREFETCH
    """Most messages that a stream holds ahead of a fast caller."""
    _encode: ClassVar[staticmethod[[MessageQueuePayload], Any]] = staticmethod(encode_payload)
    """Makes the ``body`` of an `Outgoing`; only a backend that nothing leaves changes this."""

    capabilities: Capabilities

    def __init__(self) -> None:
        self._closed = False
        self._process = identity.pid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._subscriptions: set[Subscription] = set()
        self._closer = Closer(self.name)

    @classmethod
    def from_env(cls) -> Self:
        """Create a backend from the variables in `settings`, without connecting.

        Raises:
            ConfigurationError: If a variable is malformed.
        """
        arguments = read_settings(cls.settings)
        with naming_variables(cls.settings):
            return cls(**arguments)

    @abstractmethod
    async def _send(self, items: Sequence[Outgoing]) -> None:
        """Hand ``items`` to the broker, in order; returns when all are accepted.

        Raises:
            PublishError: If any was not; with ``published`` and ``failed`` where known.
        """

    @abstractmethod
    def _receiver(self, group: ConsumerGroup, keys: KeyFilter) -> Receiver:
        """Return a new, unopened receiver."""

    def _survives_fork(self) -> bool:
        """Whether a forked child may use this backend: by default, one that was not used before."""
        return self._loop is None

    async def _disconnect(self) -> None:
        """Give connections back; streams are closed by then."""

    # Whoever declares the capability implements the method; see the public one of that name.

    async def _peek(self, keys: KeyFilter, group: ConsumerGroup, limit: int) -> list[Message]:
        raise NotImplementedError

    async def _stats(self) -> QueueStats:
        raise NotImplementedError

    async def _dead_letters(self, group: ConsumerGroup, limit: int) -> list[Message]:
        raise NotImplementedError

    async def _replay(self, group: ConsumerGroup, ids: Set[str] | None, limit: int) -> int:
        raise NotImplementedError

    async def _groups(self) -> list[ConsumerGroup]:
        raise NotImplementedError

    async def _delete_group(self, name: ConsumerGroup) -> None:
        raise NotImplementedError

    async def _purge(self, keys: KeyFilter, group: ConsumerGroup) -> int:
        raise NotImplementedError

    async def _ping(self) -> None:
        """Return once the broker has answered; the caller limits the time."""

    async def publish(
        self,
        key: MessageQueueKey,
        payload: MessageQueuePayload,
        *,
        headers: Mapping[str, str] | None = None,
        delay: float = 0.0,
    ) -> None:
        await self.send((self._check(key, payload, headers, delay),))

    def prepare(
        self,
        items: Items,
        *,
        key: MessageQueueKey | None = None,
        headers: Mapping[str, str] | None = None,
        delay: float = 0.0,
        label: Label = item_label,
    ) -> list[Outgoing]:
        can = self.capabilities
        checked = check_extras(self.name, can, headers, delay) if headers or delay else NO_HEADERS
        return prepare(items, key, checked, delay, encode=self._encode, label=label)

    async def send(self, prepared: Sequence[Outgoing]) -> None:
        self._bind()
        if prepared:
            await self._send(prepared)

    def consume(
        self, *, group: ConsumerGroup = None, keys: Keys = None, prefetch: int | None = None
    ) -> MessageStream:
        self._check_open()
        group = self._group(group, "consume")
        if keys is not None and self.capabilities.keys == "none":
            raise unsupported(self.name, "consume(keys=…)", "keys")
        chosen = KeyFilter(keys)
        most = self.max_prefetch
        prefetch = most if prefetch is None else min(prefetch, most)

        def factory() -> Receiver:
            # Also while closing: recorded settlements may need a new connection.
            if self.loop_bound:
                self._bind_loop()
            return self._receiver(group, chosen)

        subscription = Subscription(
            factory,
            capabilities=self.capabilities,
            backend=self.name,
            group=group,
            prefetch=prefetch,
            on_opened=self._subscriptions.add,
            on_closed=self._subscriptions.discard,
        )
        return MessageStream(subscription)

    async def ping(self, timeout: float = 5.0) -> None:
        self._bind()
        try:
            async with asyncio.timeout(timeout):
                await self._ping()
        except TimeoutError as error:
            raise ConnectionLostError(f"{self!r} did not answer in {timeout:g} s") from error

    async def _operate(self, method: str, **arguments: Any) -> Any:
        self._bind()
        check_method(self.capabilities, self.name, method)
        checks: dict[str, Callable[[Any], object]] = {
            "keys": KeyFilter,
            "group": lambda group: self._group(group, method),
            "name": lambda group: self._group(group, method),
            "limit": lambda limit: ALL if limit is None else max(0, min(limit, ALL)),
            "ids": lambda ids: ids if ids is None else {ids} if isinstance(ids, str) else set(ids),
        }
        checked = {name: checks[name](value) for name, value in arguments.items()}
        return await getattr(self, f"_{method}")(**checked)

    def _group(self, group: ConsumerGroup, method: str) -> ConsumerGroup:
        if validate_group(group) is not None and not self.capabilities.groups:
            raise unsupported(self.name, f"{method}(group=…)", "groups")
        return group

    async def aclose(self) -> None:
        self._closed = True
        if self._process != identity.pid():
            return  # the open connections are the parent's
        await self._closer.run(self._close)

    async def _close(self) -> None:
        try:
            await self._close_streams()
        finally:
            await self._disconnect()

    async def _close_streams(self) -> None:
        here = asyncio.get_running_loop()
        closing = []
        for subscription in list(self._subscriptions):
            if subscription.loop is here:
                closing.append(subscription.aclose())
            else:
                # Waiting for a loop that may itself be waiting for us would be a deadlock.
                subscription.abandon()
        raise_failures(await asyncio.gather(*closing, return_exceptions=True))

    def _check_open(self) -> None:
        if self._closed:
            raise BackendClosedError(f"backend {self.name!r} is closed; open a new one")
        if self._process != identity.pid():
            if not self._survives_fork():
                raise fork_error(f"backend {self.name!r}", self._process)
            self._process = identity.pid()

    def _bind(self) -> None:
        """Refuse a closed backend, and another loop than the one its connections belong to."""
        # Without a call where nothing has changed: this runs for every message.
        if self._closed or not identity.unforked[0] or self._process != identity.known:
            self._check_open()
        if self.loop_bound:
            self._bind_loop()

    def _bind_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise LoopError(
                f"backend {self.name!r} is in use on another event loop; open a second one here, "
                "or let abe.connect() own it and use it from any loop through .aio"
            )

    def _check(
        self,
        key: MessageQueueKey,
        payload: MessageQueuePayload,
        headers: Mapping[str, str] | None,
        delay: float,
    ) -> Outgoing:
        can = self.capabilities
        checked = check_extras(self.name, can, headers, delay) if headers or delay else NO_HEADERS
        return Outgoing(validate_key(key), self._encode(payload), checked, delay)
