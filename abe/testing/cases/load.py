"""Many messages, many consumers."""

from __future__ import annotations

import asyncio
import itertools
import random

from abe.backends.message_queue.base import Message, MessageStream
from abe.testing.base import ContractBase
from abe.testing.case import case
from abe.testing.context import CaseContext
from abe.testing.expect import exactly

__all__ = ["LoadCases"]


class LoadCases(ContractBase):
    """Under load nothing is lost and nothing is shared."""

    @case(limit=12.0)
    async def test_load_is_shared_exactly(self, context: CaseContext) -> None:
        """Many messages, published while many consumers compete, each arrive at exactly one."""
        streams = [context.open() for _ in range(self.stress_consumers)]
        for stream in streams:
            await context.within(stream.__aenter__(), "opening a stream")
        sent = [{"n": n} for n in range(self.stress_messages)]
        publishing = asyncio.gather(
            *(
                _publish(context, sent[k :: self.stress_consumers])
                for k in range(self.stress_consumers)
            )
        )
        received = asyncio.create_task(
            context.share(streams, sent, f"what {len(streams)} consumers received together")
        )
        await context.within(publishing, "publishing under load", 4 * context.harness.patience)
        await context.within(received, "receiving under load", 4 * context.harness.patience)

    @case("redelivery=message", limit=12.0)
    async def test_load_with_failures(self, context: CaseContext) -> None:
        """Under load, with consumers that fail and leave at random, each message is done once."""
        sent = [{"n": n} for n in range(self.stress_messages // 2)]
        await _publish(context, sent)
        done: list[Message] = []
        open_streams: set[MessageStream] = set()
        dice = random.Random(7)

        async def work(stream: MessageStream) -> bool:
            """Settle one message somehow; False if no more come."""
            taken = await stream.take(1, timeout=context.harness.patience)
            if not taken:
                return False
            chance = dice.random()
            if chance < 0.1:
                await taken[0].nack()
            elif chance < 0.15 and context.can.release:
                await taken[0].release()
            elif await taken[0].ack():
                done.append(taken[0])
            return True

        async def consume() -> None:
            more = True
            while more and len(done) < len(sent):
                async with context.stream() as stream:
                    open_streams.add(stream)
                    while more and len(done) < len(sent) and dice.random() > 0.05:
                        more = await work(stream)
                    open_streams.discard(stream)
            for stream in open_streams:
                stream.stop()  # all is done, or nothing comes any more

        consumers = asyncio.gather(*(consume() for _ in range(self.stress_consumers)))
        patience = 8 * context.harness.patience
        await context.within(consumers, f"{len(sent)} messages to be done", patience)
        exactly(done, sent, "what was done under load")

    @case("redelivery=message", hooks=["cut_connections"], limit=12.0)
    async def test_load_through_cuts(self, context: CaseContext) -> None:
        """Under load, with failures and connections cut again and again, every message is done."""
        portion = max(5, self.stress_messages // 8)
        numbers = iter(range(4 * portion))
        missing: set[int] = set()
        dice = random.Random(5)

        async def publish_more() -> None:
            for n in itertools.islice(numbers, portion):
                missing.add(n)
                await context.publish_until_accepted({"n": n}, f"key.{n % 16}")

        await publish_more()
        async with context.stream() as stream:
            while missing:
                what = f"{len(missing)} more messages"
                message = await context.next(stream, what, context.after_cut)
                if dice.random() < 0.2:
                    await message.nack()
                    continue
                missing.discard(message["n"])
                await message.ack()
                if len(missing) == portion // 2:
                    await context.hook("cut_connections")
                    await publish_more()


async def _publish(context: CaseContext, payloads: list[dict[str, int]]) -> None:
    for payload in payloads:
        await context.backend.publish(f"key.{payload['n'] % 16}", payload)
