"""Asking for the next message acknowledges the one before; `unread` takes that back."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from abe.backends.message_queue.base import Message
from abe.errors import AbeError, ConfigurationError, UnsupportedError
from tests.unit_test.stream.support import LEASE, now

if TYPE_CHECKING:
    from tests.support.scripted_broker import Broker


async def test_processing_does_not_ack_however_long_it_takes(broker: Broker) -> None:
    """A message is not acked before its processing ends."""
    broker.publish(2)
    async with broker.stream() as stream:
        await anext(stream)
        await asyncio.sleep(10 * LEASE)
        assert broker.acked() == []
        assert broker.leased() == [0]


@pytest.mark.parametrize("outcome", ["ack", "nack", "release", "reject"])
async def test_an_explicit_settlement_is_not_followed_by_an_ack(
    broker: Broker, outcome: str
) -> None:
    """A message that the caller settled is left alone when the next is asked for."""
    broker.publish(2)
    async with broker.stream() as stream:
        first = await anext(stream)
        settle = {"nack": lambda: first.nack(60)}.get(outcome, getattr(first, outcome))
        assert await settle()
        assert first.outcome == outcome
        await anext(stream)
        await stream.flush()
        assert broker.records[0].outcomes == [outcome]


async def test_the_first_settlement_wins(broker: Broker) -> None:
    """Settling is idempotent; a later, different settlement changes nothing and returns False."""
    broker.publish(1)
    async with broker.stream() as stream:
        message = await anext(stream)
        assert await message.nack(delay=100)
        assert await message.nack()
        assert not await message.ack()
        assert not await message.release()
        assert not await message.reject("no")
    assert broker.records[0].outcomes == ["nack"]
    assert broker.records[0].due == now() + 100
    assert not await message.ack()


@pytest.mark.parametrize(
    "capabilities", [{"release": False, "reject": False, "redelivery": "none", "nack_delay": 0.0}]
)
async def test_what_the_backend_cannot_do_is_refused_and_settles_nothing(
    broker: Broker,
) -> None:
    """An unsupported settlement raises, and the message can still be settled otherwise."""
    broker.publish(1)
    async with broker.stream() as stream:
        message = await anext(stream)
        for refused in (message.release(), message.reject(), message.nack()):
            with pytest.raises(UnsupportedError):
                await refused
        assert await message.ack()
    assert broker.acked() == [0]


@pytest.mark.parametrize(("delay", "error"), [(61, UnsupportedError), (-1, ConfigurationError)])
@pytest.mark.parametrize("capabilities", [{"nack_delay": 60.0}])
async def test_a_nack_delay_out_of_range_is_refused(
    broker: Broker, delay: float, error: type[AbeError]
) -> None:
    """A delay that the broker cannot keep is refused before anything is sent."""
    broker.publish(1)
    async with broker.stream() as stream:
        message = await anext(stream)
        with pytest.raises(error):
            await message.nack(delay)
        assert message.outcome is None


async def test_unread_refuses_what_is_not_in_hand(broker: Broker) -> None:
    """Settled messages, earlier ones, others' and those of a closing stream cannot be unread."""
    broker.publish(4)
    async with broker.stream() as stream:
        first = await anext(stream)
        second = await anext(stream)
        assert not stream.unread(first)
        await second.ack()
        assert not stream.unread(second)
        assert not stream.unread(Message({}))
        third = await anext(stream)
        async with broker.stream() as other:
            assert not stream.unread(await anext(other))
        closing = asyncio.create_task(stream.aclose())
        await asyncio.sleep(0)
        assert not stream.unread(third)
        await closing


async def test_an_unread_detached_message_belongs_to_the_stream_again(broker: Broker) -> None:
    """A message detached in vain is released with the others."""
    broker.publish(1)
    async with broker.stream() as stream:
        message = await anext(stream)
        message.detach()
        assert stream.unread(message)
    assert broker.records[0].outcomes == ["release"]


async def test_results_of_tasks_that_nobody_picks_up_are_not_lost(broker: Broker) -> None:
    """Who runs ``__anext__`` in a task and unreads what it does not pick up loses nothing."""
    handled: list[int] = []
    async with broker.stream() as stream:
        for turn in range(150):
            broker.publish(1)
            task = asyncio.create_task(anext(stream))
            for _ in range(turn % 9):
                await asyncio.sleep(0)
            if task.done() and turn % 2:
                handled.append(task.result()["n"])
                continue
            task.cancel()
            with suppress(asyncio.CancelledError):
                assert stream.unread(await task)
        while messages := await stream.take(50, 1):
            handled.extend(message["n"] for message in messages)
    assert handled == list(range(150))
    assert broker.acked() == handled
