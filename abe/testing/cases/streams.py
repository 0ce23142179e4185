"""Streams: waiting, taking, stopping, and what is given back."""

from __future__ import annotations

import asyncio
import gc
import warnings

from abe.backends.message_queue.base import Outcome
from abe.testing.base import ContractBase
from abe.testing.case import case
from abe.testing.context import CaseContext
from abe.testing.expect import check, exactly, same

__all__ = ["StreamCases"]


class _Boom(Exception):
    """Raised by a block."""


class StreamCases(ContractBase):
    """What a stream does when its caller waits, gives up, or leaves."""

    @case()
    async def test_timed_out_wait_loses_nothing(self, context: CaseContext) -> None:
        """A timeout around the next message leaves the stream usable and loses no message."""
        arrived = []
        sent = []
        async with context.stream() as stream:
            for n in range(20):
                # The shortest time-outs race with the arrival, in both directions.
                publishing = asyncio.create_task(context.send(1, start=n))
                try:
                    async with asyncio.timeout(0.0005 * (n % 5)):
                        arrived.append(await anext(stream))
                except TimeoutError:
                    pass
                sent += await context.within(publishing, "publish()")
            while len(arrived) < len(sent):
                arrived.append(await context.next(stream, "what arrived while nobody waited"))
            await context.nothing(stream, "everything has arrived")
        exactly(arrived, sent, "what arrived around time-outs")

    @case()
    async def test_take_returns_what_came(self, context: CaseContext) -> None:
        """take(n, timeout) returns at the timeout with what there is, and loses none of it."""
        sent = await context.spread(2)
        async with context.stream() as stream:
            patience = context.harness.patience
            first = await context.within(stream.take(1, timeout=patience), "take(1)", patience + 2)
            rest = await context.within(
                stream.take(5, timeout=max(0.3, context.harness.quiet)), "take(5, timeout=…)"
            )
        exactly([*first, *rest], sent, "what take() returned")

    @case("redelivery")
    async def test_take_acks_on_clean_exit(self, context: CaseContext) -> None:
        """What take() returned is acked by leaving the async with block without an exception."""
        sent = await context.spread(3)
        async with context.stream() as stream:
            exactly(await context.take(stream, 3), sent, "what take(3) returned")
        await context.let_unsettled_return()
        await context.collect([], what="after a clean exit acked what take() returned")

    @case("redelivery")
    async def test_take_gives_back_on_exception(self, context: CaseContext) -> None:
        """What take() returned comes again if the async with block is left by an exception."""
        sent = await context.spread(3)
        try:
            async with context.stream() as stream:
                await context.take(stream, 3)
                raise _Boom
        except _Boom:
            pass
        await context.let_unsettled_return()
        await context.collect(sent, what="all, because the block raised")

    @case()
    async def test_cancelled_take_puts_back(self, context: CaseContext) -> None:
        """A cancelled take() loses none of the messages that it had received."""
        sent = await context.spread(3)
        async with context.stream() as stream:
            taking = asyncio.create_task(stream.take(5))
            await asyncio.wait({taking}, timeout=max(0.1, context.harness.quiet))
            check(not taking.done(), "take(5) returned although only 3 messages were published")
            taking.cancel()
            await asyncio.wait({taking})
            await context.expect(stream, sent, what="all, after take() was cancelled")

    @case("redelivery")
    async def test_unread_puts_back(self, context: CaseContext) -> None:
        """unread(message) puts the message in hand back: the next request yields it again."""
        sent = await context.send(2)
        async with context.stream() as stream:
            message = await context.next(stream)
            check(stream.unread(message), "unread() of the message in hand should return True")
            again = await context.next(stream)
            check(again.id == message.id, f"after unread(), {again!r} came instead of {message!r}")
            rest = await context.next(stream)
            exactly([again, rest], sent, "what came after unread()")

    @case()
    async def test_closing_ends_a_waiting_consumer(self, context: CaseContext) -> None:
        """Closing a stream ends the loop of a task that waits for its next message."""
        async with context.stream() as stream:
            waiting = asyncio.ensure_future(anext(stream, None))
            await asyncio.sleep(0)
            await context.leave(stream)
            ended = await context.within(waiting, "a waiting consumer to end once closed")
            check(ended is None, f"the waiting consumer got {ended!r} instead of the end")
            after = await context.within(anext(stream, None), "the end of a closed stream")
            check(after is None, f"a closed stream yielded {after!r}")

    @case("release", "redelivery=message")
    async def test_close_gives_back_what_was_ahead(self, context: CaseContext) -> None:
        """Messages received ahead and never asked for are free for others once closed."""
        sent = await context.spread(30)
        async with context.stream() as first:
            for _ in range(12):
                await context.next(first)
            await context.leave(first)
        rest = await context.collect(sent[11:], what="all but the 11 that were resumed over")
        attempts = {message.attempt for message in rest}
        if context.can.attempts == "exact":
            check(attempts == {1}, f"nobody has worked on them, but attempts are {attempts}")

    @case("release")
    async def test_release_is_for_another(self, context: CaseContext) -> None:
        """A released message is delivered at once to another consumer of the group."""
        (sent,) = await context.send(1)
        async with context.stream(prefetch=1) as first, context.stream(prefetch=1) as second:
            message = await context.next(first)
            await context.nothing(second, "the only message is in the hands of another consumer")
            waiting = asyncio.ensure_future(anext(second))
            await asyncio.sleep(0)
            check(await message.release(), "release() of an unsettled message returns True")
            again = await context.within(waiting, "the released message, at another consumer")
            same(again, sent, "the released message")

    @case("release")
    async def test_closed_stream_settles_nothing(self, context: CaseContext) -> None:
        """What closing a stream has released can no longer be acked through the old message."""
        sent = await context.send(1)
        async with context.stream() as stream:
            message = await context.next(stream)
            await context.leave(stream)
        check(not await message.ack(), "ack() returned True although closing released the message")
        await context.collect(sent, what="what closing released")

    @case("release")
    async def test_dropped_stream_gives_back(self, context: CaseContext) -> None:
        """A stream dropped with a message in hand warns, and the message comes back."""
        sent = await context.send(2)
        stream = context.open()
        await context.next(stream)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            context.forget(stream)
            del stream
            gc.collect()
        kinds = [warning.category for warning in caught]
        check(ResourceWarning in kinds, f"no ResourceWarning was given, only {kinds}")
        await context.collect(sent, what="both, because the stream was dropped")

    @case("redelivery=message")
    async def test_prefetch_of_one_holds_one(self, context: CaseContext) -> None:
        """A consumer with prefetch=1 holds no message beside the one in its hands."""
        sent = await context.spread(5)
        async with context.stream(prefetch=1) as first, context.stream(prefetch=1) as second:
            held = await context.next(first)
            others = [payload for payload in sent if payload != held]
            await context.expect(second, others, what="all but the one in the other's hands")
            check(await held.ack(), "the held message can still be acked")
            await context.flush(first)
            check(held.outcome is Outcome.ACK, f"its outcome is {held.outcome}")

    @case("release", "redelivery=message", "attempts=exact")
    async def test_suspect_is_held_alone(self, context: CaseContext) -> None:
        """Beside a message on its third attempt, a consumer holds no other message back."""
        await context.publish({"suspect": True})
        async with context.stream() as first, context.stream(prefetch=1) as second:
            for attempt in (1, 2):
                message = await context.next(first, f"the suspect, attempt {attempt}")
                await message.nack()
            await context.next(first, "the suspect, attempt 3")
            sent = await context.spread(4)
            await context.expect(second, sent, what="all that is not suspect")
