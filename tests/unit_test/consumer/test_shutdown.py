"""Running twice, and shutting down from anywhere."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from abe.backends.message_queue.consumer import AsyncLoopConsumer, RetryPolicy
from abe.errors import AbeError, ConnectionLostError, LoopError
from tests.support.scripted_broker import Fault
from tests.unit_test.consumer.support import (
    AsyncObject,
    Recorder,
    Scripted,
    memory,
    real,
    settled,
    until,
)

if TYPE_CHECKING:
    from abe.backends.message_queue.base import Message, SyncMessage
    from tests.support.scripted_broker import Broker


async def test_a_second_run_returns_or_raises(broker: Broker) -> None:
    backend = Scripted(broker)
    consumer = AsyncLoopConsumer(backend)
    handler, other = Recorder(), Recorder()
    task = asyncio.create_task(consumer.run(handler))
    await asyncio.sleep(0)
    await consumer.run(handler)
    with pytest.raises(RuntimeError, match="already running with another handler"):
        await consumer.run(other)
    assert not task.done()
    assert len(backend.opened) == 1
    await consumer.shutdown()
    await task
    broker.publish()
    await settled(consumer, other, lambda: consumer.processed)
    assert other.numbers == [0]


async def test_a_bound_method_is_the_same_handler_each_time(broker: Broker) -> None:
    target = AsyncObject()
    consumer = AsyncLoopConsumer(Scripted(broker))
    task = asyncio.create_task(consumer.run(target.method))
    await asyncio.sleep(0)
    await consumer.run(target.method)
    await consumer.shutdown()
    await task


async def test_shutdown_before_run_makes_it_return_at_once(broker: Broker) -> None:
    backend = Scripted(broker)
    consumer = AsyncLoopConsumer(backend)
    running = consumer.run(Recorder())
    await consumer.shutdown()
    await consumer.shutdown()
    await running
    assert backend.opened == []
    broker.publish()
    await settled(consumer, Recorder(), lambda: consumer.processed)


async def test_shutdown_twice_does_not_stop_the_next_run(broker: Broker) -> None:
    consumer = AsyncLoopConsumer(Scripted(broker))
    for round_ in range(3):
        broker.publish()
        task = asyncio.create_task(consumer.run(Recorder()))
        await until(lambda: consumer.processed == round_ + 1, 0.01)  # noqa: B023
        await asyncio.gather(consumer.shutdown(), consumer.shutdown())
        await consumer.shutdown()
        await task
        await consumer.shutdown()


async def test_a_run_after_a_failed_one_and_its_shutdown_runs(broker: Broker) -> None:
    """As a supervisor does it: clean up in ``finally``, and run again."""
    broker.faults["open"].append(Fault(error=PermissionError("no")))
    backend = Scripted(broker)
    consumer = AsyncLoopConsumer(backend)
    with pytest.raises(PermissionError):
        await consumer.run(Recorder())
    await consumer.shutdown()
    broker.publish()
    await settled(consumer, Recorder(), lambda: consumer.processed == 1)
    assert len(backend.opened) == 2


async def test_a_run_after_a_refused_one_and_its_shutdown_runs(broker: Broker) -> None:
    consumer = AsyncLoopConsumer(Scripted(broker))
    for _ in range(2):
        with pytest.raises(TypeError):
            await consumer.run(None)  # type: ignore[arg-type]
        await consumer.shutdown()
    broker.publish()
    await settled(consumer, Recorder(), lambda: consumer.processed == 1)


async def test_shutdown_lets_handlers_finish_and_releases_the_rest(
    broker: Broker,
) -> None:
    broker.publish(30)
    consumer = AsyncLoopConsumer(Scripted(broker), concurrency=3, drain_timeout=10.0)
    handler = Recorder(*[0.1] * 12, 5.0, 9.0, 1000.0)
    task = asyncio.create_task(consumer.run(handler))
    await until(lambda: len(handler.messages) == 15)
    late = handler.numbers[-1]
    await consumer.shutdown()
    assert task.done()
    assert len(handler.messages) == 15
    assert consumer.processed == 14
    assert broker.acked() == sorted(set(handler.numbers) - {late})
    assert broker.records[late].outcomes == ["release"]
    assert broker.leased() == []
    assert {o for r in broker.records[15:] for o in r.outcomes} <= {"release"}
    assert {r.failed for r in broker.records} == {0}
    await task


async def test_shutdown_waits_at_most_for_the_drain_timeout(broker: Broker) -> None:
    broker.publish(2)
    consumer = AsyncLoopConsumer(Scripted(broker), concurrency=2, drain_timeout=3.0)
    handler = Recorder(1000.0, 2.0)
    task = asyncio.create_task(consumer.run(handler))
    await until(lambda: consumer.in_flight == 2)
    loop = asyncio.get_running_loop()
    started = loop.time()
    await consumer.shutdown()
    assert loop.time() - started == pytest.approx(3.0, abs=0.2)
    await task
    assert [r.outcomes for r in broker.records] == [["release"], ["ack"]]


async def test_shutdown_while_it_waits_for_messages(broker: Broker) -> None:
    consumer = AsyncLoopConsumer(Scripted(broker), concurrency=4)
    task = asyncio.create_task(consumer.run(Recorder()))
    await asyncio.sleep(5)
    loop = asyncio.get_running_loop()
    started = loop.time()
    await consumer.shutdown()
    assert task.done()
    assert loop.time() == started
    await task


async def test_shutdown_flushes_what_was_acked(broker: Broker) -> None:
    broker.publish()
    broker.latency = 0.5
    consumer = AsyncLoopConsumer(Scripted(broker))
    task = asyncio.create_task(consumer.run(Recorder()))
    await until(lambda: consumer.processed, 0.01)
    assert broker.acked() == []
    await consumer.shutdown()
    assert broker.acked() == [0]
    await task


async def test_shutdown_from_the_handler(broker: Broker) -> None:
    async def handler(message: Message) -> None:
        handled.append(message["n"])
        if len(handled) == 2:
            await consumer.shutdown()
            assert consumer.in_flight == 1

    handled: list[int] = []
    broker.publish(5)
    consumer = AsyncLoopConsumer(Scripted(broker))
    await consumer.run(handler)
    assert handled == [0, 1]
    assert broker.acked() == [0, 1]
    assert broker.leased() == []


async def test_shutdown_from_a_task_that_the_handler_waits_for(broker: Broker) -> None:
    async def handler(message: Message) -> None:
        await asyncio.wait_for(asyncio.create_task(consumer.shutdown()), 5)

    broker.publish(3)
    consumer = AsyncLoopConsumer(Scripted(broker), concurrency=2)
    await consumer.run(handler)
    assert consumer.failed == 0
    assert consumer.processed >= 1
    assert broker.leased() == []


async def test_shutdown_from_what_a_finished_handler_left_running_waits_for_the_others(
    broker: Broker,
) -> None:
    async def stop_later() -> None:
        await until(lambda: consumer.in_flight and consumer.processed, 0.01)
        await consumer.shutdown()
        processed.append(consumer.processed)

    async def handler(message: Message) -> None:
        if message["n"] == 0:
            background.append(asyncio.create_task(stop_later()))
        else:
            await asyncio.sleep(5)

    background: list[asyncio.Task[None]] = []
    processed: list[int] = []
    broker.publish(2)
    consumer = AsyncLoopConsumer(Scripted(broker))
    await consumer.run(handler)
    await background[0]
    assert processed == [2]


def test_shutdown_on_another_loop_is_an_error_instead_of_a_race() -> None:
    def handler(message: SyncMessage) -> None:
        asyncio.run(consumer.shutdown())

    backend = memory()
    consumer = AsyncLoopConsumer(backend, retry=RetryPolicy(max_attempts=1))

    async def main() -> None:
        await backend.publish("k", {})
        await settled(consumer, handler, lambda: consumer.dead)
        assert isinstance(consumer.last_error, LoopError)
        assert "run_coroutine_threadsafe" in str(consumer.last_error)

    real(main())


async def test_shutdown_while_the_broker_cannot_be_reached_ends_the_run_quietly(
    broker: Broker,
) -> None:
    broker.down = ConnectionLostError("away")
    consumer = AsyncLoopConsumer(Scripted(broker))
    task = asyncio.create_task(consumer.run(Recorder()))
    await asyncio.sleep(60)
    await consumer.shutdown()
    await task


async def test_a_stream_that_fails_for_good_ends_the_run_with_its_error(broker: Broker) -> None:
    class Refused(AbeError):
        pass

    broker.publish(3)
    error = Refused("no rights")
    error.__cause__ = OSError("driver")
    broker.faults["receive"] += [Fault(), Fault(error=error)]
    consumer = AsyncLoopConsumer(Scripted(broker), concurrency=3)
    handler = Recorder(*[1000.0] * 3)
    with pytest.raises(Refused) as caught:
        await consumer.run(handler)
    assert caught.value is error
    assert isinstance(caught.value.__cause__, OSError)
    assert consumer.in_flight == 0
