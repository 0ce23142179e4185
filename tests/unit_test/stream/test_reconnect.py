"""Lost connections are replaced, with back-off, and logged once."""

from __future__ import annotations

import asyncio
import itertools
import logging
from contextlib import suppress
from typing import Any

import pytest

from abe.backends.message_queue.base import MessageStream, Outcome, Subscription
from tests.support.scripted_broker import Broker
from tests.unit_test.stream.support import LEASE, RESET, ask_with_timeout, now, several, warned


async def test_a_lost_connection_is_replaced(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """A broken read costs a new receiver and two lines in the log; the caller notices nothing."""
    caplog.set_level(logging.INFO)
    async with broker.stream() as stream:
        task = asyncio.create_task(anext(stream))
        await asyncio.sleep(1)
        broker.cut()
        await asyncio.sleep(1)
        broker.publish(1)
        assert await task == {"n": 0}
    assert len(broker.receivers) == 2
    levels = [r.levelname for r in caplog.records if r.name.startswith("abe")]
    assert levels == ["WARNING", "INFO"]


@pytest.mark.parametrize("failing", ["open", "receive"])
async def test_reconnection_backs_off_and_logs_once(
    broker: Broker, caplog: pytest.LogCaptureFixture, failing: str
) -> None:
    """A long outage is tried with growing, jittered pauses, whichever call fails."""
    caplog.set_level(logging.INFO)
    async with broker.stream() as stream:
        task = asyncio.create_task(anext(stream))
        await asyncio.sleep(1)
        calls = len(broker.called("open"))
        if failing == "open":
            broker.cut(down=ConnectionRefusedError("down"))
        else:
            broker.fault("receive", times=1000, error=RESET)
            broker.cut()
        await asyncio.sleep(600)
        times = [call.time for call in broker.called("open")][calls:]
        broker.down = None
        broker.faults["receive"].clear()
        broker.publish(1)
        assert await task == {"n": 0}
        gaps = [b - a for a, b in itertools.pairwise(times)]
        assert gaps[0] < 0.25
        assert 5.0 <= max(gaps) <= 10.0
        assert 60 <= len(times) <= 140
        assert len(set(gaps)) == len(gaps)
    levels = [r.levelname for r in caplog.records if r.name.startswith("abe")]
    assert levels == ["WARNING", "INFO"]


async def test_each_outage_is_logged(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """The second outage is as loud as the first, and its first pause as short."""
    async with broker.stream() as stream:
        for n in range(3):
            task = asyncio.create_task(anext(stream))
            await asyncio.sleep(60)
            broker.cut()
            broker.publish(1)
            started = now()
            assert await task == {"n": n}
            assert now() - started < 0.2
    assert len(warned(caplog, "cannot be reached")) == 3


@pytest.mark.parametrize("method", ["open", "receive", "settle", "extend", "aclose"])
async def test_a_call_that_the_driver_cancels_is_a_lost_connection(
    broker: Broker, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    """Drivers cancel what waits on a connection that is gone; the stream must not end of it."""
    broker.cancellable = True
    broker.fault(method, error=asyncio.CancelledError())
    async with broker.stream() as stream:
        broker.publish(1)
        await asyncio.sleep(1)
        await anext(stream)
        await asyncio.sleep(LEASE)
        if method == "aclose":
            broker.cut()
        broker.publish(1)
        assert await anext(stream) == {"n": 1}
        await stream.flush()
        assert broker.acked() == [0]
    text = "connection reset" if method == "aclose" else "the driver cancelled the call"
    assert len(warned(caplog, text)) == 1
    assert broker.violations == []


@pytest.mark.parametrize("method", ["receive", "settle", "extend"])
async def test_an_outage_is_over_once_any_call_has_succeeded(
    broker: Broker, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    """Also while the read of the new connection still waits."""
    caplog.set_level(logging.INFO)

    async with broker.stream() as stream:
        broker.fault(method, error=RESET)
        waiting = asyncio.create_task(anext(stream))
        await asyncio.sleep(1.0)
        broker.publish(1)
        message = await waiting
        if method == "settle":
            await message.ack()
        if method != "receive":
            await asyncio.sleep(15.0)
        assert [r.getMessage() for r in caplog.records if r.levelno == logging.INFO] == [
            "reconnected to backend scripted"
        ]


async def test_a_broker_that_is_down_at_first_is_waited_for(broker: Broker) -> None:
    """An unreachable broker is not an error of ``consume``."""
    broker.down = ConnectionRefusedError("down")
    stream = broker.stream()
    task = asyncio.create_task(anext(stream))
    await asyncio.sleep(60)
    assert not task.done()
    broker.down = None
    broker.publish(1)
    assert await task == {"n": 0}
    await stream.aclose()


async def test_a_factory_that_cannot_connect_is_retried(broker: Broker) -> None:
    """A receiver that connects when it is made fails like one that connects when opened."""
    failures = iter([ConnectionRefusedError("down"), ConnectionRefusedError("down"), None])

    def factory() -> Any:
        if (error := next(failures)) is not None:
            raise error
        return broker.receiver()

    broker.publish(1)
    can = broker.capabilities
    async with MessageStream(Subscription(factory, capabilities=can, backend="s")) as stream:
        assert await anext(stream) == {"n": 0}


@pytest.mark.parametrize("bound", [False, True])
async def test_the_buffer_is_dropped_with_the_connection(bound: bool) -> None:
    """What was buffered on a lost connection comes again, once, to whoever asks."""
    broker = Broker(bound=bound)
    broker.publish(60)
    async with broker.stream() as stream:
        received = [(await anext(stream))["n"] for _ in range(30)]
        await stream.flush()
        held = len(broker.leased())
        assert held > 5
        broker.cut()
        await asyncio.sleep(1)
        with suppress(TimeoutError):
            while True:
                received.append((await ask_with_timeout(stream, 3 * LEASE))["n"])
        assert sorted(set(received)) == list(range(60))
        assert len(received) <= 60 + (held if bound else 0)
    assert broker.acked() == list(range(60))
    broker.check()


@pytest.mark.parametrize("capabilities", [{"bound": True}])
async def test_a_message_in_hand_is_lost_with_a_connection_that_owned_it(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Acking it warns; the message is delivered again and counts."""
    broker.publish(1)
    async with broker.stream() as stream:
        first = await anext(stream)
        broker.cut()
        again = await anext(stream)
        assert again == first
        assert again.attempt == 2
        await stream.flush()
        assert first.outcome is Outcome.LOST
        await again.ack()
    assert broker.acked() == [0]
    assert len(warned(caplog, "lease lost")) == 1


async def test_an_outage_noticed_by_settle_ends_the_read_of_the_old_connection(
    broker: Broker,
) -> None:
    """A read that waits on a replaced connection is ended, and the next is on the new one."""
    broker.publish(1)
    async with broker.stream() as stream:
        message = await anext(stream)
        task = asyncio.create_task(anext(stream))
        await asyncio.sleep(1)
        broker.publish(1)
        second = await task
        broker.fault("settle", error=RESET)
        task = asyncio.create_task(anext(stream))
        await asyncio.sleep(1)
        assert len(broker.receivers) == 2
        broker.publish(1)
        assert await task == {"n": 2}
        assert message.outcome is second.outcome is Outcome.ACK


@pytest.mark.parametrize("bound", [False, True])
async def test_messages_read_on_a_replaced_connection_are_given_back(bound: bool) -> None:
    """A read that ends after its connection was replaced strands and yields nothing stale."""
    broker = Broker(bound=bound)
    broker.publish(2)
    async with broker.stream(prefetch=1) as stream:
        await anext(stream)
        broker.fault("receive", answer=3.0)
        broker.fault("settle", error=RESET)
        started = now()
        message = await anext(stream)
        assert now() - started < LEASE / 2
        assert len(broker.receivers) == 2
        lease = broker.records[message["n"]].lease
        assert lease is not None
        assert lease.message is message
    broker.check()


@pytest.mark.parametrize("capabilities", [{"bound": True}])
async def test_what_was_buffered_on_a_lost_connection_is_not_handed_over(
    broker: Broker,
) -> None:
    """Once the outage is noticed, messages that belong to nobody are not yielded."""
    broker.publish(25)
    async with broker.stream() as stream:
        await several(stream, 20)
        await stream.flush()
        assert len(broker.leased()) == 6
        broker.cut()
        await asyncio.sleep(1)
        for message in await several(stream, 6):
            lease = broker.records[message["n"]].lease
            assert lease is None or lease.message is message
            assert message.attempt == 2
    assert len([r for r in broker.records if r.deliveries > 1]) == 6
