"""Opening a stream, and stopping it before it closes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from abe.backends.message_queue.base import EndOfStream, Message, MessageStream
from tests.unit_test.stream.support import LEASE, breathe, now, several

if TYPE_CHECKING:
    from tests.support.scripted_broker import Broker


async def test_the_group_exists_once_the_stream_is_open(broker: Broker) -> None:
    """``async with`` waits for the connection; the stream then is not closed, though empty."""
    broker.fault("open", delay=5.0)

    started = now()
    async with broker.stream() as stream:
        assert now() - started == 5.0
        assert broker.receivers[0].opened
        assert not stream.closed
    assert stream.closed


async def test_giving_up_while_it_connects_leaves_nothing_open(broker: Broker) -> None:
    """Whoever still refers to the stream need not close it: ``async with`` was not entered."""
    broker.latency = 1.0
    stream = broker.stream()
    opening = asyncio.create_task(stream.__aenter__())
    await asyncio.sleep(0.5)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert stream.closed
    broker.check()


async def test_a_stream_may_be_stopped_before_it_began(broker: Broker) -> None:
    """It then connects to nothing."""
    stream = broker.stream()
    stream.stop()
    assert stream.closed
    assert [message async for message in stream] == []
    async with stream:
        assert await stream.take(1) == []
    await stream.aclose()
    assert broker.calls == []


async def test_stop_takes_no_more_and_lets_messages_in_hand_be_settled(broker: Broker) -> None:
    """``stop`` ends the iteration and releases the buffer; settling goes on until ``aclose``."""
    broker.publish(40)
    stream = broker.stream()
    message = (await several(stream, 20))[-1]
    message.detach()
    await breathe()
    assert len(broker.leased()) > 5
    stream.stop()
    assert stream.closed
    await asyncio.sleep(2 * LEASE)
    assert broker.leased() == [19]
    assert await anext(stream, None) is None
    assert await message.ack()
    await stream.aclose()
    assert broker.acked() == list(range(20))


async def test_stop_during_an_outage_still_delivers_what_is_settled(broker: Broker) -> None:
    """A drain begun while the broker is away does not give up on acks before ``aclose``."""
    broker.publish(2)
    stream = broker.stream()
    message, other = await stream.take(2)
    broker.cut(down=ConnectionRefusedError("down"))
    await message.ack()
    stream.stop()
    await asyncio.sleep(20)
    broker.down = None
    await other.ack()
    await stream.flush()
    await stream.aclose()
    assert broker.acked() == [0, 1]


async def test_stop_ends_the_wait_for_a_first_connection(broker: Broker) -> None:
    """A consumer told to stop before the broker could be reached stops."""
    broker.down = ConnectionRefusedError("down")

    async def consume(stream: MessageStream) -> list[Message]:
        async with stream:
            return [message async for message in stream]

    stream = broker.stream()
    task = asyncio.create_task(consume(stream))
    await asyncio.sleep(60)
    stream.stop()
    await breathe()
    assert await task == []


async def test_a_connection_that_comes_after_stop_is_no_failure(broker: Broker) -> None:
    """A consumer told to stop just before the broker answers stops quietly."""
    broker.latency = 2.0

    async def consume(stream: MessageStream) -> list[Message]:
        async with stream:
            return [message async for message in stream]

    stream = broker.stream()
    task = asyncio.create_task(consume(stream))
    await asyncio.sleep(1)
    stream.stop()
    assert await task == []
    broker.check()


async def test_a_source_that_ends_before_it_begins_ends_the_stream(broker: Broker) -> None:
    """Who waits until the group exists is not left waiting."""
    broker.fault("open", error=EndOfStream())

    async with broker.stream() as stream:
        assert [message async for message in stream] == []


async def test_what_arrives_after_stop_is_given_back(broker: Broker) -> None:
    """A read that ends after ``stop`` neither yields nor keeps its messages."""
    broker.fault("receive", answer=5.0)

    broker.publish(1)
    stream = broker.stream()
    task = asyncio.create_task(anext(stream, None))
    await asyncio.sleep(1)
    started = now()
    stream.stop()
    assert await task is None
    assert now() == started
    await asyncio.sleep(5)
    assert broker.leased() == []
    assert await anext(stream, None) is None
    await stream.aclose()
