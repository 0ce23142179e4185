"""Closing a stream, whatever the broker does meanwhile."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from abe.errors import ConnectionLostError
from tests.unit_test.stream.support import LEASE, RESET, ask_with_timeout, now, warned

if TYPE_CHECKING:
    from tests.support.scripted_broker import Broker


async def test_closing_before_use_connects_to_nothing(broker: Broker) -> None:
    """A stream that was never iterated closes at once, and its iteration is over."""
    stream = broker.stream()
    await stream.flush()
    await stream.aclose()
    await stream.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert await stream.take(3) == []
    assert broker.calls == []


async def test_closing_twice_and_at_once_is_fine(broker: Broker) -> None:
    """Each call returns when the stream is closed."""
    broker.latency = 1.0

    broker.publish(3)
    stream = broker.stream()
    await anext(stream)
    await asyncio.gather(*(stream.aclose() for _ in range(3)))
    assert broker.leased() == []
    calls = len(broker.calls)
    await stream.aclose()
    assert len(broker.calls) == calls


async def test_closing_goes_on_when_the_caller_is_cancelled(broker: Broker) -> None:
    """A timeout around ``aclose`` does not stop it half-way."""
    broker.latency = 1.0

    broker.publish(3)
    stream = broker.stream()
    await anext(stream)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await stream.aclose()
    await asyncio.sleep(10)
    assert broker.leased() == []


async def test_closing_inside_the_loop_body_ends_the_loop(broker: Broker) -> None:
    """The message in hand is released, and the loop ends at its next turn."""
    broker.publish(3)
    stream = broker.stream()
    received = []
    async for message in stream:
        received.append(message["n"])
        if message["n"] == 1:
            await stream.aclose()
    assert received == [0, 1]
    assert broker.acked() == [0]


@pytest.mark.parametrize("opened", [False, True])
async def test_closing_while_the_broker_is_down_is_quick(broker: Broker, opened: bool) -> None:
    """With nothing to be lost, an unreachable broker is no error of ``aclose``."""
    if opened:
        broker.publish(1)
    else:
        broker.down = ConnectionRefusedError("down")
    stream = broker.stream()
    task = asyncio.create_task(stream.take(2))
    await asyncio.sleep(1)
    broker.cut(down=ConnectionRefusedError("down"))
    await asyncio.sleep(60)
    started = now()
    await stream.aclose()
    assert now() - started < 1
    await task


async def test_closing_while_the_broker_is_down_says_that_acks_are_lost(broker: Broker) -> None:
    """Acks that cannot be delivered are an error: those messages will come again."""
    broker.publish(1)
    stream = broker.stream()
    message = await anext(stream)
    broker.cut(down=ConnectionRefusedError("down"))
    await asyncio.sleep(20)
    await message.ack()
    with pytest.raises(ConnectionLostError):
        await stream.aclose()


@pytest.mark.parametrize("stuck", ["hangs", "refuses"])
async def test_closing_does_not_wait_for_ever_for_acks(broker: Broker, stuck: str) -> None:
    """A broker that never answers costs ten seconds and an error, and nothing runs on."""
    if stuck == "hangs":
        broker.fault("settle", delay=10_000)
    else:
        broker.refuse = lambda settlement: TimeoutError("busy")

    broker.publish(2)
    stream = broker.stream()
    await anext(stream)
    await anext(stream)
    started = now()
    with pytest.raises(ConnectionLostError):
        await stream.aclose()
    assert now() - started <= 11
    calls = len(broker.calls)
    await asyncio.sleep(60)
    assert len(broker.calls) == calls


@pytest.mark.parametrize("method", ["receive", "open"])
async def test_a_receiver_that_hangs_is_cancelled_in_the_end(
    broker: Broker, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    """A read that ignores wake(), or a connection that hangs, cannot keep a stream open."""
    broker.cancellable = True
    stream = broker.stream()
    broker.fault(method, delay=10_000)
    with suppress(TimeoutError):
        await ask_with_timeout(stream, 1)
    started = now()
    await stream.aclose()
    assert now() - started == pytest.approx(10)
    assert warned(caplog, "cancel")


async def test_closing_during_a_slow_read_waits_for_it(broker: Broker) -> None:
    """A read in progress is never cancelled, and what it brings is given back."""
    broker.fault("receive", answer=5.0)

    broker.publish(1)
    stream = broker.stream()
    with suppress(TimeoutError):
        await ask_with_timeout(stream, 1)
    assert broker.leased() == [0]
    await stream.aclose()
    assert broker.leased() == []
    assert broker.records[0].outcomes == ["release"]


async def test_closing_while_reconnecting_does_not_start_another_read(broker: Broker) -> None:
    """A read begun after ``aclose`` would have nobody to wake it."""
    broker.publish(2)
    stream = broker.stream(prefetch=1)
    message = await anext(stream)
    broker.fault("open", delay=3.0)
    broker.fault("settle", error=RESET)
    await message.ack()
    task = asyncio.create_task(anext(stream, None))
    await asyncio.sleep(1)
    started = now()
    await stream.aclose()
    assert now() - started < 5
    assert await task is None
    assert broker.acked() == [0]


async def test_the_waiter_sees_the_end_even_if_acks_are_lost(broker: Broker) -> None:
    """Closing while the broker is down: the error is for who closes, the end for who waits."""
    broker.publish(1)
    stream = broker.stream()
    await anext(stream)
    broker.cut(down=ConnectionRefusedError("down"))
    task = asyncio.create_task(anext(stream, None))
    await asyncio.sleep(0)
    with pytest.raises(ConnectionLostError):
        await stream.aclose()
    assert await task is None


async def test_an_extension_is_not_sent_on_a_connection_replaced_meanwhile(broker: Broker) -> None:
    """The tick that releases a buffer, and so notices an outage, also extends leases."""
    broker.publish(100)
    async with broker.stream() as stream:
        (await anext(stream)).detach()
        for _ in range(14):
            await anext(stream)
            await asyncio.sleep(0.5)
        await asyncio.sleep(5)
        assert len(broker.leased()) > 2
        broker.cut()
        await asyncio.sleep(2 * LEASE)
        assert broker.leased() == [0, 14]
        assert len(broker.receivers) == 2


@pytest.mark.parametrize("outage", [False, True])
async def test_a_receiver_that_hangs_while_closing_is_given_up(
    broker: Broker, outage: bool
) -> None:
    """Neither closing nor reconnecting waits for ever for a connection to end."""
    broker.fault("aclose", delay=10_000)

    broker.publish(1)
    stream = broker.stream(prefetch=1)
    await anext(stream)
    started = now()
    if outage:
        broker.cut()
        broker.publish(1)
        assert await anext(stream) == {"n": 1}
        assert now() - started < 6
    started = now()
    await stream.aclose()
    assert now() - started < 11


async def test_closing_does_not_wait_for_ever_for_an_extension(broker: Broker) -> None:
    """An extension that hangs does not keep a stream from closing."""
    broker.fault("extend", delay=10_000)

    broker.publish(1)
    stream = broker.stream()
    await anext(stream)
    await asyncio.sleep(LEASE)
    started = now()
    await stream.aclose()
    assert now() - started <= 21


async def test_a_receiver_that_fails_to_close_does_not_keep_the_stream_open(broker: Broker) -> None:
    """Its error reaches the caller; the engine is gone all the same."""
    broker.publish(1)
    stream = broker.stream()
    await anext(stream)
    broker.fault("aclose", error=ValueError("cannot close"))
    with pytest.raises(ValueError, match="cannot close"):
        await stream.aclose()
    await stream.aclose()
