"""Settlement: what is acked is gone, and everything else comes back."""

from __future__ import annotations

import asyncio

from abe.backends.message_queue.base import Message, Outcome
from abe.testing.base import ContractBase
from abe.testing.case import case
from abe.testing.context import CaseContext
from abe.testing.expect import check, exactly, same

__all__ = ["SettlingCases"]


class _Boom(Exception):
    """Raised by a loop body."""


class SettlingCases(ContractBase):
    """Ack and nack, and what happens without either."""

    @case("redelivery")
    async def test_resume_acks(self, context: CaseContext) -> None:
        """Asking for the next message acks the one before, which is never delivered again."""
        sent = await context.send(3)
        async with context.stream() as stream:
            for _ in range(3):
                await context.next(stream)
            await context.leave(stream)
        await context.let_unsettled_return()
        await context.collect(sent[2:], what="the one message that was not resumed over")

    @case("redelivery")
    async def test_ack_is_final(self, context: CaseContext) -> None:
        """A message that was acked is not delivered again after a break."""
        await context.send(1)
        async with context.stream() as stream:
            message = await context.next(stream)
            check(await message.ack(), "ack() of an unsettled message should return True")
            await context.leave(stream)
        await context.let_unsettled_return()
        await context.collect([], what="after the only message was acked")

    @case("redelivery")
    async def test_break_redelivers(self, context: CaseContext) -> None:
        """A break out of the loop acks nothing: the message in hand comes again."""
        sent = await context.send(2)
        async with context.stream() as stream:
            async for _ in stream:
                break
            await context.leave(stream)
        await context.let_unsettled_return()
        await context.collect(sent, what="all, because none was finished before the break")

    @case("redelivery")
    async def test_exception_redelivers(self, context: CaseContext) -> None:
        """An exception in the loop body acks nothing: the message in hand comes again."""
        sent = await context.send(2)
        try:
            async with context.stream() as stream:
                async for _ in stream:
                    raise _Boom
        except _Boom:
            pass
        await context.let_unsettled_return()
        await context.collect(sent, what="all, because the body of the loop raised")

    @case("redelivery")
    async def test_cancellation_redelivers(self, context: CaseContext) -> None:
        """A consumer cancelled in the loop body acks nothing: the message in hand comes again."""
        sent = await context.send(2)
        working = asyncio.Event()

        async def consume() -> None:
            async with context.stream() as stream:
                async for _ in stream:
                    working.set()
                    await asyncio.Event().wait()

        task = asyncio.create_task(consume())
        await context.within(working.wait(), "the first message, in the loop to be cancelled")
        task.cancel()
        await context.within(asyncio.wait({task}), "the cancelled consumer to end")
        await context.let_unsettled_return()
        await context.collect(sent, what="all, because the consumer was cancelled")

    @case("redelivery")
    async def test_nack_redelivers(self, context: CaseContext) -> None:
        """A nacked message is delivered again, equal to what was published."""
        (sent,) = await context.send(1)
        async with context.stream() as stream:
            message = await context.next(stream)
            check(await message.nack(), "nack() of an unsettled message should return True")
            again = await context.next(stream, "the nacked message to come again")
            same(again, sent, "payload of the redelivery")

    @case("redelivery")
    async def test_nack_then_resume_is_no_ack(self, context: CaseContext) -> None:
        """Asking for more after an explicit nack does not ack the nacked message."""
        sent = await context.send(2)
        arrived: list[Message] = []
        async with context.stream() as stream:
            first = await context.next(stream)
            await first.nack()
            while len(arrived) < 2:
                arrived.append(await context.next(stream, "both, the nacked message among them"))
        exactly(arrived, sent, "what came after the nack")

    @case("redelivery")
    async def test_first_settlement_wins(self, context: CaseContext) -> None:
        """Settling again alike returns True; differently it returns False and changes nothing."""
        await context.send(2)
        async with context.stream(prefetch=1) as stream:
            acked = await context.next(stream)
            check(await acked.ack(), "the first ack() should return True")
            check(await acked.ack(), "a second ack() should return True as well")
            check(not await acked.nack(), "nack() after ack() should return False")
            nacked = await context.next(stream)
            check(await nacked.nack(), "the first nack() should return True")
            check(not await nacked.ack(), "ack() after nack() should return False")
            again = await context.next(stream, "the message that was nacked first")
            same(again, nacked, "the message that came again")
            await context.nothing(stream, "the other message was acked first")

    @case("redelivery")
    async def test_acks_out_of_order(self, context: CaseContext) -> None:
        """Acking later messages does not ack an earlier one that is still unsettled."""
        sent = await context.spread(4)
        async with context.stream() as stream:
            taken = []
            for _ in sent:
                message = await context.next(stream)
                message.detach()
                taken.append(message)
            for message in taken[1:]:
                await message.ack()
            await context.flush(stream)
            if context.can.release:
                await taken[0].release()
        await context.let_unsettled_return()
        async with context.stream() as stream:
            again = await context.next(stream, "the message that was never acked")
            same(again, taken[0], "what came again")

    @case("redelivery")
    async def test_detached_is_its_owners(self, context: CaseContext) -> None:
        """Asking for more does not ack a detached message: only its new owner settles it."""
        await context.spread(2)
        async with context.stream(prefetch=1) as stream:
            first = await context.next(stream)
            first.detach()
            await context.next(stream)
            check(first.outcome is None, f"the detached message was settled: {first.outcome}")
            check(await first.nack(), "its owner's nack() should return True")
            again = await context.next(stream, "the detached message, nacked by its owner")
            same(again, first, "what came again")

    @case("redelivery=message")
    async def test_failures_do_not_block(self, context: CaseContext) -> None:
        """Messages that fail now and then all arrive in the end, and each is done once."""
        sent = await context.spread(30)
        done: list[Message] = []
        failures: dict[int, int] = {}
        async with context.stream() as stream:
            while len(done) < len(sent):
                message = await context.next(stream, f"message {len(done) + 1} of {len(sent)}")
                n = message["n"]
                if n % 3 == 0 and failures.get(n, 0) < 2:
                    failures[n] = failures.get(n, 0) + 1
                    await message.nack()
                else:
                    done.append(message)
            await context.nothing(stream, "every message was done")
        exactly(done, sent, "what was done, with every third message failing twice")

    @case("redelivery", limit=6.0)
    async def test_many_unsettled_at_once(self, context: CaseContext) -> None:
        """A consumer may hold many messages unsettled, and settle each when it likes."""
        sent = await context.spread(100)
        async with context.stream() as stream:
            held = []
            for n in range(len(sent)):
                message = await context.next(stream, f"message {n + 1} while {n} are unsettled")
                message.detach()
                held.append(message)
            exactly(held, sent, "what was held at the same time")
            for message in reversed(held):
                check(await message.ack(), "ack() of a held message should return True")
            await context.flush(stream)
            outcomes = {message.outcome for message in held}
            check(outcomes == {Outcome.ACK}, f"outcomes after acking all: {outcomes}")
        await context.collect([], what="after all were acked")
