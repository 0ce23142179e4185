"""Acknowledgements are sent in batches, retried and reported."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from abe.backends.message_queue.base import Message, Outcome
from tests.unit_test.stream.support import LEASE, RESET, breathe, call, now, several, warned

if TYPE_CHECKING:
    from tests.support.scripted_broker import Broker
    from tests.support.virtual_loop import VirtualRun


async def test_acks_wait_at_most_50_ms_for_company(broker: Broker) -> None:
    """An ack is sent within 50 ms, together with those that came meanwhile."""
    broker.publish(20)
    async with broker.stream() as stream:
        taken = await stream.take(20)
        started = now()
        for message in taken[:10]:
            await message.ack()
            await asyncio.sleep(0.004)
        await asyncio.sleep(0.02)
        (call,) = broker.called("settle")
        assert call.time == pytest.approx(started + 0.05)
        assert len(call.detail) == 10


def test_acks_are_sent_at_once_when_there_are_many(run: VirtualRun, broker: Broker) -> None:
    """A full batch does not wait, and no batch is larger than 512."""

    async def main() -> None:
        broker.publish(1200)
        async with broker.stream() as stream:
            taken = await stream.take(1200)
            for message in taken:
                message.detach()
            started = now()
            for message in taken:
                await message.ack()
            await breathe()
            assert now() == started
            assert [len(call.detail) for call in broker.called("settle")][:2] == [512, 512]
            await asyncio.sleep(0.05)
            assert broker.acked() == list(range(1200))

    run(main(), debug=False)
    assert [len(call.detail) for call in broker.called("settle")][:2] == [512, 512]


async def test_acks_are_flushed_before_the_stream_waits(broker: Broker) -> None:
    """While the caller waits for a message, no ack waits for company."""
    broker.publish(1)
    async with broker.stream() as stream:
        await anext(stream)
        task = asyncio.create_task(anext(stream))
        started = now()
        await breathe()
        assert now() == started
        assert broker.acked() == [0]
        task.cancel()


async def test_acks_are_flushed_when_the_stream_closes(broker: Broker) -> None:
    """``aclose`` returns after the broker has accepted every settlement."""
    broker.latency = 1.0

    broker.publish(3)
    async with broker.stream() as stream:
        for message in await stream.take(3):
            await message.ack()
    assert broker.acked() == [0, 1, 2]


async def test_other_settlements_do_not_wait_and_keep_their_order(broker: Broker) -> None:
    """A nack goes out at once, after the acks recorded before it."""
    broker.publish(3)
    async with broker.stream() as stream:
        first, second, third = await stream.take(3)
        await first.ack()
        await second.nack(60)
        await third.reject("broken")
        started = now()
        await breathe()
        assert now() == started
        settled = [item for call in broker.called("settle") for item in call.detail]
        assert settled == [(0, "ack"), (1, "nack"), (2, "reject")]


async def test_flush_returns_when_the_broker_has_accepted(broker: Broker) -> None:
    """``flush`` waits for settlements on their way, and for those recorded before it."""
    broker.latency = 1.0

    broker.publish(2)
    async with broker.stream() as stream:
        first, second = await stream.take(2)
        await first.ack()
        await asyncio.sleep(0.1)
        await second.ack()
        await stream.flush()
        assert broker.acked() == [0, 1]
        assert [r.lease for r in broker.records] == [None, None]


async def test_flush_returns_under_steady_traffic(broker: Broker) -> None:
    """What is recorded while ``flush`` waits does not keep it waiting."""
    broker.latency = 1.0

    async def ack_on_and_on(messages: list[Message]) -> None:
        for message in messages:
            await message.ack()
            await asyncio.sleep(0.1)

    broker.publish(301)
    async with broker.stream() as stream:
        first, *others = await stream.take(301)
        task = asyncio.create_task(ack_on_and_on(others))
        await asyncio.sleep(5)
        await first.ack()
        started = now()
        await stream.flush()
        assert now() - started < 3
        assert broker.records[0].outcome == "ack"
        await task
    assert len(broker.acked()) == 301


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("error", [RESET, TimeoutError("no answer")])
async def test_a_failed_settle_is_retried(broker: Broker, error: Exception, late: bool) -> None:
    """A settle that fails, before or after the broker did it, is repeated until it is answered."""
    broker.fault("settle", times=3, error=error, late=late)

    broker.publish(2)
    async with broker.stream() as stream:
        for message in await stream.take(2):
            await message.ack()
        await stream.flush()
        assert broker.acked() == [0, 1]
        assert len(broker.called("settle")) == 4


async def test_only_the_failed_part_of_a_settle_is_retried(broker: Broker) -> None:
    """Settlements that the broker accepted are not sent again."""
    refusals = iter([TimeoutError(), TimeoutError(), None])
    broker.refuse = lambda s: next(refusals) if s.delivery.message["n"] == 1 else None
    broker.publish(3)
    async with broker.stream() as stream:
        for message in await stream.take(3):
            await message.ack()
        await stream.flush()
    assert broker.settled("ack") == [0, 1, 2, 1, 1]
    assert broker.acked() == [0, 1, 2]


async def test_acks_recorded_during_a_retry_are_sent_too(broker: Broker) -> None:
    """What is recorded while the broker is unreachable goes out when it returns, in order."""
    broker.publish(3)
    async with broker.stream() as stream:
        first, second, third = await stream.take(3)
        broker.cut(down=ConnectionError("down"))
        await first.ack()
        await asyncio.sleep(1)
        await second.ack()
        await asyncio.sleep(1)
        broker.down = None
        await third.ack()
        await stream.flush()
        assert broker.acked() == [0, 1, 2]


async def test_an_ack_on_a_lost_lease_warns(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Acking what somebody else has by now changes nothing and is a warning, not an error."""
    broker.publish(2, key="orders.eu")
    async with broker.stream() as stream:
        message = await anext(stream)
        broker.expire(broker.records[0])
        await anext(stream)
        await stream.flush()
        assert message.outcome is Outcome.LOST
        assert not await message.ack()
    (record,) = warned(caplog, "lease lost")
    assert "orders.eu" in record.getMessage()
    assert record.__dict__["id"] == "id-0"


