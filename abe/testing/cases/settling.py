"""Settlement: what is acked is gone, and everything else comes back."""

from __future__ import annotations

import asyncio

from abe.backends.message_queue.base import Message, Outcome
from abe.testing.base import ContractBase
from abe.testing.case import case
from abe.testing.expect import check, exactly, same
from abe.testing.trial import Trial

__all__ = ["SettlingCases"]


class _Boom(Exception):
    """Raised by a loop body."""


class SettlingCases(ContractBase):
    """Ack and nack, and what happens without either."""

    @case("redelivery")
    async def test_resume_acks(self, trial: Trial) -> None:
        """Asking for the next message acks the one before, which is never delivered again."""
        sent = await trial.send(3)
        async with trial.stream() as stream:
            for _ in range(3):
                await trial.next(stream)
            await trial.leave(stream)
        await trial.let_unsettled_return()
        await trial.collect(sent[2:], what="the one message that was not resumed over")

    @case("redelivery")
    async def test_ack_is_final(self, trial: Trial) -> None:
        """A message that was acked is not delivered again after a break."""
        await trial.send(1)
        async with trial.stream() as stream:
            message = await trial.next(stream)
            check(await message.ack(), "ack() of an unsettled message should return True")
            await trial.leave(stream)
        await trial.let_unsettled_return()
        await trial.collect([], what="after the only message was acked")

    @case("redelivery")
    async def test_break_redelivers(self, trial: Trial) -> None:
        """A break out of the loop acks nothing: the message in hand comes again."""
        sent = await trial.send(2)
        async with trial.stream() as stream:
            async for _ in stream:
                break
            await trial.leave(stream)
        await trial.let_unsettled_return()
        await trial.collect(sent, what="all, because none was finished before the break")

    @case("redelivery")
    async def test_exception_redelivers(self, trial: Trial) -> None:
        """An exception in the loop body acks nothing: the message in hand comes again."""
        sent = await trial.send(2)
        try:
            async with trial.stream() as stream:
                async for _ in stream:
                    raise _Boom
        except _Boom:
            pass
        await trial.let_unsettled_return()
        await trial.collect(sent, what="all, because the body of the loop raised")

    @case("redelivery")
    async def test_cancellation_redelivers(self, trial: Trial) -> None:
        """A consumer cancelled in the loop body acks nothing: the message in hand comes again."""
        sent = await trial.send(2)
        working = asyncio.Event()

        async def consume() -> None:
            async with trial.stream() as stream:
                async for _ in stream:
                    working.set()
                    await asyncio.Event().wait()

        task = asyncio.create_task(consume())
        await trial.within(working.wait(), "the first message, in the loop to be cancelled")
        task.cancel()
        await trial.within(asyncio.wait({task}), "the cancelled consumer to end")
        await trial.let_unsettled_return()
        await trial.collect(sent, what="all, because the consumer was cancelled")

    @case("redelivery")
    async def test_nack_redelivers(self, trial: Trial) -> None:
        """A nacked message is delivered again, equal to what was published."""
        (sent,) = await trial.send(1)
        async with trial.stream() as stream:
            message = await trial.next(stream)
            check(await message.nack(), "nack() of an unsettled message should return True")
            again = await trial.next(stream, "the nacked message to come again")
            same(again, sent, "payload of the redelivery")

    @case("redelivery")
    async def test_nack_then_resume_is_no_ack(self, trial: Trial) -> None:
        """Asking for more after an explicit nack does not ack the nacked message."""
        sent = await trial.send(2)
        arrived: list[Message] = []
        async with trial.stream() as stream:
            first = await trial.next(stream)
            await first.nack()
            while len(arrived) < 2:
                arrived.append(await trial.next(stream, "both, the nacked message among them"))
        exactly(arrived, sent, "what came after the nack")

    @case("redelivery")
    async def test_first_settlement_wins(self, trial: Trial) -> None:
        """Settling again alike returns True; differently it returns False and changes nothing."""
        await trial.send(2)
        async with trial.stream(prefetch=1) as stream:
            acked = await trial.next(stream)
            check(await acked.ack(), "the first ack() should return True")
            check(await acked.ack(), "a second ack() should return True as well")
            check(not await acked.nack(), "nack() after ack() should return False")
            nacked = await trial.next(stream)
            check(await nacked.nack(), "the first nack() should return True")
            check(not await nacked.ack(), "ack() after nack() should return False")
            again = await trial.next(stream, "the message that was nacked first")
            same(again, nacked, "the message that came again")
            await trial.nothing(stream, "the other message was acked first")

    @case("redelivery")
    async def test_acks_out_of_order(self, trial: Trial) -> None:
        """Acking later messages does not ack an earlier one that is still unsettled."""
        sent = await trial.spread(4)
        async with trial.stream() as stream:
            taken = []
            for _ in sent:
                message = await trial.next(stream)
                message.detach()
                taken.append(message)
            for message in taken[1:]:
                await message.ack()
            await trial.flush(stream)
            if trial.can.release:
                await taken[0].release()
        await trial.let_unsettled_return()
        async with trial.stream() as stream:
            again = await trial.next(stream, "the message that was never acked")
            same(again, taken[0], "what came again")

    @case("redelivery")
    async def test_detached_is_its_owners(self, trial: Trial) -> None:
        """Asking for more does not ack a detached message: only its new owner settles it."""
        await trial.spread(2)
        async with trial.stream(prefetch=1) as stream:
            first = await trial.next(stream)
            first.detach()
            await trial.next(stream)
            check(first.outcome is None, f"the detached message was settled: {first.outcome}")
            check(await first.nack(), "its owner's nack() should return True")
            again = await trial.next(stream, "the detached message, nacked by its owner")
            same(again, first, "what came again")

    @case("redelivery=message")
    async def test_failures_do_not_block(self, trial: Trial) -> None:
        """Messages that fail now and then all arrive in the end, and each is done once."""
        sent = await trial.spread(30)
        done: list[Message] = []
        failures: dict[int, int] = {}
        async with trial.stream() as stream:
            while len(done) < len(sent):
                message = await trial.next(stream, f"message {len(done) + 1} of {len(sent)}")
                n = message["n"]
                if n % 3 == 0 and failures.get(n, 0) < 2:
                    failures[n] = failures.get(n, 0) + 1
                    await message.nack()
                else:
                    done.append(message)
            await trial.nothing(stream, "every message was done")
        exactly(done, sent, "what was done, with every third message failing twice")

    @case("redelivery", limit=6.0)
    async def test_many_unsettled_at_once(self, trial: Trial) -> None:
        """A consumer may hold many messages unsettled, and settle each when it likes."""
        sent = await trial.spread(100)
        async with trial.stream() as stream:
            held = []
            for n in range(len(sent)):
                message = await trial.next(stream, f"message {n + 1} while {n} are unsettled")
                message.detach()
                held.append(message)
            exactly(held, sent, "what was held at the same time")
            for message in reversed(held):
                check(await message.ack(), "ack() of a held message should return True")
            await trial.flush(stream)
            outcomes = {message.outcome for message in held}
            check(outcomes == {Outcome.ACK}, f"outcomes after acking all: {outcomes}")
        await trial.collect([], what="after all were acked")
