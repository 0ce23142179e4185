"""A cancellation of its own is a failure, one of the run a release."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from abe.backends.message_queue.consumer import AsyncLoopConsumer
from tests.support.scripted_broker import Broker
from tests.support.virtual_loop import VirtualRun
from tests.unit_test.consumer.support import FAST, Recorder, Scripted, memory, real, settled, until

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from abe.backends.message_queue.base import Message


async def cancels_itself(message: Message) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def raises_cancelled(message: Message) -> None:
    raise asyncio.CancelledError


async def awaits_a_cancelled_task(message: Message) -> None:
    task = asyncio.create_task(asyncio.sleep(1))
    task.cancel()
    await task


@pytest.mark.parametrize("misbehave", [cancels_itself, raises_cancelled, awaits_a_cancelled_task])
async def test_a_cancellation_that_the_consumer_did_not_cause_is_a_failure(
    misbehave: Callable[[Message], Coroutine[Any, Any, None]],
    broker: Broker,
) -> None:
    async def handler(message: Message) -> None:
        if message["n"] == 0:
            await misbehave(message)
        # What the handler before did to this task must not break what this one does.
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(1)
        with pytest.raises(ExceptionGroup):
            await use_a_group()

    async def use_a_group() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
            await asyncio.sleep(1)

    async def fails() -> None:
        raise ValueError

    broker.publish(2)
    consumer = AsyncLoopConsumer(Scripted(broker), retry=FAST)
    await settled(consumer, handler, lambda: consumer.processed + consumer.dead == 2)
    assert broker.records[0].outcomes == ["nack", "nack", "reject"]
    assert broker.records[1].outcomes == ["ack"]
    assert isinstance(consumer.last_error, asyncio.CancelledError)
    assert (consumer.processed, consumer.failed) == (1, 3)


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_its_own_cancellation_is_a_release(
    concurrency: int,
    broker: Broker,
) -> None:
    broker.publish(10)
    consumer = AsyncLoopConsumer(Scripted(broker), concurrency=concurrency)
    handler = Recorder(*[1000.0] * 10)
    task = asyncio.create_task(consumer.run(handler))
    await until(lambda: consumer.in_flight == concurrency)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert broker.leased() == []
    assert {o for r in broker.records for o in r.outcomes} == {"release"}
    assert broker.settled("release")
    assert (consumer.failed, consumer.processed, consumer.in_flight) == (0, 0, 0)
    # The consumer can be run again, and attempts were not counted.
    again = Recorder()
    await settled(consumer, again, lambda: consumer.processed == 10)
    assert set(again.attempts) == {1}


async def test_cancelling_a_handler_that_swallows_it_still_ends_the_run(
    broker: Broker,
) -> None:
    async def handler(message: Message) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(1000)

    broker.publish(5)
    consumer = AsyncLoopConsumer(Scripted(broker))
    task = asyncio.create_task(consumer.run(handler))
    await until(lambda: consumer.in_flight)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert consumer.processed == 1
    assert broker.acked() == [0]
    assert broker.leased() == []


async def test_a_timeout_around_run_is_a_timeout(broker: Broker) -> None:
    broker.publish(3)
    consumer = AsyncLoopConsumer(Scripted(broker))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5):
            await consumer.run(Recorder(1.0, 1000.0))
    assert broker.acked() == [0]
    assert set(broker.records[1].outcomes) == {"release"}
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


def handler_tasks() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name().startswith("abe-handler")]


@pytest.mark.parametrize("first", ["run", "handlers"])
async def test_whoever_cancels_all_tasks_cancels_the_run_in_any_order(
    first: str,
    broker: Broker,
) -> None:
    broker.publish(2)
    consumer = AsyncLoopConsumer(Scripted(broker), concurrency=2)
    task = asyncio.create_task(consumer.run(Recorder(1000.0, 1000.0)))
    await until(lambda: consumer.in_flight == 2)
    workers = handler_tasks()
    for each in [task, *workers] if first == "run" else [*workers, task]:
        each.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert {o for r in broker.records for o in r.outcomes} == {"release"}
    assert consumer.failed == 0


async def test_a_consumer_whose_tasks_somebody_cancels_does_not_end_as_if_told_to(
    broker: Broker,
) -> None:
    consumer = AsyncLoopConsumer(Scripted(broker))
    task = asyncio.create_task(consumer.run(Recorder()))
    await until(handler_tasks)
    await asyncio.sleep(1)
    for worker in handler_tasks():
        worker.cancel()
    with pytest.raises(asyncio.CancelledError, match="another task cancelled"):
        await task


@pytest.mark.parametrize("nested", [False, True])
def test_the_end_of_the_loop_releases_what_is_in_flight(nested: bool) -> None:
    """``asyncio.run`` cancels the tasks of the stream as well, in any order."""

    async def handler(message: Message) -> None:
        started.append(message.attempt)
        try:
            await (asyncio.create_task(asyncio.sleep(1000)) if nested else asyncio.sleep(1000))
        finally:
            await asyncio.sleep(0)

    async def main() -> None:
        await backend.publish("k", {})
        task = asyncio.create_task(AsyncLoopConsumer(backend).run(handler))
        await until(lambda: started, 0.0)
        assert not task.done()

    async def look() -> list[Message]:
        return await backend.peek()

    for _ in range(10):
        backend = memory()
        started: list[int] = []
        real(main())
        (message,) = real(look())
        assert message.attempt == 1


@pytest.mark.parametrize("concurrency", [1, 4])
def test_cancellations_at_any_moment_lose_nothing_and_double_nothing(concurrency: int) -> None:
    """A run cancelled at any moment; every message is handled to the end exactly once."""
    total, cancellations, seed = 120, 400, 7
    choice = random.Random(seed)
    broker = Broker()
    finished: Counter[int] = Counter()

    async def handler(message: Message) -> None:
        for _ in range(choice.randrange(4)):
            await asyncio.sleep(choice.choice((0.0, 0.0, 0.001)))
        finished[message["n"]] += 1

    async def main() -> None:
        backend = Scripted(broker)
        published = cancelled = 0
        consumer = AsyncLoopConsumer(backend, concurrency=concurrency)
        while cancelled < cancellations:
            if published < total and choice.random() < 0.5:
                broker.publish(choice.randrange(3))
                published = len(broker.records)
            task = asyncio.create_task(consumer.run(handler))
            for _ in range(choice.randrange(25)):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            cancelled += 1
        await settled(consumer, handler, lambda: len(finished) == published)
        assert published > total / 2
        assert sorted(finished) == list(range(published))
        assert set(finished.values()) == {1}
        assert consumer.processed == published
        assert {r.outcome for r in broker.records} == {"ack"}
        assert {r.failed for r in broker.records} == {0}

    VirtualRun()(main(), debug=False)
    broker.check()
