"""Taking several messages at a time."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.unit_test.stream.support import breathe, now

if TYPE_CHECKING:
    from tests.support.scripted_broker import Broker


async def test_take_is_acked_by_the_next_take(broker: Broker) -> None:
    """``take`` hands over messages in order, and acks them when called again."""
    broker.publish(6)
    async with broker.stream() as stream:
        assert [m["n"] for m in await stream.take(3)] == [0, 1, 2]
        await stream.flush()
        assert broker.acked() == []
        assert [m["n"] for m in await stream.take(3)] == [3, 4, 5]
        await stream.flush()
        assert broker.acked() == [0, 1, 2]


async def test_a_message_iterated_after_a_take_is_not_acked_by_a_clean_exit(broker: Broker) -> None:
    """Only ``take`` acks on a clean exit: a loop may have been left by ``break``."""
    broker.publish(3)
    async with broker.stream() as stream:
        await stream.take(2)
        async for _ in stream:
            break
    assert broker.acked() == [0, 1]
    assert broker.unsettled() == [2]


async def test_take_returns_what_has_arrived_by_its_timeout(broker: Broker) -> None:
    """The timeout of ``take`` is a total, and what has arrived by then is returned."""
    broker.publish(2)
    async with broker.stream() as stream:
        started = now()
        assert len(await stream.take(5, timeout=3.0)) == 2
        assert now() == pytest.approx(started + 3)
        assert await stream.take(5, timeout=3.0) == []
        assert now() == pytest.approx(started + 6)
    assert broker.acked() == [0, 1]


async def test_polling_with_a_timeout_of_zero_finds_messages(broker: Broker) -> None:
    """``take(timeout=0)`` asks the broker too, so a polling caller is not left empty for ever."""
    broker.latency = 0.01
    async with broker.stream() as stream:
        assert await stream.take(3, timeout=0) == []
        broker.publish(3)
        taken = []
        for _ in range(10):
            taken += await stream.take(3, timeout=0)
            await asyncio.sleep(0.05)
        assert [m["n"] for m in taken] == [0, 1, 2]


async def test_suspects_put_back_by_take_are_still_handed_out_singly(broker: Broker) -> None:
    """A cancelled ``take`` does not forget that a message may be what kills the process."""
    for record in broker.publish(3):
        record.failed = 2
    async with broker.stream() as stream:
        task = asyncio.create_task(stream.take(5))
        await asyncio.sleep(1)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert (await anext(stream)).attempt == 3
        await breathe()
        assert broker.leased() == [0]


async def test_take_ends_early_when_it_has_become_quiet(broker: Broker) -> None:
    """With ``quiet``, no further message for so long ends ``take``, but only after a first one."""
    async with broker.stream() as stream:
        task = asyncio.create_task(stream.take(10, timeout=100.0, quiet=2.0))
        for pause in (10.0, 1.5, 1.5, 5.0):
            await asyncio.sleep(pause)
            broker.publish(1)
        assert [message["n"] for message in await task] == [0, 1, 2]
        started = now()
        assert len(await stream.take(10, timeout=1.0, quiet=2.0)) == 1
        assert now() - started == pytest.approx(1.0)


async def test_take_of_nothing_returns_nothing(broker: Broker) -> None:
    """``take(0)`` acks what was handed over and waits for nothing."""
    broker.publish(1)
    async with broker.stream() as stream:
        await anext(stream)
        assert await stream.take(0) == []
        await stream.flush()
        assert broker.acked() == [0]


async def test_take_takes_one_unless_told_otherwise(broker: Broker) -> None:
    broker.publish(2)
    async with broker.stream() as stream:
        assert await stream.take() == [{"n": 0}]
        assert await stream.take() == [{"n": 1}]


async def test_take_asks_for_what_is_still_missing(broker: Broker) -> None:
    broker.publish(1)
    async with broker.stream() as stream:
        task = asyncio.create_task(stream.take(3))
        for count in (1, 5):
            await asyncio.sleep(1)
            broker.publish(count)
        assert [m["n"] for m in await task] == [0, 1, 2]
    assert [call.detail[0] for call in broker.called("receive")][:3] == [3, 2, 1]
