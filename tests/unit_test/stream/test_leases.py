"""Leases are extended while a message is held, and their loss is reported."""

from __future__ import annotations

import asyncio

import pytest

from abe.backends.message_queue.base import Message, Outcome
from tests.support.scripted_broker import Broker
from tests.unit_test.stream.support import (
    LEASE,
    RESET,
    ask_with_timeout,
    breathe,
    several,
    warned,
)


async def test_the_lease_of_a_message_being_processed_is_extended(broker: Broker) -> None:
    """A message may take far longer than its lease; nobody else gets it meanwhile."""
    broker.publish(1)
    async with broker.stream() as stream, broker.stream() as other:
        message = await anext(stream)
        with pytest.raises(TimeoutError):
            await ask_with_timeout(other, 20 * LEASE)
        assert await message.ack()
    assert broker.records[0].outcomes == ["ack"]
    assert 20 <= len(broker.called("extend")) <= 60


@pytest.mark.parametrize("capabilities", [{"release": False}])
async def test_leases_of_buffered_messages_are_extended_where_they_cannot_be_released(
    broker: Broker,
) -> None:
    """Without release, what is buffered is kept until it is asked for."""
    broker.publish(40)
    async with broker.stream() as stream:
        for _ in range(20):
            await anext(stream)
        await stream.flush()
        held = broker.leased()
        assert len(held) > 5
        await asyncio.sleep(5 * LEASE)
        assert broker.leased() == held
        for _ in range(20):
            assert (await anext(stream)).attempt == 1


