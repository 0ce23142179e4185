"""Handlers run side by side, each key in order, and are counted."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter, defaultdict
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from abe.backends.message_queue.consumer import AsyncLoopConsumer, RetryPolicy
from abe.backends.message_queue.handling import counters
from abe.errors import Retry
from tests.support.scripted_broker import Broker
from tests.support.virtual_loop import VirtualRun
from tests.unit_test.consumer.support import Scripted, memory, settled, until

if TYPE_CHECKING:
    from abe.backends.message_queue.base import Message


@pytest.mark.parametrize("concurrency", [1, 2, 7])
async def test_as_many_handlers_run_as_allowed_and_no_more(
    concurrency: int,
    broker: Broker,
) -> None:
    async def handler(message: Message) -> None:
        counts.append(consumer.in_flight)
        await asyncio.sleep(1)
        counts.append(consumer.in_flight)

    counts: list[int] = []
    broker.publish(30)
    consumer = AsyncLoopConsumer(Scripted(broker), concurrency=concurrency)
    loop = asyncio.get_running_loop()
    started = loop.time()
    await settled(consumer, handler, lambda: consumer.processed == 30, 0.1)
    assert max(counts) == concurrency
    assert loop.time() - started == pytest.approx(math.ceil(30 / concurrency), abs=0.5)
    assert consumer.in_flight == 0


class KeyOrder:
    """A handler that checks the order of each key while messages fail at random.

    Args:
        choice: Source of randomness.
        failures: Share of calls that fail.
    """

    def __init__(self, choice: random.Random, failures: float) -> None:
        self.choice = choice
        self.failures = failures
        self.running: Counter[str] = Counter()
        self.most = 0
        self.first: defaultdict[str, list[int]] = defaultdict(list)
        self.finished: defaultdict[str, list[int]] = defaultdict(list)

    async def __call__(self, message: Message) -> None:
        key, n = message.key or "", message["n"]
        self.running[key] += 1
        assert self.running[key] == 1, f"two messages of {key} at once"
        self.most = max(self.most, self.running.total())
        if n not in self.first[key]:
            self.first[key].append(n)
        try:
            await asyncio.sleep(self.choice.random())
            if self.choice.random() < self.failures:
                raise ValueError(f"{key} {n}")
            self.finished[key].append(n)
        finally:
            self.running[key] -= 1


class BatchedKeys(Scripted):
    """Per key in order, but several of one key in one batch, as SQS FIFO does it."""

    def __init__(self, broker: Broker) -> None:
        super().__init__(broker)
        broker.take = self._take  # type: ignore[method-assign]
        self.lent: list[int] = []

    def _take(self, limit: int, owner: Any) -> list[Any]:
        broker = self.broker
        broker.advance()
        held = {r.key for r in broker.unfinished.values() if r.lease is not None}
        leases: list[Any] = []
        for record in list(broker.unfinished.values()):
            if record.lease is not None or record.key in held or len(leases) == limit:
                continue
            if record.due > broker.now:
                held.add(record.key)
                continue
            leases.append(broker.lend(record, owner))
        self.lent.append(len(leases))
        return leases


@pytest.mark.parametrize("failures", [0.0, 0.2])
def test_concurrency_keeps_the_order_of_each_key(failures: float) -> None:
    broker = Broker(ordering="key")

    async def main() -> None:
        backend = BatchedKeys(broker)
        handler = KeyOrder(random.Random(11), failures)
        for n in range(120):
            broker.publish(1, f"k.{n % 6}")
        consumer = AsyncLoopConsumer(
            backend, concurrency=4, retry=RetryPolicy(max_attempts=50, base=0.1)
        )
        await settled(consumer, handler, lambda: consumer.processed == 120)
        assert handler.most == 4
        assert max(backend.lent) > 6, "no batch held two messages of one key"
        for n in range(6):
            assert handler.finished[f"k.{n}"] == list(range(n, 120, 6))
            assert handler.first[f"k.{n}"] == list(range(n, 120, 6))

    VirtualRun()(main(), debug=False)
    broker.check()


@pytest.mark.parametrize("how", ["shutdown", "cancel", "nack"])
def test_messages_that_wait_for_one_of_their_key_are_released_with_it(how: str) -> None:
    broker = Broker(ordering="key")

    async def main() -> None:
        backend = BatchedKeys(broker)
        broker.publish(8)
        consumer = AsyncLoopConsumer(backend, concurrency=2, drain_timeout=1.0)
        go = asyncio.Event()
        handled: list[int] = []

        async def handler(message: Message) -> None:
            handled.append(message["n"])
            if message["n"] == 1:
                await go.wait()
                raise Retry(1000.0)

        task = asyncio.create_task(consumer.run(handler))
        await until(lambda: len(handled) == 2)
        await asyncio.sleep(1)
        assert handled == [0, 1]
        if how == "nack":
            go.set()
            await until(lambda: broker.records[1].failed, 0.01)
            await asyncio.sleep(1)
            assert handled == [0, 1]
            assert broker.leased() == []
            await consumer.shutdown()
        elif how == "cancel":
            task.cancel()
        else:
            await consumer.shutdown()
        with suppress(asyncio.CancelledError):
            await task
        assert broker.leased() == []
        assert {r.failed for r in broker.records[2:]} == {0}
        assert broker.acked() == [0]

    VirtualRun()(main(), debug=False)
    broker.check()


@pytest.mark.parametrize("capabilities", [{"ordering": "key"}])
async def test_what_waits_for_one_of_its_key_is_not_begun_any_more_while_draining(
    broker: Broker,
) -> None:
    broker.publish(8)
    consumer = AsyncLoopConsumer(BatchedKeys(broker), concurrency=2)
    go = asyncio.Event()
    handled: list[int] = []

    async def handler(message: Message) -> None:
        handled.append(message["n"])
        if message["n"] == 1:
            await go.wait()

    task = asyncio.create_task(consumer.run(handler))
    await until(lambda: len(handled) == 2)
    await asyncio.sleep(1)
    draining = asyncio.create_task(consumer.shutdown())
    await asyncio.sleep(1)
    go.set()
    await draining
    await task
    assert handled == [0, 1]
    assert broker.acked() == [0, 1]
    assert broker.leased() == []


@pytest.mark.parametrize("capabilities", [{"ordering": "key"}])
async def test_other_keys_go_on_while_one_is_busy(broker: Broker) -> None:

    async def handler(message: Message) -> None:
        if message.key == "slow":
            await go.wait()
        order.append(message.key or "")

    go = asyncio.Event()
    order: list[str] = []
    broker.publish(3, "slow")
    broker.publish(10, "quick")
    consumer = AsyncLoopConsumer(BatchedKeys(broker), concurrency=2)
    task = asyncio.create_task(consumer.run(handler))
    await until(lambda: order.count("quick") == 10, 0.01)
    assert order.count("slow") == 0
    go.set()
    await until(lambda: consumer.processed == 13, 0.01)
    await consumer.shutdown()
    await task
    assert order[-3:] == ["slow"] * 3


def test_the_rate_is_that_of_the_last_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(counters, "time", SimpleNamespace(monotonic=lambda: clock.now))
    consumer = AsyncLoopConsumer(memory())
    assert consumer.rate == 0.0
    for n in range(100):
        clock.now = n / 10
        consumer._finished.append(clock.now)
    assert consumer.rate == pytest.approx(10.0)
    clock.now += 5.0
    assert consumer.rate == pytest.approx(5.1)
    clock.now += 100.0
    assert consumer.rate == 0.0
    for _ in range(20_000):
        clock.now += 0.00005
        consumer._finished.append(clock.now)
    assert consumer.rate == pytest.approx(20_000, rel=0.01)
