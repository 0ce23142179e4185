"""Prefetch follows the pace of the caller, and suspects are held alone."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from abe.backends.message_queue.base.subscription.prefetch import MAX_BYTES
from abe.errors import ConfigurationError
from tests.support.scripted_broker import Broker
from tests.unit_test.stream.support import LEASE, ask_with_timeout, breathe, several

if TYPE_CHECKING:
    from tests.support.virtual_loop import VirtualRun


QUARTER = LEASE / 4


async def test_the_first_read_asks_for_one_message(broker: Broker) -> None:
    """Nothing is received ahead before the caller has shown its speed."""
    broker.publish(100)
    async with broker.stream() as stream:
        await anext(stream)
        await asyncio.sleep(1)
        assert [call.detail[0] for call in broker.called("receive")] == [1]
        assert broker.leased() == [0]


def test_prefetch_grows_while_the_caller_is_fast(run: VirtualRun, broker: Broker) -> None:
    """Thousands of fast messages need few reads, none of them too large."""

    async def main() -> None:
        broker.publish(5000)
        async with broker.stream() as stream:
            for _ in range(5000):
                await anext(stream)
                await asyncio.sleep(0.0001)

    run(main(), debug=False)
    asked = [call.detail[0] for call in broker.called("receive")]
    assert asked[0] == 1
    assert 256 <= max(asked) <= 512
    assert len(asked) < 60


async def test_never_more_than_a_quarter_lease_of_work_is_held(broker: Broker) -> None:
    """However many messages wait, a caller of one per second holds a quarter lease of them."""
    held: list[int] = []
    broker.publish(100)
    async with broker.stream() as stream:
        for _ in range(100):
            await anext(stream)
            held.append(len(broker.leased()))
            await asyncio.sleep(1)
    assert max(held) <= QUARTER + 2
    assert max(held) >= QUARTER - 2
    assert len(broker.called("receive")) < 60


async def test_a_quick_caller_holds_a_quarter_lease_of_work_too(broker: Broker) -> None:
    """Also messages that are handed over without further ado count for its speed."""
    held: list[int] = []
    broker.publish(1000)
    async with broker.stream() as stream:
        for _ in range(1000):
            await anext(stream)
            held.append(len(stream.subscription.buffer))
            await asyncio.sleep(0.02)
    assert QUARTER / 0.02 * 0.9 < max(held) <= QUARTER / 0.02


def test_a_caller_that_slows_down_gives_back_what_it_cannot_do(
    run: VirtualRun, broker: Broker
) -> None:
    """A large buffer shrinks within about a quarter lease of the caller's slowing down."""
    held: list[int] = []

    async def main() -> None:
        broker.publish(3000)
        async with broker.stream() as stream:
            for _ in range(1000):
                await anext(stream)
            assert len(broker.leased()) > 200
            for _ in range(30):
                await anext(stream)
                await asyncio.sleep(1)
                held.append(len(broker.leased()))

    run(main(), debug=False)
    assert max(held[10:]) <= QUARTER + 2
    assert {r.failed for r in broker.records} == {0}


async def test_what_a_cancelled_take_put_back_is_shed_like_other_buffered_messages(
    broker: Broker,
) -> None:
    """A put-back batch does not escape the limit of a quarter lease."""
    broker.publish(200)
    async with broker.stream() as stream:
        task = asyncio.create_task(stream.take(201))
        await asyncio.sleep(1)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        for _ in range(12):
            await anext(stream)
            await asyncio.sleep(1.5)
        assert len(broker.leased()) <= QUARTER + 2


async def test_buffered_messages_not_asked_for_are_released_after_a_quarter_lease(
    broker: Broker,
) -> None:
    """A caller that stops asking keeps only the message in hand; the rest goes to others."""
    broker.publish(50)
    async with broker.stream() as stream:
        for _ in range(20):
            await anext(stream)
        await breathe()
        assert len(broker.leased()) > 5
        await asyncio.sleep(QUARTER + LEASE / 16)
        assert broker.leased() == [19]
        await asyncio.sleep(10 * LEASE)
        assert broker.leased() == [19]
        assert [(await anext(stream))["n"] for _ in range(20)] == list(range(20, 40))
        assert {r.failed for r in broker.records} == {0}


async def test_a_read_in_progress_does_not_take_released_messages_back(broker: Broker) -> None:
    """What is released for others is not taken again by the same stream's waiting read."""
    broker.publish(24)
    async with broker.stream() as stream:
        await several(stream, 20)
        await stream.flush()
        assert broker.leased() == [19, 20, 21, 22, 23]
        await asyncio.sleep(LEASE)
        assert broker.leased() == [19]
        assert {r.deliveries for r in broker.records} == {1}


