"""Backends and handlers shared by the tests of the consumer."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Self, TypeVar

from abe.backends.message_queue.consumer import AsyncLoopConsumer, RetryPolicy
from abe.backends.message_queue.service.memory import MemoryBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    import pytest

    from abe.backends.message_queue.base import Capabilities, Message, MessageStream
    from tests.support.scripted_broker import Broker

T = TypeVar("T")
FAST = RetryPolicy(max_attempts=3, base=0.0)
STEADY = RetryPolicy(max_attempts=4, base=1.0, factor=2.0, max_delay=3.0, jitter=False)


class Scripted:
    """A first-party backend over a scripted broker."""

    name = "scripted"

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.opened: list[dict[str, Any]] = []
        self.published: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        self.refusals: deque[BaseException] = deque()

    @property
    def capabilities(self) -> Capabilities:
        return self.broker.capabilities

    @classmethod
    def from_env(cls) -> Self:
        raise NotImplementedError

    async def publish(self, key: str, payload: dict[str, Any], **extras: Any) -> None:
        await asyncio.sleep(0)
        if self.refusals:
            raise self.refusals.popleft()
        self.published.append((key, payload, extras))
        if key == "k":  # other keys go elsewhere
            (record,) = self.broker.publish(1, key)
            record.payload = payload

    def consume(self, **options: Any) -> MessageStream:
        self.opened.append(options)
        return self.broker.stream()


class Plain:
    """A plain backend: the iterator yields dicts, and resuming it acks."""

    def __init__(self, *payloads: dict[str, Any], ends: bool = False) -> None:
        self.waiting = deque(payloads)
        self.acked: list[dict[str, Any]] = []
        self.opened: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.changed = asyncio.Event()
        self.ends = ends
        self.log: list[tuple[str, Any]] = []

    @classmethod
    def from_env(cls) -> Self:
        raise NotImplementedError

    async def publish(self, *args: Any) -> None:
        key, payload = args
        self.log.append((key, payload))
        self.waiting.append(payload)
        self.changed.set()

    def consume(self, *args: Any, **options: Any) -> AsyncIterator[dict[str, Any]]:
        self.opened.append((args, options))
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[dict[str, Any]]:
        while True:
            while not self.waiting:
                if self.ends:
                    return
                self.changed.clear()
                await self.changed.wait()
            payload = self.waiting.popleft()
            try:
                yield payload
            except BaseException:
                self.waiting.appendleft(payload)
                raise
            self.acked.append(payload)


_number = 0


def memory(**settings: Any) -> MemoryBackend:
    global _number
    _number += 1
    return MemoryBackend(f"consumer.{_number}", **settings)


def real(main: Coroutine[Any, Any, T]) -> T:
    """Run a test that needs real threads, in real time."""

    async def limited() -> T:
        async with asyncio.timeout(10):
            return await main

    return asyncio.run(limited())


async def until(condition: Callable[[], object], step: float = 0.01) -> None:
    """Let other tasks run until ``condition`` holds."""
    while not condition():  # noqa: ASYNC110 - there is no event inside the code under test
        await asyncio.sleep(step)


class Recorder:
    """A handler that remembers what it was given, and does as told.

    Args:
        script: What to do at each call; an exception is raised, a number is slept.
    """

    def __init__(self, *script: Any) -> None:
        self.script = deque(script)
        self.messages: list[Message] = []
        self.attempts: list[int] = []
        self.times: list[float] = []

    async def __call__(self, message: Message) -> None:
        self.messages.append(message)
        self.attempts.append(message.attempt)
        self.times.append(asyncio.get_running_loop().time())
        if self.script:
            step = self.script.popleft()
            if isinstance(step, BaseException):
                raise step
            await asyncio.sleep(step)

    @property
    def numbers(self) -> list[int]:
        return [message["n"] for message in self.messages]

    @property
    def gaps(self) -> list[float]:
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


async def settled(
    consumer: AsyncLoopConsumer, handler: Any, condition: Callable[[], object], step: float = 0.01
) -> None:
    """Run ``consumer`` until ``condition`` holds, then shut it down."""
    task = asyncio.create_task(consumer.run(handler))
    waiter = asyncio.create_task(until(condition, step))
    await asyncio.wait([task, waiter], return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    assert condition()
    await consumer.shutdown()
    await task


seen: list[tuple[type, int]] = []


def note(message: Any) -> None:
    assert message == {"n": 1}
    seen.append((type(message), threading.get_ident()))


class AsyncObject:
    async def handle_event(self, event: Any) -> None:
        note(event)

    async def method(self, message: Any) -> None:
        note(message)


def announced(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        r.getMessage()
        for r in caplog.records
        if r.levelno == logging.WARNING and "no dead letters" in r.getMessage()
    ]
