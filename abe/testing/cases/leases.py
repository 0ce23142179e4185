"""Leases: what a consumer that is gone has held comes back, and its late verdict counts nothing."""

from __future__ import annotations

from abe.backends.message_queue.base import Message, MessageStream, Outcome, capabilities_of
from abe.testing.base import ContractBase
from abe.testing.case import case
from abe.testing.context import CaseContext
from abe.testing.expect import check, exactly, same
from abe.testing.requirements import Skipped

__all__ = ["LeaseCases"]


def records_begin(context: CaseContext, stream: MessageStream) -> bool:
    """Whether the receiver of an open stream records that handling begins."""
    return hasattr(stream.subscription._connection.receiver, "begin")


SHORT_LEASE = 2.0
"""Seconds: it is extended more than one before it lapses, so that a busy machine can be late."""


class LeaseCases(ContractBase):
    """Time runs out, or does not."""

    @case("lease", hooks=["advance_time"])
    async def test_lapsed_lease_redelivers(self, context: CaseContext) -> None:
        """A message whose lease has lapsed is delivered to another consumer, as a new attempt."""
        (sent,) = await context.send(1)
        async with context.stream(prefetch=1) as first, context.stream(prefetch=1) as second:
            await context.next(first)
            await context.nothing(second, "the only message is leased to another consumer")
            await context.lapse()
            again = await context.next(second, "the message whose lease has lapsed")
            same(again, sent, "the redelivery")
            if context.can.attempts != "none":
                check(again.attempt >= 2, f"attempt is {again.attempt} after a lapsed lease")

    @case("lease", "redelivery", hooks=["advance_time"])
    async def test_stale_ack_changes_nothing(self, context: CaseContext) -> None:
        """Acking a message that somebody else owns by now changes nothing and is reported lost."""
        await context.send(1)
        async with context.stream(prefetch=1) as first, context.stream(prefetch=1) as second:
            stale = await context.next(first)
            await context.lapse()
            current = await context.next(second, "the message whose lease has lapsed")
            await stale.ack()
            await context.flush(first)
            check(
                stale.outcome is Outcome.LOST,
                f"the outcome of the stale delivery is {stale.outcome}, not lost",
            )
            check(not await stale.ack(), "ack() of a lost delivery should return False")
            check(await current.nack(), "its present owner can still settle it")
            again = await context.next(second, "the message, whose stale ack must not count")
            same(again, current, "the redelivery")

    @case("lease", "redelivery", hooks=["advance_time"])
    async def test_stale_nack_changes_nothing(self, context: CaseContext) -> None:
        """Nacking a message that somebody else owns by now does not deliver it a third time."""
        await context.send(1)
        async with context.stream(prefetch=1) as first, context.stream(prefetch=1) as second:
            stale = await context.next(first)
            await context.lapse()
            current = await context.next(second, "the message whose lease has lapsed")
            await stale.nack()
            await context.flush(first)
            await context.nothing(first, "the message is in the hands of another consumer")
            check(await current.ack(), "its present owner can still ack it")
            await context.flush(second)
            check(current.outcome is Outcome.ACK, f"its outcome is {current.outcome}")

    @case("lease", "redelivery", hooks=["advance_time"])
    async def test_flushed_ack_outlives_the_lease(self, context: CaseContext) -> None:
        """Once flush() has returned the broker has the acks: their leases may lapse."""
        await context.spread(3)
        async with context.stream() as first:
            for message in await context.take(first, 3):
                await message.ack()
            await context.flush(first)
            await context.lapse()
            async with context.stream() as second:
                await context.expect(second, [], what="after all were acked and flushed")

    @case("lease", "redelivery", hooks=["make_short_lease"], limit=12.0)
    async def test_lease_is_kept_while_working(self, context: CaseContext) -> None:
        """A message that is worked on for longer than its lease is not delivered to others."""
        backend = await context.make("make_short_lease", SHORT_LEASE)
        lease = capabilities_of(backend).lease or SHORT_LEASE
        await context.send(1)
        async with (
            context.stream(prefetch=1, backend=backend) as first,
            context.stream(prefetch=1, backend=backend) as second,
        ):
            held = await context.next(first)
            longer = 1.5 * lease
            came = await context.within(
                second.take(1, timeout=longer), "take() to return", longer + 5
            )
            exactly(came, [], f"what a second consumer got while the first worked {longer} s")
            check(await held.ack(), "ack() after working for longer than the lease returns True")
            await context.flush(first)
            check(held.outcome is Outcome.ACK, f"its outcome is {held.outcome}")

    @case(
        *("lease", "release", "redelivery=message", "attempts=exact|none"),
        hooks=["make_short_lease"],
        limit=12.0,
    )
    async def test_idle_consumer_gives_back(self, context: CaseContext) -> None:
        """A consumer that is stuck on one message gives back those it has received ahead."""
        backend = await context.make("make_short_lease", SHORT_LEASE)
        sent = await context.spread(40)
        async with (
            context.stream(backend=backend) as stuck,
            context.stream(prefetch=1, backend=backend) as other,
        ):
            for _ in range(14):
                await context.next(stuck)
            held = await context.next(stuck)
            rest = await context.take(other, len(sent) - 15, "what the stuck consumer held ahead")
            exactly(rest, [p for p in sent if p["n"] > held["n"]], "what the other received")

    @case("redelivery", "lease", hooks=["kill_consumer"])
    async def test_killed_consumer_loses_nothing(self, context: CaseContext) -> None:
        """What a consumer held that was killed with SIGKILL is delivered to another, all of it."""
        sent = await context.spread(6)
        await context.within(
            context.harness.call("kill_consumer", context.namespace, None, 2),
            "the harness's kill_consumer()",
            3 * context.harness.patience,
        )
        await context.let_held_by_the_dead_return()
        again = await context.collect(sent, what="all, the killed consumer's included")
        if context.can.attempts == "exact":
            attempts = sorted(message.attempt for message in again)
            check(attempts == [1] * 4 + [2] * 2, f"two were held by it, but attempts: {attempts}")

    @case("lease", "redelivery=message", "release", "attempts=exact", hooks=["advance_time"])
    async def test_begun_handling_is_counted(self, context: CaseContext) -> None:
        """Where begin() is recorded, it counts once a delivery, survives a lapse, not a release."""
        await context.send(1)
        async with context.stream(prefetch=1) as stream:
            if not records_begin(context, stream):
                raise Skipped("the receiver has no begin()")

            async def begin(what: str, expected: int) -> Message:
                (message,) = await context.within(
                    stream.receive(1, context.harness.patience), f"the message, {what}"
                )
                for _ in range(2):  # the second is what follows an answer that was lost
                    begun = await context.within(stream.begin(message), "begin()")
                    check(begun == expected, f"{what}: begun {begun}, not {expected}")
                return message

            await begin("never begun before", 0)
            await context.lapse()
            released = await begin("whose lease has lapsed in its handling", 1)
            await released.release()
            failed = await begin("released after that", 1)
            await failed.nack()
            await begin("failed after that", 2)

    @case("durable", hooks=["kill_publisher"])
    async def test_killed_publisher_loses_nothing(self, context: CaseContext) -> None:
        """What publish() has returned for survives the SIGKILL of the publishing process."""
        count: int = await context.within(
            context.harness.call("kill_publisher", context.namespace, "orders"),
            "the harness's kill_publisher()",
            3 * context.harness.patience,
        )
        check(count > 0, "the publisher was killed before it had published anything")
        accepted = [{"n": n} for n in range(count)]
        async with context.stream() as stream:
            arrived = [
                await context.next(stream, f"message {n + 1} of {count} accepted")
                for n in range(count)
            ]
            # One more may be there: stored, but its publish() had not returned yet.
            arrived += await context.within(
                stream.take(2, timeout=context.harness.quiet), "take() to return"
            )
        counted = [message for message in arrived if message["n"] < count]
        exactly(counted, accepted, "what was accepted before the process was killed")
