"""The order of first deliveries, as declared."""

from __future__ import annotations

import asyncio

from abe.backends.message_queue.base import Message
from abe.testing.base import ContractBase
from abe.testing.case import case
from abe.testing.context import CaseContext
from abe.testing.expect import check, exactly, same

__all__ = ["OrderingCases"]


class OrderingCases(ContractBase):
    """``ordering``: per key, or to a single consumer."""

    @case("ordering")
    async def test_one_consumer_sees_publish_order(self, context: CaseContext) -> None:
        """A single consumer receives the messages of a key in the order they were published."""
        sent = await context.send(50)
        await context.collect(sent, what="50 messages in publish order", ordered=True)

    @case("ordering=consumer")
    async def test_one_consumer_sees_order_across_keys(self, context: CaseContext) -> None:
        """A single consumer receives messages of all keys in the order they were published."""
        sent = [{"n": n} for n in range(30)]
        for payload in sent:
            await context.publish(payload, f"key.{payload['n'] % 3}")
        await context.collect(sent, what="30 messages of 3 keys in publish order", ordered=True)

    @case("ordering")
    async def test_publishers_keep_their_order(self, context: CaseContext) -> None:
        """Of several concurrent publishers, each one's messages arrive in its own order."""
        names, count = ("a", "b", "c"), 15

        async def publish(name: str) -> None:
            for n in range(count):
                await context.backend.publish(f"from.{name}", {"by": name, "n": n})

        await context.within(asyncio.gather(*map(publish, names)), "concurrent publishers")
        expected = [{"by": name, "n": n} for name in names for n in range(count)]
        arrived = await context.collect(expected)
        for name in names:
            own = [message for message in arrived if message["by"] == name]
            exactly(own, [p for p in expected if p["by"] == name], f"of {name}", ordered=True)

    @case("ordering", "publish_many")
    async def test_bulk_keeps_order(self, context: CaseContext) -> None:
        """publish_many() keeps the order of its items."""
        sent = [{"n": n} for n in range(50)]
        await context.within(context.backend.publish_many(sent, key="orders"), "publish_many()")
        await context.collect(sent, what="50 messages in the order of publish_many()", ordered=True)

    @case("ordering=consumer", "redelivery=message", "nack_delay")
    async def test_failure_does_not_hold_others_up(self, context: CaseContext) -> None:
        """Ordered per consumer, a failed message that waits does not hold up the next ones."""
        sent = await context.send(5)
        async with context.stream() as stream:
            failed = await context.next(stream)
            await failed.nack(delay=min(60.0, context.can.nack_delay))
            rest = [await context.next(stream, "those after the failed one") for _ in sent[1:]]
            exactly(rest, sent[1:], "what came while the first message waits", ordered=True)

    @case("ordering=key")
    async def test_key_waits_for_its_unsettled(self, context: CaseContext) -> None:
        """Ordered per key, the next message of a key waits until the one before is settled."""
        sent = await context.send(2)
        async with context.stream() as first, context.stream() as second:
            held = await context.next(first)
            await context.nothing(second, "an earlier message of the key is unsettled")
            await held.ack()
            await context.flush(first)
            same(await context.next(second, "the next of the key"), sent[1], "the next of the key")

    @case("ordering=key")
    async def test_other_keys_go_on(self, context: CaseContext) -> None:
        """Ordered per key, an unsettled message holds up its own key only."""
        await context.send(2, "slow")
        async with context.stream() as first, context.stream() as second:
            await context.next(first)
            sent = await context.send(5, "fast", start=10)
            await context.expect(second, sent, what="messages of another key", ordered=True)

    @case("ordering=key", "redelivery", "nack_delay")
    async def test_key_waits_for_its_failed(self, context: CaseContext) -> None:
        """Ordered per key, a failed message that waits holds back the next ones of its key."""
        sent = await context.send(3)
        delay = min(context.harness.short_delay, context.can.nack_delay)
        async with context.stream() as stream:
            await (await context.next(stream)).nack(delay=delay)
            arrived: list[Message] = [await context.next(stream, "the failed one") for _ in sent]
            exactly(arrived, sent, "what came after the failure of the first", ordered=True)

    @case("ordering=key", "release")
    async def test_key_order_survives_release(self, context: CaseContext) -> None:
        """Ordered per key, a released message comes before its successors, at any consumer."""
        sent = await context.send(4)
        async with context.stream() as first, context.stream() as second:
            held = await context.next(first)
            await held.release()
            await context.flush(first)
            arrived = [await context.next(second, "all, from the released one on") for _ in sent]
            exactly(arrived, sent, "what another consumer received", ordered=True)

    @case("ordering=key", "delay")
    async def test_key_waits_for_its_delayed(self, context: CaseContext) -> None:
        """Ordered per key, a message published with a delay holds back the next ones of its key."""
        delay = min(context.harness.short_delay, context.can.delay)
        await context.publish({"n": 0}, delay=delay)
        await context.publish({"n": 1})
        arrived = await context.collect([{"n": 0}, {"n": 1}], what="the delayed one first")
        check(arrived[0]["n"] == 0, "the second message of the key overtook the delayed first")

    @case("ordering=consumer", "release", hooks=["cut_connections"], limit=8.0)
    async def test_order_survives_a_cut(self, context: CaseContext) -> None:
        """What was received ahead when a connection is cut comes next, in order and uncounted."""
        sent = await context.send(20)
        async with context.stream() as stream:
            # One by one, so that it receives ahead.
            arrived = [await context.next(stream) for _ in sent[:8]]
            await arrived[-1].ack()
            await context.flush(stream)
            await context.hook("cut_connections")
            arrived += [await context.next(stream, "the rest", context.after_cut) for _ in sent[8:]]
            exactly(arrived, sent, "what came before and after the cut", ordered=True)
            if context.can.attempts == "exact":
                attempts = {message.attempt for message in arrived}
                check(attempts == {1}, f"none had been handed over before: attempts {attempts}")
