"""Timeouts lose nothing, closing ends every wait, and one task waits at a time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit_test.stream.support import ask_with_timeout, now

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from abe.backends.message_queue.base import Message, MessageStream
    from tests.support.scripted_broker import Broker


def ask_with_wait_for(stream: MessageStream, seconds: float) -> Coroutine[Any, Any, Message]:
    return asyncio.wait_for(anext(stream), seconds)


@pytest.mark.parametrize("ask", [ask_with_timeout, ask_with_wait_for])
async def test_a_timeout_leaves_the_stream_usable_and_loses_nothing(
    broker: Broker,
    ask: Callable[[MessageStream, float], Coroutine[Any, Any, Message]],
) -> None:
    """Timeouts around ``__anext__``, many of them at the very moment of arrival, lose nothing."""
    broker.latency = 0.01
    received: list[int] = []

    async def publish() -> None:
        for _ in range(75):
            broker.publish(1)
            await asyncio.sleep(0.0125)

    publisher = asyncio.create_task(publish())
    async with broker.stream() as stream:
        tries = timeouts = 0
        while len(received) < 75:
            tries += 1
            try:
                received.append((await ask(stream, 0.001 * (tries % 25)))["n"])
            except TimeoutError:
                timeouts += 1
        assert timeouts > 20
        await stream.take(1, 0.1)
    await publisher
    assert received == list(range(75))
    assert broker.acked() == received


async def test_a_timed_out_wait_keeps_the_message_that_was_arriving(broker: Broker) -> None:
    """The read that a timeout interrupts is not cancelled; its message is handed over next."""
    broker.fault("receive", answer=5.0)

    broker.publish(1)
    async with broker.stream() as stream:
        with pytest.raises(TimeoutError):
            await ask_with_timeout(stream, 1.0)
        assert await anext(stream) == {"n": 0}
        assert len(broker.called("receive")) == 1


@pytest.mark.parametrize("published", [0, 3])
async def test_closing_ends_a_waiting_iteration(broker: Broker, published: int) -> None:
    """``aclose()`` while another task waits in ``__anext__``: the waiter sees the end."""
    received: list[int] = []

    async def consume(stream: MessageStream) -> None:
        received.extend([message["n"] async for message in stream])

    broker.publish(published)
    stream = broker.stream()
    task = asyncio.create_task(consume(stream))
    await asyncio.sleep(1)
    assert not task.done()
    started = now()
    await stream.aclose()
    assert now() == started
    await task
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert stream.closed
    assert received == broker.acked() == list(range(published))


async def test_closing_ends_a_waiting_take(broker: Broker) -> None:
    """``aclose()`` while another task waits in ``take``: it returns, and nothing is acked."""
    broker.publish(2)
    stream = broker.stream()
    task = asyncio.create_task(stream.take(5))
    await asyncio.sleep(1)
    await stream.aclose()
    assert await task == []
    assert [r.outcomes for r in broker.records] == [["release"]] * 2


@pytest.mark.parametrize("second", ["anext", "take"])
async def test_two_tasks_cannot_wait_on_one_stream(broker: Broker, second: str) -> None:
    """The second task is told so at once; the first is not disturbed."""
    async with broker.stream() as stream:
        task = asyncio.create_task(anext(stream))
        await asyncio.sleep(1)
        with pytest.raises(RuntimeError, match="another task is waiting on this stream"):
            await (anext(stream) if second == "anext" else stream.take(1))
        broker.publish(1)
        assert await task == {"n": 0}
