"""Streams over any backend, also one that offers only the three required methods."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from abe.backends.message_queue.base.capabilities import (
    Capabilities,
    capabilities_of,
    unsupported,
)
from abe.backends.message_queue.base.keys import KeyFilter
from abe.backends.message_queue.base.message import BaseMessage, Message
from abe.backends.message_queue.base.receiver import (
    Delivery,
    EndOfStream,
    SettleFailure,
    Settlement,
)
from abe.backends.message_queue.base.stream import MessageStream
from abe.types import ConsumerGroup, MessageQueueBackendProtocol, MessageQueueMessage

__all__ = ["backend_name", "open_stream"]


def backend_name(backend: object) -> str:
    """Return what errors and the log call ``backend``."""
    name = getattr(backend, "name", None)
    return name if isinstance(name, str) else type(backend).__name__


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

    return MessageStream(
        receiver,
        capabilities=Capabilities(),
        backend=backend_name(backend),
        group=group,
        prefetch=1,
    )


class _PlainReceiver:
    """Drives the iterator of a plain backend.

    With a prefetch of 1 the stream receives only when its caller asks for more, so the iterator
    is resumed exactly then.
    """

    lease: float | None = None

    def __init__(self, source: Any) -> None:
        self._source = source
        self._iterator: AsyncIterator[MessageQueueMessage] | None = None
        self._next: asyncio.Task[MessageQueueMessage] | None = None
        self._woken = asyncio.Event()

    async def open(self) -> None:
        source = self._source
        if inspect.isawaitable(source):
            source = await source
        self._iterator = aiter(source)

    async def receive(self, max_messages: int, timeout: float) -> Sequence[Delivery]:
        assert self._iterator is not None
        if self._next is None:
            self._next = asyncio.ensure_future(_advance(self._iterator))
        woken = asyncio.ensure_future(self._woken.wait())
        await asyncio.wait(
            [self._next, woken], timeout=timeout, return_when=asyncio.FIRST_COMPLETED
        )
        woken.cancel()
        self._woken.clear()
        if not self._next.done():
            return []
        task, self._next = self._next, None
        return [Delivery(_as_message(task.result()), None)]

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleFailure]:
        return []

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Delivery]:
        return []

    def wake(self) -> None:
        self._woken.set()

    async def aclose(self) -> None:
        task, self._next = self._next, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task
        close = getattr(self._iterator, "aclose", None)
        if close is not None:
            await close()


async def _advance(iterator: AsyncIterator[MessageQueueMessage]) -> MessageQueueMessage:
    try:
        return await anext(iterator)
    except StopAsyncIteration as end:
        raise EndOfStream from end


def _as_message(payload: MessageQueueMessage) -> Message:
    if isinstance(payload, BaseMessage):
        return Message(
            payload, payload.id, payload.key, payload.timestamp, payload.attempt, payload.headers
        )
    return Message(payload)