async def test_a_message_arriving_after_a_timed_out_wait_is_released_if_not_asked_for(
    broker: Broker,
) -> None:
    """The read that outlived its caller does not keep a message for ever."""
    async with broker.stream() as stream:
        with pytest.raises(TimeoutError):
            await ask_with_timeout(stream, 1.0)
        broker.publish(1)
        await breathe()
        assert broker.leased() == [0]
        await asyncio.sleep(QUARTER + LEASE / 16)
        assert broker.leased() == []
        assert await anext(stream) == {"n": 0}
        assert broker.records[0].outcomes == ["release"]


async def test_prefetch_of_one_takes_nothing_beside_the_message_in_hand(broker: Broker) -> None:
    """With ``prefetch=1`` the next message is received when the caller asks for it."""
    broker.publish(50)
    async with broker.stream(prefetch=1) as stream:
        for n in range(40):
            await anext(stream)
            await breathe()
            await stream.flush()
            assert broker.leased() == [n]
        assert {call.detail[0] for call in broker.called("receive")} == {1}


def test_prefetch_bounds_the_buffer(run: VirtualRun, broker: Broker) -> None:
    """An explicit ``prefetch`` is the most that is received ahead."""
    held: list[int] = []

    async def main() -> None:
        broker.publish(300)
        async with broker.stream(prefetch=10) as stream:
            for _ in range(200):
                await anext(stream)
                await stream.flush()
                await breathe()
                held.append(len(broker.leased()))

    run(main(), debug=False)
    assert max(held) == 11


@pytest.mark.parametrize("capabilities", [{"attempts": "upper"}])
async def test_nothing_buffered_is_shed_where_releases_count_as_attempts(broker: Broker) -> None:
    """It is received ahead all the same, handed over in its time, and released on close only."""
    broker.publish(50)
    async with broker.stream() as stream:
        for _ in range(20):
            await anext(stream)
        await breathe()
        assert len(broker.leased()) > 5
        await asyncio.sleep(10 * LEASE)
        assert broker.settled("release") == []
        for _ in range(10):
            assert (await anext(stream)).attempt == 1
    assert broker.settled("release")


@pytest.mark.parametrize("capabilities", [{"attempts": "upper"}])
async def test_a_suspect_is_alone_in_hand_where_releases_count_as_attempts(broker: Broker) -> None:
    broker.publish(30)
    async with broker.stream() as stream:
        stream.isolate_suspects()
        for _ in range(10):
            await anext(stream)
        for record in broker.publish(1):
            record.failed = 2
        broker.publish(5)
        async for message in stream:
            if message.attempt == 3:
                assert await stream.receive(timeout=LEASE) == []
            if message["n"] == 35:
                break
        assert broker.settled("release") == []


async def test_prefetch_is_bounded_in_bytes_too(broker: Broker) -> None:
    """Large messages among small ones make the next reads short."""
    broker.publish(400)
    large = {"text": "x" * 100_000}
    async with broker.stream() as stream:
        for _ in range(300):
            await anext(stream)
        for record in broker.publish(600)[::2]:
            record.payload.update(large)
        for _ in range(400):
            await anext(stream)
        await breathe()
        await stream.flush()
        held = [broker.records[n].payload for n in broker.leased()]
        assert sum(len(payload.get("text", "")) for payload in held) < 2 * MAX_BYTES


def test_a_prefetch_below_one_is_refused(broker: Broker) -> None:
    """``prefetch=0`` is a mistake, and the half-made stream makes no noise when it goes."""
    with pytest.raises(ConfigurationError, match="prefetch is 0"):
        broker.stream(prefetch=0)
    gc.collect()


@pytest.mark.parametrize("release", [True, False])
async def test_suspects_are_held_alone(release: bool) -> None:
    """From attempt 3 on nothing is held beside a message, where the broker can take it back."""
    broker = Broker(release=release)
    alone: list[bool] = []
    broker.publish(100)
    async with broker.stream() as stream:
        for _ in range(20):
            await anext(stream)
        for record in broker.publish(5):
            record.failed = 2
        async for message in stream:
            await stream.flush()
            await breathe()
            if message.attempt == 3:
                alone.append(broker.leased() == [message["n"]])
            if message["n"] == 104:
                break
    assert len(alone) == 5
    assert all(alone) or not release
    broker.check()


def test_prefetch_grows_again_after_a_suspect(run: VirtualRun, broker: Broker) -> None:
    """One suspect does not slow the stream down for good."""

    async def main() -> None:
        broker.publish(1)[0].failed = 5
        broker.publish(500)
        async with broker.stream() as stream:
            for _ in range(501):
                await anext(stream)

    run(main(), debug=False)
    assert len(broker.called("receive")) < 30
