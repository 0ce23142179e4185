"""Plain iterators of any backend behave as streams."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from abe.backends.message_queue.base import MessageStream, open_stream
from tests.unit_test.stream.support import ask_with_timeout, warned

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.virtual_loop import VirtualRun


class Plain:
    """A backend with the three required methods and nothing else.

    Args:
        script: What its iterators do, one after the other: yield a dict, raise an error, wait
            (a number of seconds).
    """

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.resumed: list[int] = []
        self.tasks: set[asyncio.Task[Any] | None] = set()
        self.opened = 0
        self.closed = 0

    @classmethod
    def from_env(cls) -> Plain:
        return cls()

    async def publish(self, key: str, payload: dict[str, Any]) -> None:
        self.script.append(payload)

    async def consume(self, *, group: str | None = None) -> AsyncIterator[dict[str, Any]]:
        self.opened += 1
        self.tasks.add(asyncio.current_task())
        try:
            while self.script:
                step = self.script.pop(0)
                if isinstance(step, BaseException):
                    raise step
                if isinstance(step, dict):
                    yield step
                    self.resumed.append(step["n"])
                    self.tasks.add(asyncio.current_task())
                else:
                    await asyncio.sleep(step)
        finally:
            self.tasks.add(asyncio.current_task())
            self.closed += 1


async def test_a_plain_iterator_is_resumed_exactly_when_the_caller_asks() -> None:
    """Whatever resuming means to a plain backend happens neither early nor late."""
    backend = Plain({"n": 0}, {"n": 1}, {"n": 2}, 3600)
    async with open_stream(backend) as stream:
        for n in range(3):
            message = await anext(stream)
            assert (message.id, message.key, message.timestamp, message.attempt) == (
                None, None, None, 1,
            )  # fmt: skip
            await asyncio.sleep(60)
            assert backend.resumed == list(range(n))
    assert backend.closed == 1


async def test_the_end_of_a_plain_iterator_ends_the_stream() -> None:
    """A finite iterator ends the loop, again and again; closing stays quiet."""
    backend = Plain({"n": 0}, {"n": 1})
    stream = open_stream(backend)
    assert [message["n"] async for message in stream] == [0, 1]
    assert [message["n"] async for message in stream] == []
    assert await stream.take(3) == []
    assert stream.closed
    await stream.aclose()
    assert backend.resumed == [0, 1]


async def test_a_stream_whose_end_was_reached_may_be_dropped() -> None:
    """``async for`` to the end without closing leaves nothing behind."""
    backend = Plain({"n": 0})
    async for _ in open_stream(backend):
        pass
    await asyncio.sleep(1)
    assert backend.closed == 1


async def test_a_plain_iterator_that_loses_its_connection_is_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A `ConnectionError` out of a plain iterator is an outage: ``consume`` is called again."""
    backend = Plain({"n": 0}, ConnectionError("gone"), ConnectionError("gone"), {"n": 1}, 3600)
    async with open_stream(backend) as stream:
        assert [(await anext(stream))["n"] for _ in range(2)] == [0, 1]
    assert backend.opened == backend.closed == 3
    assert len(warned(caplog, "cannot be reached")) == 1


async def test_a_plain_backend_keeps_its_buffer_when_the_connection_is_lost() -> None:
    """Who will not redeliver must not lose what a cancelled ``take`` put back."""
    backend = Plain({"n": 0}, {"n": 1}, 5.0, ConnectionError("gone"), {"n": 2}, 3600)

    async with open_stream(backend) as stream:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await stream.take(3)
        await asyncio.sleep(60)
        assert [m["n"] for m in await stream.take(3)] == [0, 1, 2]


async def test_an_error_of_a_plain_iterator_surfaces() -> None:
    """Any other error of a plain iterator ends the stream and reaches the caller, place and all."""
    backend = Plain({"n": 0}, ZeroDivisionError())
    stream = open_stream(backend)
    await anext(stream)
    with pytest.raises(ZeroDivisionError) as caught:
        await anext(stream)
    assert caught.traceback[-1].name == "consume"
    await stream.aclose()
    assert backend.closed == 1


async def test_a_timeout_does_not_kill_a_plain_generator() -> None:
    """``wait_for`` on a bare async generator ends it; through a stream it lives on."""
    backend = Plain(5.0, {"n": 0}, 3600)
    async with open_stream(backend) as stream:
        for _ in range(4):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(stream), 1)
        assert await anext(stream) == {"n": 0}
    assert backend.opened == 1


async def test_closing_ends_a_plain_generator_that_waits() -> None:
    """``aclose`` from another task, which a bare generator refuses while it runs."""
    backend = Plain(3600)
    stream = open_stream(backend)
    task = asyncio.create_task(anext(stream, None))
    await asyncio.sleep(1)
    await stream.aclose()
    assert await task is None
    assert backend.closed == 1


async def test_a_plain_generator_runs_in_one_task() -> None:
    """So it may hold what belongs to a task across ``yield``: a task group, a context variable."""
    backend = Plain({"n": 0}, {"n": 1}, 3600)
    async with open_stream(backend) as stream:
        await anext(stream)
        await anext(stream)
        with suppress(TimeoutError):
            await ask_with_timeout(stream, 1)
    assert len(backend.tasks) == 1


def test_asyncio_run_closes_a_plain_generator(run: VirtualRun) -> None:
    """The loop's end closes the generator, with its stream kept or not."""
    backend = Plain({"n": 0}, 3600)
    kept: list[MessageStream] = []

    async def main() -> None:
        kept.append(open_stream(backend))
        await anext(kept[0])

    run(main(), tidy=False)
    assert backend.closed == 1


class Numbers:
    """An iterator without ``aclose``."""

    def __init__(self, script: list[Any]) -> None:
        self.script = script

    def __aiter__(self) -> Numbers:
        return self

    async def __anext__(self) -> dict[str, Any]:
        if not self.script:
            raise StopAsyncIteration
        item: dict[str, Any] = self.script.pop(0)
        return item


async def test_consume_may_be_async_and_return_any_iterator() -> None:
    """A coroutine that returns an async iterator is as good as an async generator."""
    backend: Any = Plain()

    async def consume(*, group: str | None = None) -> Numbers:
        await asyncio.sleep(1)
        return Numbers([{"n": 0}, {"n": 1}])

    backend.consume = consume

    async with open_stream(backend) as stream:
        assert [message["n"] async for message in stream] == [0, 1]
