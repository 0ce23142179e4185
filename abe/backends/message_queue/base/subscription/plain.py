"""Streams over any backend, also one that offers only the three required methods."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from abe.backends.message_queue.base.capabilities import Capabilities, capabilities_of, unsupported
from abe.backends.message_queue.base.keys import KeyFilter
from abe.backends.message_queue.base.message import BaseMessage, Message
from abe.backends.message_queue.base.receiver import (
    Delivery,
    EndOfStream,
    SettleFailure,
    Settlement,
)
from abe.backends.message_queue.base.subscription.stream import MessageStream
from abe.backends.message_queue.base.subscription.subscription import Subscription
from abe.errors import ConnectionLostError
from abe.types import ConsumerGroup, MessageQueueBackendProtocol, MessageQueueMessage

__all__ = ["backend_name", "check_backend", "open_stream"]


def backend_name(backend: object) -> str:
    """Return what errors and the log call ``backend``."""
    name = getattr(backend, "name", None)
    return name if isinstance(name, str) else type(backend).__name__


def check_backend(candidate: object) -> None:
    """Refuse what cannot be a backend.

    Raises:
        TypeError: If it is a class, a `SyncBackend`, or has no ``publish`` and ``consume``.
    """
    kind = type(candidate)
    if isinstance(candidate, type):
        what = f"the class {candidate.__name__}: call it, or its from_env()"
    elif isinstance(getattr(kind, "aio", None), property):
        what = f"a {kind.__name__}, whose methods block: see its aio and worker()"
    elif not all(callable(getattr(candidate, name, None)) for name in ("publish", "consume")):
        what = kind.__name__
    else:
        return
    raise TypeError(f"a backend has an async publish() and a consume(); this is {what}")


def open_stream(
    backend: MessageQueueBackendProtocol,
    *,
    group: ConsumerGroup = None,
    keys: Sequence[str] | str | None = None,
    prefetch: int | None = None,
) -> MessageStream:
    """Return a stream over ``backend``, which is asked only for what was asked for here.

    Over a plain backend, messages are taken one at a time: the backend's iterator is resumed when
    the caller asks for more, whatever settlement that means to it.

    Args:
        backend: Any backend.
        group: The consumer group.
        keys: Only keys that match one of these.
        prefetch: Most messages to receive ahead of the caller; ``None`` adapts to its speed.

    Raises:
        UnsupportedError: If ``keys`` is given and the backend cannot filter.
    """
    extras: dict[str, Any] = {}
    if keys is not None:
        if capabilities_of(backend).keys == "none":
            raise unsupported(backend_name(backend), "consume(keys=…)", "keys")
        extras["keys"] = KeyFilter(keys).patterns
    if prefetch is not None and isinstance(getattr(backend, "capabilities", None), Capabilities):
        extras["prefetch"] = prefetch
    first = backend.consume(group=group, **extras)
    if isinstance(first, MessageStream):
        return first
    sources = [first]

    def receiver() -> _PlainReceiver:
        return _PlainReceiver(sources.pop() if sources else backend.consume(group=group, **extras))

    name = backend_name(backend)
    return MessageStream(
        Subscription(receiver, capabilities=Capabilities(), backend=name, group=group, prefetch=1)
    )


class _PlainReceiver:
    """Drives the iterator of a plain backend.

    With a prefetch of 1 the stream receives only when its caller asks for more, so the iterator
    is resumed exactly then. One task runs it from its first step to its last, because what an
    iterator holds across ``yield`` (a task group, a timeout, a context variable) may belong to
    a task.
    """

    lease: float | None = None

    def __init__(self, source: Any) -> None:
        self._source = source
        self._message: MessageQueueMessage | None = None
        self._wanted = asyncio.Event()
        self._news = asyncio.Event()
        self._driver: asyncio.Task[None] | None = None

    async def open(self) -> None:
        if inspect.isawaitable(self._source):
            self._source = await self._source

    async def receive(self, max_messages: int, timeout: float) -> Sequence[Delivery]:
        if self._driver is None:
            self._driver = asyncio.create_task(self._drive(), name="abe-iterate")
            self._driver.add_done_callback(lambda _: self._news.set())
        if self._message is None:
            self._wanted.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._news.wait()
        self._news.clear()
        if self._message is not None:
            message, self._message = self._message, None
            return [Delivery(_as_message(message), None)]
        if self._driver.cancelled():
            raise ConnectionLostError("the backend's iterator was cancelled")
        if self._driver.done():
            self._driver.result()
            raise EndOfStream
        return []

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleFailure]:
        return []

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Delivery]:
        return []

    def wake(self) -> None:
        self._news.set()

    async def aclose(self) -> None:
        driver = self._driver
        if driver is None:
            await self._close_source()
            return
        if not driver.cancelling():  # asyncio.run() has cancelled it already when the loop ends
            driver.cancel()
        await asyncio.wait([driver])
        error = None if driver.cancelled() else driver.exception()
        if error is not None:
            raise error  # result(), when called again, forgets where it came up

    async def _drive(self) -> None:
        try:
            async for message in self._source:
                self._message = message
                self._wanted.clear()
                self._news.set()
                await self._wanted.wait()
        finally:
            await self._close_source()

    async def _close_source(self) -> None:
        close = getattr(self._source, "aclose", None)
        if close is not None:
            await close()


def _as_message(payload: MessageQueueMessage) -> Message:
    if isinstance(payload, BaseMessage):
        return Message(
            payload, payload.id, payload.key, payload.timestamp, payload.attempt, payload.headers
        )
    return Message(payload)