async def test_a_release_of_a_lost_lease_is_silent(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Giving back what is gone already is what was wanted."""
    broker.publish(1)
    async with broker.stream() as stream:
        await anext(stream)
        broker.expire(broker.records[0])
    assert not warned(caplog, "lost")


@pytest.mark.parametrize("where", ["anext", "take", "flush", "aclose", "enter", "exit"])
async def test_a_refused_settlement_surfaces(broker: Broker, where: str) -> None:
    """What the broker refuses for good is raised by the next call that can raise."""
    broker.refuse = lambda settlement: (
        PermissionError("read only") if settlement.outcome == "ack" else None
    )

    broker.publish(2)
    stream = broker.stream()
    message = await anext(stream)
    await message.ack()
    if where in ("anext", "take", "enter"):
        await asyncio.sleep(1)
    with pytest.raises(PermissionError, match="read only"):
        await call(stream, where)
    await stream.aclose()


async def test_a_settle_that_raises_for_good_surfaces_and_ends_the_stream(broker: Broker) -> None:
    """An error of ``settle`` that no new connection cures ends the stream."""
    broker.fault("settle", error=ValueError("no such group"))
    broker.publish(3)
    stream = broker.stream()
    with pytest.raises(ValueError, match="no such group"):
        await several(stream, 4)
    await stream.aclose()
    assert broker.acked() == []


@pytest.mark.parametrize("method", ["settle", "extend"])
async def test_a_receiver_that_does_not_say_what_failed_is_a_permanent_failure(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """A provider that forgets to return the failures gets an error, not an endless loop."""

    async def forgetful(receiver: object, *what: object) -> None:
        return None

    broker.publish(1)
    stream = broker.stream()
    await anext(stream)
    monkeypatch.setattr(type(broker.receivers[0]), method, forgetful)
    await asyncio.sleep(LEASE)
    with pytest.raises(TypeError) as caught:
        await anext(stream)
    assert str(caught.value) == (
        f"ScriptedReceiver.{method}() returned None; it must return a list of what failed,"
        " empty if nothing did"
    )
    await stream.aclose()
