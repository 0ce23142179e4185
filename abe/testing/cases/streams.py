"""Streams: waiting, taking, stopping, and what is given back."""

from __future__ import annotations

import asyncio
import gc
import warnings

from abe.backends.message_queue.base import Outcome
from abe.testing.base import ContractBase
from abe.testing.case import case
from abe.testing.expect import check, exactly, same
from abe.testing.trial import Trial

__all__ = ["StreamCases"]


class _Boom(Exception):
    """Raised by a block."""


class StreamCases(ContractBase):
    """What a stream does when its caller waits, gives up, or leaves."""

    @case()
    async def test_timed_out_wait_loses_nothing(self, trial: Trial) -> None:
        """A timeout around the next message leaves the stream usable and loses no message."""
        arrived = []
        sent = []
        async with trial.stream() as stream:
            for n in range(20):
                # The shortest time-outs race with the arrival, in both directions.
                publishing = asyncio.create_task(trial.send(1, start=n))
                try:
                    async with asyncio.timeout(0.0005 * (n % 5)):
                        arrived.append(await anext(stream))
                except TimeoutError:
                    pass
                sent += await trial.within(publishing, "publish()")
            while len(arrived) < len(sent):
                arrived.append(await trial.next(stream, "what arrived while nobody waited"))
            await trial.nothing(stream, "everything has arrived")
        exactly(arrived, sent, "what arrived around time-outs")

    @case()
    async def test_take_returns_what_came(self, trial: Trial) -> None:
        """take(n, timeout) returns at the timeout with what there is, and loses none of it."""
        sent = await trial.spread(2)
        async with trial.stream() as stream:
            patience = trial.harness.patience
            first = await trial.within(stream.take(1, timeout=patience), "take(1)", patience + 2)
            rest = await trial.within(
                stream.take(5, timeout=max(0.3, trial.harness.quiet)), "take(5, timeout=…)"
            )
        exactly([*first, *rest], sent, "what take() returned")

    @case("redelivery")
    async def test_take_acks_on_clean_exit(self, trial: Trial) -> None:
        """What take() returned is acked by leaving the async with block without an exception."""
        sent = await trial.spread(3)
        async with trial.stream() as stream:
            exactly(await trial.take(stream, 3), sent, "what take(3) returned")
        await trial.let_unsettled_return()
        await trial.collect([], what="after a clean exit acked what take() returned")

    @case("redelivery")
    async def test_take_gives_back_on_exception(self, trial: Trial) -> None:
        """What take() returned comes again if the async with block is left by an exception."""
        sent = await trial.spread(3)
        try:
            async with trial.stream() as stream:
                await trial.take(stream, 3)
                raise _Boom
        except _Boom:
            pass
        await trial.let_unsettled_return()
        await trial.collect(sent, what="all, because the block raised")

    @case()
    async def test_cancelled_take_puts_back(self, trial: Trial) -> None:
        """A cancelled take() loses none of the messages that it had received."""
        sent = await trial.spread(3)
        async with trial.stream() as stream:
            taking = asyncio.create_task(stream.take(5))
            await asyncio.wait({taking}, timeout=max(0.1, trial.harness.quiet))
            check(not taking.done(), "take(5) returned although only 3 messages were published")
            taking.cancel()
            await asyncio.wait({taking})
            await trial.expect(stream, sent, what="all, after take() was cancelled")

    @case("redelivery")
    async def test_unread_puts_back(self, trial: Trial) -> None:
        """unread(message) puts the message in hand back: the next request yields it again."""
        sent = await trial.send(2)
        async with trial.stream() as stream:
            message = await trial.next(stream)
            check(stream.unread(message), "unread() of the message in hand should return True")
            again = await trial.next(stream)
            check(again.id == message.id, f"after unread(), {again!r} came instead of {message!r}")
            rest = await trial.next(stream)
            exactly([again, rest], sent, "what came after unread()")

    @case()
    async def test_closing_ends_a_waiting_consumer(self, trial: Trial) -> None:
        """Closing a stream ends the loop of a task that waits for its next message."""
        async with trial.stream() as stream:
            waiting = asyncio.ensure_future(anext(stream, None))
            await asyncio.sleep(0)
            await trial.leave(stream)
            ended = await trial.within(waiting, "a waiting consumer to end once closed")
            check(ended is None, f"the waiting consumer got {ended!r} instead of the end")
            after = await trial.within(anext(stream, None), "the end of a closed stream")
            check(after is None, f"a closed stream yielded {after!r}")

    @case("release", "redelivery=message")
    async def test_close_gives_back_what_was_ahead(self, trial: Trial) -> None:
        """Messages received ahead and never asked for are free for others once closed."""
        sent = await trial.spread(30)
        async with trial.stream() as first:
            for _ in range(12):
                await trial.next(first)
            await trial.leave(first)
        rest = await trial.collect(sent[11:], what="all but the 11 that were resumed over")
        attempts = {message.attempt for message in rest}
        if trial.can.attempts == "exact":
            check(attempts == {1}, f"nobody has worked on them, but attempts are {attempts}")

    @case("release")
    async def test_release_is_for_another(self, trial: Trial) -> None:
        """A released message is delivered at once to another consumer of the group."""
        (sent,) = await trial.send(1)
        async with trial.stream(prefetch=1) as first, trial.stream(prefetch=1) as second:
            message = await trial.next(first)
            await trial.nothing(second, "the only message is in the hands of another consumer")
            waiting = asyncio.ensure_future(anext(second))
            await asyncio.sleep(0)
            check(await message.release(), "release() of an unsettled message returns True")
            again = await trial.within(waiting, "the released message, at another consumer")
            same(again, sent, "the released message")

    @case("release")
    async def test_closed_stream_settles_nothing(self, trial: Trial) -> None:
        """What closing a stream has released can no longer be acked through the old message."""
        sent = await trial.send(1)
        async with trial.stream() as stream:
            message = await trial.next(stream)
            await trial.leave(stream)
        check(not await message.ack(), "ack() returned True although closing released the message")
        await trial.collect(sent, what="what closing released")

    @case("release")
    async def test_dropped_stream_gives_back(self, trial: Trial) -> None:
        """A stream dropped with a message in hand warns, and the message comes back."""
        sent = await trial.send(2)
        stream = trial.open()
        await trial.next(stream)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trial.forget(stream)
            del stream
            gc.collect()
        kinds = [warning.category for warning in caught]
        check(ResourceWarning in kinds, f"no ResourceWarning was given, only {kinds}")
        await trial.collect(sent, what="both, because the stream was dropped")

    @case("redelivery=message")
    async def test_prefetch_of_one_holds_one(self, trial: Trial) -> None:
        """A consumer with prefetch=1 holds no message beside the one in its hands."""
        sent = await trial.spread(5)
        async with trial.stream(prefetch=1) as first, trial.stream(prefetch=1) as second:
            held = await trial.next(first)
            others = [payload for payload in sent if payload != held]
            await trial.expect(second, others, what="all but the one in the other's hands")
            check(await held.ack(), "the held message can still be acked")
            await trial.flush(first)
            check(held.outcome is Outcome.ACK, f"its outcome is {held.outcome}")

    @case("release", "redelivery=message", "attempts=exact")
    async def test_suspect_is_held_alone(self, trial: Trial) -> None:
        """Beside a message on its third attempt, a consumer holds no other message back."""
        await trial.publish({"suspect": True})
        async with trial.stream() as first, trial.stream(prefetch=1) as second:
            for attempt in (1, 2):
                message = await trial.next(first, f"the suspect, attempt {attempt}")
                await message.nack()
            await trial.next(first, "the suspect, attempt 3")
            sent = await trial.spread(4)
            await trial.expect(second, sent, what="all that is not suspect")
