"""How long a message may be held: as long as its stream extends the lease."""

from __future__ import annotations

import asyncio

import pytest

from abe.backends.message_queue.base import Outcome
from tests.support.scripted_broker import Broker


@pytest.mark.parametrize("lease", [0.5, 4.0, 60.0])
async def test_a_lease_of_any_length_is_extended_in_time_and_not_too_often(lease: float) -> None:
    broker = Broker(lease=lease)
    broker.publish(1)
    async with broker.stream() as stream:
        message = await anext(stream)
        await asyncio.sleep(10 * lease)
        assert broker.leased() == [0]
        assert await message.ack()
    broker.check()
    assert broker.records[0].outcomes == ["ack"]
    # When at most 60 % are left, at one of the 16 ticks.
    assert 10 / 0.5 <= len(broker.called("extend")) <= 10 / 0.4


async def test_what_is_settled_while_the_broker_says_that_it_is_lost_is_settled(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether it was in time is for the answer to that settlement to say."""
    broker.fault("extend", answer=1.0)
    broker.publish(1)
    async with broker.stream() as stream:
        message = await anext(stream)
        broker.expire(*broker.records)
        await asyncio.sleep(13.5)
        assert len(broker.called("extend")) == 1
        assert await message.ack()
        await asyncio.sleep(2)
        assert message.outcome is Outcome.LOST
    texts = [r.getMessage() for r in caplog.records if "lease lost" in r.getMessage()]
    assert len(texts) == 1


async def test_a_pause_does_not_make_the_caller_look_idle(broker: Broker) -> None:
    """What arrives after it is not given back because nobody asked for anything before."""
    tick = 30.0 / 16

    broker.publish(200)
    async with broker.stream() as stream:
        for _ in range(200):
            await anext(stream)
            await asyncio.sleep(0.1)
        await asyncio.sleep(5 * tick)
        task = asyncio.create_task(stream.__anext__())
        await asyncio.sleep(60)
        broker.publish(40)
        await task
        assert len(broker.leased()) > 10
        await asyncio.sleep(1.5 * tick)
        assert broker.settled("release") == []


async def test_slow_arrivals_are_no_sign_of_a_slow_caller(broker: Broker) -> None:
    """A caller that waits most of the time, and is fast otherwise, gets more and more ahead."""
    async with broker.stream() as stream:
        for _ in range(12):
            task = asyncio.create_task(stream.__anext__())
            await asyncio.sleep(20)
            broker.publish(4)
            await task
            for _ in range(3):
                await anext(stream)
    assert max(call.detail[0] for call in broker.called("receive")) > 16
