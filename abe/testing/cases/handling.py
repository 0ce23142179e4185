"""The same backend, driven through `AsyncLoopConsumer`: what becomes of a handler's messages."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Self

from abe.backends.message_queue.base import Message, SyncMessage
from abe.backends.message_queue.consumer import AsyncLoopConsumer, RetryPolicy
from abe.errors import ConfigurationError, Reject, Retry
from abe.testing.base import ContractBase
from abe.testing.case import case
from abe.testing.context import CaseContext
from abe.testing.expect import check, exactly, only, refused, same
from abe.types import ConsumerGroup

__all__ = ["HandlingCases", "Worker"]

Behaviour = Callable[[Message], Awaitable[object]]


class Worker:
    """A consumer running in a task of its own, with a handler that records what it was given.

    Args:
        context: The context.
        behave: What the handler does after recording; ``None`` to return at once.
        group: The consumer group.
        options: For `AsyncLoopConsumer`.
    """

    def __init__(
        self,
        context: CaseContext,
        behave: Behaviour | None = None,
        group: ConsumerGroup = None,
        **options: Any,
    ) -> None:
        options.setdefault("retry", RetryPolicy(max_attempts=4, base=0.01, factor=1, jitter=False))
        options.setdefault("drain_timeout", context.harness.patience / 2)
        self.context = context
        self.consumer = AsyncLoopConsumer(context.backend, group, **options)
        self.seen: list[Message] = []
        self.attempts: list[int] = []
        """The attempt at the time of each call: a retry in process counts it up in place."""
        self.task: asyncio.Task[None] | None = None
        self._behave = behave
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(self.consumer.run(self._handle))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Shut down and wait for the end."""
        assert self.task is not None
        await self.context.within(self.consumer.shutdown(), "shutdown() of the consumer")
        await self.context.within(self.task, "run() to return after shutdown()")

    async def _handle(self, message: Message) -> None:
        self.seen.append(message)
        self.attempts.append(message.attempt)
        self._changed.set()
        if self._behave is not None:
            await self._behave(message)

    async def until(self, done: Callable[[], bool], what: str) -> None:
        """Wait until ``done()``; fails at once if the consumer has ended meanwhile."""
        deadline = time.monotonic() + self.context.harness.patience
        while not done():
            assert self.task is not None
            if self.task.done():
                await self.task
                raise AssertionError(f"run() returned while waiting for {what}")
            left = deadline - time.monotonic()
            if left <= 0:
                seen = [dict(message) for message in self.seen[-10:]]
                raise AssertionError(
                    f"waited {self.context.harness.patience:g} s for {what}; the handler was "
                    f"called {len(self.seen)} times, last with {seen}; {self.context.account()}"
                )
            self._changed.clear()
            # Counters change after the handler has returned, which sets no event.
            await asyncio.wait(
                [self.task, waiting := asyncio.ensure_future(self._changed.wait())],
                timeout=min(left, 0.02),
                return_when=asyncio.FIRST_COMPLETED,
            )
            waiting.cancel()

    async def called(self, times: int, what: str = "") -> None:
        """Wait until the handler has been called so often."""
        await self.until(lambda: len(self.seen) >= times, what or f"{times} calls of the handler")

    async def processed(self, count: int) -> None:
        """Wait until so many messages were handled successfully."""
        await self.until(lambda: self.consumer.processed >= count, f"{count} messages handled")


