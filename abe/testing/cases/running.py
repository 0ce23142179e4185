"""The same backend, driven through `AsyncLoopConsumer`: several at a time, stopping, breaking."""

from __future__ import annotations

import asyncio
import random
from functools import partial

from abe.backends.message_queue.base import Message
from abe.backends.message_queue.consumer import RetryPolicy
from abe.testing.base import ContractBase
from abe.testing.case import case
from abe.testing.cases.handling import Worker
from abe.testing.context import CaseContext
from abe.testing.expect import check, exactly

__all__ = ["RunningCases"]


class RunningCases(ContractBase):
    """Concurrency, shutdown, cancellation, load."""

    @case()
    async def test_consumer_works_concurrently(self, context: CaseContext) -> None:
        """With concurrency=4 four handlers run at a time, never more; each message goes to one."""
        sent = [{"n": n} for n in range(12)]
        for payload in sent:
            await context.publish(payload, f"key.{payload['n']}")
        running = most = 0
        together = asyncio.Event()

        async def work(message: Message) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            if running == 4:
                together.set()
            try:
                await asyncio.wait_for(together.wait(), context.harness.patience)
            finally:
                running -= 1

        async with Worker(context, work, concurrency=4) as worker:
            await worker.processed(12)
        check(most == 4, f"at most {most} handlers were running at a time, not 4")
        exactly(worker.seen, sent, "what the handlers were called with")

    @case("ordering=key")
    async def test_consumer_keeps_key_order(self, context: CaseContext) -> None:
        """Ordered per key, handlers run concurrently for different keys, one by one for each."""
        sent = [{"key": n % 3, "n": n} for n in range(18)]
        for payload in sent:
            await context.publish(payload, f"key.{payload['key']}")
        busy: set[int] = set()
        overlaps: list[int] = []

        async def work(message: Message) -> None:
            key = message["key"]
            if key in busy:
                overlaps.append(key)
            busy.add(key)
            await asyncio.sleep(0)
            busy.discard(key)

        async with Worker(context, work, concurrency=4) as worker:
            await worker.processed(18)
        check(not overlaps, f"two handlers ran at a time for keys {overlaps}")
        for key in range(3):
            own = [message for message in worker.seen if message["key"] == key]
            exactly(own, [p for p in sent if p["key"] == key], f"of key {key}", ordered=True)

    @case()
    async def test_consumers_share(self, context: CaseContext) -> None:
        """Two consumers of one group handle each message once between them."""
        async with Worker(context) as first, Worker(context) as second:
            sent = await context.spread(20)
            await first.until(lambda: len(first.seen) + len(second.seen) >= 20, "20 calls")
            await asyncio.sleep(context.harness.quiet)
        exactly([*first.seen, *second.seen], sent, "what both were called with")

    @case("groups")
    async def test_consumers_of_two_groups(self, context: CaseContext) -> None:
        """Consumers of two groups each handle everything."""
        async with Worker(context, group="a") as first, Worker(context, group="b") as second:
            sent = await context.send(5)
            await first.processed(5)
            await second.processed(5)
        exactly(first.seen, sent, "what group a handled")
        exactly(second.seen, sent, "what group b handled")

    @case("keys=consumer")
    async def test_consumer_filters_keys(self, context: CaseContext) -> None:
        """A consumer with keys handles only those that match; the others stay for its group."""
        for n in range(6):
            await context.publish({"n": n}, "b.x" if n % 2 else "a.x")
        async with Worker(context, keys=["a.*"]) as worker:
            await worker.processed(3)
        exactly(worker.seen, [{"n": n} for n in (0, 2, 4)], "what keys=['a.*'] handled")
        await context.collect([{"n": n} for n in (1, 3, 5)], what="what it left for others")

    # -- stopping --------------------------------------------------------------------------

    @case()
    async def test_shutdown_waits_for_handlers(self, context: CaseContext) -> None:
        """shutdown() lets the handler in flight finish, acks its message and calls no more."""
        sent = await context.send(3)
        finish = asyncio.Event()

        async def work(message: Message) -> None:
            await finish.wait()

        async with Worker(context, work) as worker:
            await worker.called(1)
            stopping = asyncio.create_task(worker.consumer.shutdown())
            await asyncio.sleep(0.01)
            check(not stopping.done(), "shutdown() returned while a handler was running")
            finish.set()
            await context.within(stopping, "shutdown() to return once the handler has finished")
        check(worker.consumer.processed == 1, f"processed is {worker.consumer.processed}, not 1")
        check(len(worker.seen) == 1, f"the handler was called {len(worker.seen)} times")
        if context.can.redelivery != "none":
            await context.let_unsettled_return()
            rest = [payload for payload in sent if payload != worker.seen[0]]
            await context.collect(rest, what="all but the one handled during shutdown()")

    @case("redelivery")
    async def test_cancelled_run_loses_nothing(self, context: CaseContext) -> None:
        """Cancelling run() while a handler works leaves its message, and all others, for later."""
        sent = await context.send(3)

        async def work(message: Message) -> None:
            await asyncio.Event().wait()

        worker = Worker(context, work)
        await worker.__aenter__()
        await worker.called(1)
        assert worker.task is not None
        worker.task.cancel()
        await context.within(asyncio.wait({worker.task}), "run() to end once cancelled")
        await context.let_unsettled_return()
        again = await context.collect(sent, what="all, because nothing was finished")
        if context.can.attempts == "exact" and context.can.release:
            attempts = sorted(message.attempt for message in again)
            check(attempts == [1, 1, 1], f"cancellation is no failure, but attempts: {attempts}")

    @case("redelivery", hooks=["cut_connections"], limit=8.0)
    async def test_consumer_survives_cut(self, context: CaseContext) -> None:
        """After its connection was cut, a consumer goes on handling by itself."""
        async with Worker(context) as worker:
            await context.send(2)
            await worker.processed(2)
            await context.hook("cut_connections")
            await context.publish_until_accepted({"n": 2})
            await worker.until(lambda: any(m["n"] == 2 for m in worker.seen), "message 2")

    # -- load ------------------------------------------------------------------------------

    @case(limit=12.0)
    async def test_consumers_under_load(self, context: CaseContext) -> None:
        """Under load, with handlers that fail at random, every message is handled once."""
        dice = random.Random(11)
        sent = [{"n": n} for n in range(self.stress_messages // 2)]

        async def work(message: Message) -> None:
            await asyncio.sleep(0)
            if dice.random() < 0.1:
                raise ValueError("bad luck")

        done: list[Message] = []

        async def record(message: Message) -> None:
            await work(message)
            done.append(message)

        policy = RetryPolicy(max_attempts=50, base=0.001, factor=1, jitter=False)
        async with (
            Worker(context, record, concurrency=4, retry=policy) as first,
            Worker(context, record, concurrency=4, retry=policy) as second,
        ):
            for payload in sent:
                await context.backend.publish(f"key.{payload['n'] % 16}", payload)
            for eighth in range(1, 9):  # each wait is limited by the harness's patience
                goal = len(sent) * eighth // 8
                await first.until(partial(_at_least, done, goal), f"{goal} messages handled")
            await asyncio.sleep(context.harness.quiet)
        exactly(done, sent, f"what was handled by {len(first.seen) + len(second.seen)} calls")


def _at_least(done: list[Message], goal: int) -> bool:
    return len(done) >= goal
