"""When settlements are sent: together, in order, and none is left lying."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

import abe
from abe.backends.message_queue.base import Delivery, Outcome, Settlement
from abe.backends.message_queue.base.subscription.ledger import MAX_BATCH, MAX_WAIT, Ledger
from abe.backends.message_queue.service.memory import MemoryBackend

if TYPE_CHECKING:
    from tests.support.scripted_broker import Broker


def times(broker: Broker) -> list[float]:
    """When the broker was told of settlements."""
    return [call.time for call in broker.called("settle")]


def sizes(broker: Broker) -> list[int]:
    return [len(call.detail) for call in broker.called("settle")]


async def test_an_ack_waits_for_company_once(broker: Broker) -> None:
    """The wait begins with the first ack of a batch and is not prolonged by those that follow."""
    broker.publish(4)
    async with broker.stream() as stream:
        messages = await stream.take(4)
        began = asyncio.get_running_loop().time()
        for message in messages[:3]:
            await message.ack()
            await asyncio.sleep(MAX_WAIT * 0.4)
        assert times(broker) == [pytest.approx(began + MAX_WAIT)]
        assert sizes(broker) == [3]
        await messages[3].ack()
        await asyncio.sleep(MAX_WAIT * 1.1)
        assert sizes(broker) == [3, 1]


async def test_a_full_batch_does_not_wait(broker: Broker) -> None:
    broker.publish(MAX_BATCH + 1)
    async with broker.stream() as stream:
        messages = await stream.take(MAX_BATCH + 1)
        began = asyncio.get_running_loop().time()
        for message in messages[:MAX_BATCH]:
            await message.ack()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert times(broker) == [began]
        assert sizes(broker) == [MAX_BATCH]
        await messages[-1].ack()


async def test_what_comes_while_others_are_sent_goes_right_after_them(broker: Broker) -> None:
    """Also if nothing comes after that, which would take it along."""
    broker.latency = 1.0

    broker.publish(2)
    async with broker.stream() as stream:
        first, second = await stream.take(2)
        await first.ack()
        await asyncio.sleep(MAX_WAIT + 0.5)
        assert len(times(broker)) == 1
        await second.ack()
        await asyncio.sleep(1.6)
        one, two = times(broker)
        assert two - one == pytest.approx(1.0)
        assert broker.acked() == [0, 1]


async def test_a_synchronous_loop_asks_for_a_refill_before_it_runs_dry(broker: Broker) -> None:
    """The loop body awaits nothing; still the request goes out when half the buffer is left."""
    broker.publish(100)
    async with broker.stream(prefetch=8) as stream:
        for _ in range(100):
            await anext(stream)
    asked = [call.detail[0] for call in broker.called("receive")]
    assert asked[4:20] == [4] * 16


def test_a_loop_that_is_quicker_than_the_thread_can_say_that_it_was_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Waking the loop lets it run: it has settled before the thread goes on."""
    told = threading.Event()
    report = Ledger.report_lost

    def report_lost(self: Ledger, delivery: Delivery) -> None:
        report(self, delivery)
        told.set()

    monkeypatch.setattr(Ledger, "report_lost", report_lost)

    async def take_over() -> None:
        backend._store.advance_time(31.0)
        async with MemoryBackend("quick-loop") as other, other.consume() as stream:
            assert len(await stream.take(1, 10.0)) == 1

    backend = MemoryBackend("quick-loop")
    with abe.connect(backend) as q:
        q.publish("k", {})
        messages = q.consume()
        message = next(messages)
        asyncio.run(take_over())
        (subscription,) = backend._subscriptions
        loop = subscription.loop
        assert loop is not None
        wake = loop.call_soon_threadsafe

        def wake_and_wait(callback: Callable[..., object], *args: object) -> asyncio.Handle:
            handle = wake(callback, *args)
            if asyncio._get_running_loop() is None:
                told.wait(10.0)
            return handle

        with monkeypatch.context() as patch:
            patch.setattr(loop, "call_soon_threadsafe", wake_and_wait)
            message.nack()
        assert told.is_set()
        assert message.outcome is Outcome.LOST


def test_an_interrupt_before_an_ack_is_recorded_lets_it_be_repeated() -> None:
    class Interrupting(deque[Settlement]):
        calls = 0

        def append(self, settlement: Settlement) -> None:
            self.calls += 1
            if self.calls == 1:
                raise KeyboardInterrupt
            super().append(settlement)

    with abe.connect(MemoryBackend("ledger.interrupt")) as queue:
        queue.publish("k", {"n": 1})
        with queue.consume() as stream:
            message = next(stream)
            subscription = stream._loan.subscription
            assert subscription is not None
            subscription._ledger._inbox = Interrupting()
            with pytest.raises(KeyboardInterrupt):
                message.ack()
            assert message.ack()
        assert queue.stats().total("ready") == 0