class _HandlerObject:
    """A handler with a method, as applications write them."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.changed = asyncio.Event()

    async def handle_event(self, event: dict[str, Any]) -> None:
        self.seen.append(event)
        self.changed.set()


class HandlingCases(ContractBase):
    """Returning, failing, rejecting, retrying."""

    @case()
    async def test_consumer_handles_everything(self, context: CaseContext) -> None:
        """A handler that returns is called once for each message."""
        sent = await context.send(10)
        async with Worker(context) as worker:
            await worker.processed(10)
        exactly(worker.seen, sent, "what the handler was called with")

    @case("redelivery")
    async def test_consumer_acks_what_is_handled(self, context: CaseContext) -> None:
        """A message whose handler has returned is acked and never delivered again."""
        await context.send(5)
        async with Worker(context) as worker:
            await worker.processed(5)
        await context.let_unsettled_return()
        await context.collect([], what="after all were handled")

    @case()
    async def test_consumer_tries_failures_again(self, context: CaseContext) -> None:
        """A handler that raises is called again with the same message until it succeeds."""
        sent = await context.send(3)

        async def fail_twice(message: Message) -> None:
            if message["n"] == 1 and worker.consumer.failed < 2:
                raise ValueError("not yet")

        async with Worker(context, fail_twice) as worker:
            await worker.processed(3)
            await worker.called(5)
        counts = [sum(m["n"] == n for m in worker.seen) for n in range(3)]
        check(counts == [1, 3, 1], f"calls for each of {sent}: {counts}, with one failing twice")

    @case("attempts=exact", "redelivery")
    async def test_consumer_tells_attempts(self, context: CaseContext) -> None:
        """The handler sees attempts 1, 2, 3 while it fails."""
        await context.send(1)

        async def fail_twice(message: Message) -> None:
            if message.attempt < 3:
                raise ValueError("not yet")

        async with Worker(context, fail_twice) as worker:
            await worker.processed(1)
        check(worker.attempts == [1, 2, 3], f"attempts were {worker.attempts}")

    @case("redelivery", "nack_delay")
    async def test_consumer_waits_before_retrying(self, context: CaseContext) -> None:
        """A handler that raises Retry(delay=…) is called again after that time at the earliest."""
        await context.send(1)
        delay = min(context.harness.short_delay, context.can.nack_delay)
        moments: list[float] = []

        async def ask_once(message: Message) -> None:
            moments.append(time.monotonic())
            if len(moments) == 1:
                raise Retry(delay=delay)

        async with Worker(context, ask_once) as worker:
            await worker.processed(1)
        waited = moments[1] - moments[0]
        check(waited >= delay - 0.02, f"called again after {waited:.3f} s, not {delay:g} s")

    @case("redelivery=message")
    async def test_consumer_goes_on_beside_poison(self, context: CaseContext) -> None:
        """A message whose handler always raises keeps no other message from being handled."""
        await context.publish({"poison": True}, "poison")
        sent = await context.send(8)

        async def refuse_poison(message: Message) -> None:
            if "poison" in message:
                raise ValueError("poison")

        policy = RetryPolicy(max_attempts=50, base=0.05, factor=1, jitter=False)
        async with Worker(context, refuse_poison, concurrency=2, retry=policy) as worker:
            await worker.processed(8)
        healthy = [message for message in worker.seen if "poison" not in message]
        exactly(healthy, sent, "the messages beside the poisonous one")

    @case("redelivery")
    async def test_consumer_leaves_settling_to_handlers(self, context: CaseContext) -> None:
        """A handler that has settled its message itself has the last word."""
        await context.send(1)

        async def nack_once(message: Message) -> None:
            if len(worker.seen) == 1:
                await message.nack()

        async with Worker(context, nack_once) as worker:
            await worker.called(2, "the message that its handler has nacked")

    @case()
    async def test_consumer_runs_sync_handlers(self, context: CaseContext) -> None:
        """A plain function is called in another thread, with messages that block on settling."""
        sent = await context.send(3)
        seen: list[tuple[object, str, dict[str, Any]]] = []

        settled: list[bool] = []
        loop, all_seen = asyncio.get_running_loop(), asyncio.Event()

        def handle(message: SyncMessage) -> None:
            seen.append((type(message), threading.current_thread().name, dict(message)))
            if context.declared:
                settled.append(message.ack())
            if len(seen) == 3:
                loop.call_soon_threadsafe(all_seen.set)

        here = threading.current_thread().name
        consumer = AsyncLoopConsumer(context.backend, drain_timeout=context.harness.patience / 2)
        task = asyncio.create_task(consumer.run(handle))
        await context.within(all_seen.wait(), "three calls of a plain function")
        await context.within(consumer.shutdown(), "shutdown() of the consumer")
        await context.within(task, "run() to return after shutdown()")
        exactly([payload for _, _, payload in seen], sent, "what the function was called with")
        check(all(settled), f"ack() of unsettled messages returned {settled}")
        check(all(kind is SyncMessage for kind, _, _ in seen), f"it was called with {seen[0][0]}")
        check(all(thread != here for _, thread, _ in seen), "it was called on the loop's thread")

    @case()
    async def test_consumer_runs_handler_objects(self, context: CaseContext) -> None:
        """An object with handle_event() is a handler."""
        sent = await context.send(1)
        handler = _HandlerObject()
        consumer = AsyncLoopConsumer(context.backend, drain_timeout=context.harness.patience / 2)
        task = asyncio.create_task(consumer.run(handler))
        await context.within(handler.changed.wait(), "handle_event() to be called")
        await context.within(consumer.shutdown(), "shutdown() of the consumer")
        await context.within(task, "run() to return after shutdown()")
        exactly(handler.seen, sent, "what handle_event() was called with")

    # -- giving up -------------------------------------------------------------------------

    @case("reject")
    async def test_consumer_rejects(self, context: CaseContext) -> None:
        """A handler that raises Reject is not called again with that message."""
        sent = await context.send(2)

        async def reject_first(message: Message) -> None:
            if message["n"] == 0:
                raise Reject("never again")

        async with Worker(context, reject_first) as worker:
            await worker.processed(1)
            await worker.until(lambda: worker.consumer.dead == 1, "one message given up")
        exactly(worker.seen, sent, "what the handler was called with")
        await context.let_unsettled_return()
        await context.collect([], what="after one was handled and one rejected")

    @case("reject", "dead_letters")
    async def test_consumer_gives_reasons(self, context: CaseContext) -> None:
        """The text of Reject is the reason of the dead letter."""
        await context.send(1)

        async def reject(message: Message) -> None:
            raise Reject("no such customer")

        async with Worker(context, reject) as worker:
            await worker.until(lambda: worker.consumer.dead == 1, "one message given up")
        listed = await context.within(context.backend.dead_letters(), "dead_letters()")
        reason = only(listed, "dead_letters()").headers.get("abe-dead-reason")
        check(reason == "no such customer", f"the reason is {reason!r}")

    @case("reject", "dead_letters", "redelivery")
    async def test_consumer_gives_up(self, context: CaseContext) -> None:
        """After max_attempts failures a message is a dead letter that tells error and attempts."""
        sent = await context.send(1)

        async def fail(message: Message) -> None:
            raise ZeroDivisionError("by nothing")

        async with Worker(context, fail) as worker:
            await worker.until(lambda: worker.consumer.dead == 1, "one message given up")
        if context.can.attempts != "upper":
            check(len(worker.seen) == 4, f"max_attempts=4, but {len(worker.seen)} calls")
        listed = await context.within(context.backend.dead_letters(), "dead_letters()")
        dead = only(listed, "dead_letters()")
        same(dead, sent[0], "payload of the dead letter")
        reason = dead.headers.get("abe-dead-reason", "")
        check(reason == "ZeroDivisionError: by nothing", f"the reason is {reason!r}")
        check("fail" in dead.headers.get("abe-dead-traceback", ""), "it has no traceback")
        if context.can.attempts == "exact":
            attempts = dead.headers.get("abe-dead-attempts")
            check(attempts == "4", f"its attempts are {attempts!r}, not '4'")

    @case("!reject", "groups")
    async def test_own_dead_letters_are_refused(self, context: CaseContext) -> None:
        """A dead_letter_key that the consumer's own group would receive is refused at run()."""

        async def ignore(message: Message) -> None: ...

        consumer = AsyncLoopConsumer(context.backend, "a", dead_letter_key="failed")
        with refused("run() with such a dead_letter_key", ConfigurationError, naming="failed"):
            await context.within(consumer.run(ignore), "run() to refuse its dead_letter_key")

    @case("!reject", "groups", "keys")
    async def test_consumer_publishes_what_it_gives_up(self, context: CaseContext) -> None:
        """Without the capability reject, what is given up goes to the dead_letter_key."""
        async with context.stream("b") as watcher:
            sent = await context.send(1)

            async def fail(message: Message) -> None:
                raise ZeroDivisionError("by nothing")

            async with Worker(
                context, fail, "a", keys="orders", dead_letter_key="failed"
            ) as worker:
                await worker.until(lambda: worker.consumer.dead == 1, "one message given up")
                both = [*sent, *sent]
                arrived = await context.expect(
                    watcher, both, what="the message and its dead letter"
                )
            keys = [message.key for message in arrived]
            check(sorted(map(str, keys)) == ["failed", "orders"], f"their keys are {keys}")
            check({m.key for m in worker.seen} == {"orders"}, "its own dead letter was handled")