async def test_a_lease_is_extended_up_to_max_hold_and_not_beyond(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that hangs loses its message after ``max_hold``, with one warning."""
    broker.publish(1)
    async with broker.stream(max_hold=100.0) as stream:
        message = await anext(stream)
        await asyncio.sleep(100)
        assert broker.leased() == [0]
        await asyncio.sleep(LEASE + 1)
        assert broker.leased() == []
        await asyncio.sleep(10 * LEASE)
        await message.ack()
        await stream.flush()
    assert len(warned(caplog, "held for 100 s")) == 1
    assert len(warned(caplog, "lease lost")) == 1
    assert max(call.time for call in broker.called("extend")) <= 1000 + 101


async def test_a_lease_lost_while_processing_warns_at_once(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """A lost lease is noticed by the next extension; acking the message returns False."""
    broker.publish(1)
    async with broker.stream() as stream:
        message = await anext(stream)
        broker.expire(broker.records[0])
        await asyncio.sleep(LEASE)
        assert message.outcome is Outcome.LOST
        assert not await message.ack()
    assert broker.records[0].outcomes == ["lapsed"]
    assert len(warned(caplog, "lease lost")) == 1


@pytest.mark.parametrize("capabilities", [{"release": False}])
async def test_a_lease_lost_while_buffered_is_not_handed_over(broker: Broker) -> None:
    """A message that belongs to somebody else by now is not yielded from the buffer."""
    broker.publish(3)
    async with broker.stream() as stream:
        first = await stream.take(3)
        stream.unread(first[2])
        broker.expire(broker.records[2])
        await asyncio.sleep(LEASE)
        assert first[2].outcome is Outcome.LOST
        assert (await anext(stream)).attempt == 2


@pytest.mark.parametrize("method", ["__anext__", "receive", "take"])
async def test_what_lapsed_while_the_loop_stood_still_is_not_handed_over(
    broker: Broker, method: str
) -> None:
    """The clock tells, before the loop has had a turn to ask the broker."""
    broker.publish(60)
    async with broker.stream() as stream:
        await several(stream, 20)
        await breathe()
        lapsed = list(stream.subscription.buffer)
        assert len(lapsed) > 4
        for delivery in lapsed:
            delivery.deadline = -1.0
            broker.expire(broker.records[delivery.message["n"]])
        given = await getattr(stream, method)()
        message = given if isinstance(given, Message) else given[0]
        assert all(message is not delivery.message for delivery in lapsed)
        assert {delivery.message.outcome for delivery in lapsed} == {Outcome.LOST}


async def test_the_lease_of_a_finished_message_is_not_extended(broker: Broker) -> None:
    """What the caller asked beyond is forgotten, and not only because the broker says so."""
    broker.publish(3)
    async with broker.stream() as stream:
        await several(stream, 3)
        await asyncio.sleep(LEASE)
        assert broker.extended() == [2]
        assert len(stream.subscription._ledger.held) == 1


async def test_watching_over_leases_does_not_disturb_a_read(broker: Broker) -> None:
    """A read waits as long as it may while an earlier message is held, instead of polling."""
    broker.publish(1)
    async with broker.stream() as stream:
        message = await anext(stream)
        message.detach()
        asked = len(broker.called("receive"))
        assert await stream.take(1, timeout=LEASE / 2) == []
        assert len(broker.called("receive")) == asked + 1
        await message.ack()


async def test_extension_stops_once_everything_is_settled(broker: Broker) -> None:
    """An idle stream sends nothing and leaves no timer but that of its read."""
    broker.publish(1)
    async with broker.stream() as stream:
        message = await anext(stream)
        await message.ack()
        await asyncio.sleep(LEASE)
        calls = len(broker.calls)
        await asyncio.sleep(10 * LEASE)
        assert len(broker.calls) == calls
        broker.publish(1)
        await anext(stream)
        await asyncio.sleep(5 * LEASE)
        assert broker.leased() == [1]


async def test_a_failing_extension_reconnects_and_goes_on(broker: Broker) -> None:
    """Connection errors while extending cost a reconnection, not the message."""
    broker.publish(1)
    broker.fault("extend", times=2, error=RESET)
    async with broker.stream() as stream:
        message = await anext(stream)
        await asyncio.sleep(5 * LEASE)
        assert broker.leased() == [0]
        assert await message.ack()
    assert broker.acked() == [0]
    assert len(broker.receivers) == 3


async def test_an_extension_that_fails_for_good_surfaces(broker: Broker) -> None:
    """An error of ``extend`` that no new connection cures ends the stream."""
    broker.fault("extend", error=ValueError("no such group"))

    broker.publish(2)
    stream = broker.stream()
    await anext(stream)
    await asyncio.sleep(LEASE)
    with pytest.raises(ValueError, match="no such group"):
        await anext(stream)
    await stream.aclose()


async def test_buffered_messages_are_released_on_close(broker: Broker) -> None:
    """Closing gives back what is buffered and in hand, uncounted and in order."""
    broker.publish(60)
    async with broker.stream() as stream:
        for _ in range(30):
            await anext(stream)
        await stream.flush()
        held = broker.leased()
        assert len(held) > 5
    assert broker.leased() == []
    assert broker.settled("release") == held
    assert broker.records[29].outcomes == ["release"]
    assert {r.failed for r in broker.records} == {0}


@pytest.mark.parametrize("outcome", ["nack", "release"])
@pytest.mark.parametrize("capabilities", [{"ordering": "key"}])
async def test_with_key_ordering_successors_are_released_too(broker: Broker, outcome: str) -> None:
    """After a nack or release, buffered messages of that key are not yielded before it."""
    for n in range(80):
        broker.publish(1, key=f"key.{n % 2}")
    async with broker.stream() as stream:
        for _ in range(30):
            await anext(stream)
        failed = await anext(stream)
        buffered = [r for r in broker.records if r.lease is not None and not r.outcome]
        behind = [r.seq for r in buffered if r.key == failed.key and r.seq > failed["n"]]
        assert len(behind) > 2
        await (failed.nack() if outcome == "nack" else failed.release())
        await stream.flush()
        assert [n for n in broker.settled("release") if n != failed["n"]] == behind
        rest = [(await anext(stream))["n"] for _ in range(40)]
        assert next(n for n in rest if n % 2 == failed["n"] % 2) == failed["n"]
        for parity in (0, 1):
            same_key = [n for n in rest if n % 2 == parity]
            assert same_key == sorted(same_key)


@pytest.mark.parametrize(("ordering", "outcome"), [("key", "reject"), ("consumer", "nack")])
async def test_successors_are_kept_where_nothing_has_to_come_before_them(
    ordering: str, outcome: str
) -> None:
    """After a reject, or without ordering by key, the next message is the next."""
    broker = Broker(ordering=ordering)
    broker.publish(80)
    async with broker.stream() as stream:
        for _ in range(30):
            await anext(stream)
        settled = await anext(stream)
        assert len(broker.leased()) > 2
        await (settled.reject("broken") if outcome == "reject" else settled.nack(60))
        assert (await anext(stream))["n"] == settled["n"] + 1
        await stream.flush()
        assert broker.settled("release") == []
    broker.check()


@pytest.mark.parametrize("capabilities", [{"lease": None}])
async def test_a_lease_of_none_is_never_extended(broker: Broker) -> None:
    """A broker without leases keeps a message as long as the connection lives."""
    broker.publish(2)
    async with broker.stream() as stream:
        await anext(stream)
        await asyncio.sleep(3600)
        await anext(stream)
    assert broker.called("extend") == []
    assert broker.acked() == [0]
