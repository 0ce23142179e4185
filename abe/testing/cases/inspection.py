"""Looking without taking, numbers, and cleaning up."""

from __future__ import annotations

import asyncio
from typing import Any

from abe.errors import UnsupportedError
from abe.testing.base import ContractBase
from abe.testing.case import case
from abe.testing.context import CaseContext
from abe.testing.expect import check, exactly, only, refused, same
from abe.types import ConsumerGroup, KeyStats, QueueStats

__all__ = ["InspectionCases"]


class InspectionCases(ContractBase):
    """``peek``, ``stats`` and ``admin``."""

    # -- peek ------------------------------------------------------------------------------

    @case("peek")
    async def test_peek_takes_nothing(self, context: CaseContext) -> None:
        """peek() shows what waits as often as asked, and consumers then receive it as attempt 1."""
        async with context.stream():
            pass
        sent = await context.send(3)
        for _ in range(3):
            seen = await context.within(context.backend.peek(), "peek()")
            exactly(seen, sent, "peek()")
            check(all(m.attempt == 1 for m in seen), "peek() should tell attempt 1")
        arrived = await context.collect(sent, what="what peek() has looked at")
        check([m.attempt for m in arrived] == [1, 1, 1], "peek() has counted as an attempt")
        left = await context.within(context.backend.peek(), "peek()")
        exactly(left, [], "peek() after all was consumed")

    @case("peek")
    async def test_peek_selects(self, context: CaseContext) -> None:
        """peek() returns at most limit messages, the oldest first, of the keys asked for."""
        selections: tuple[tuple[str, dict[str, Any], tuple[int, ...]], ...] = (
            ("peek(limit=2)", {"limit": 2}, (0, 1)),
            ("peek(keys='b')", {"keys": "b"}, (1, 3)),
            ("peek(keys=['a', 'b'], limit=3)", {"keys": ["a", "b"], "limit": 3}, (0, 1, 2)),
            ("peek(keys='c')", {"keys": "c"}, ()),
        )
        async with context.stream():
            pass
        for n in range(4):
            await context.publish({"n": n}, "b" if n % 2 else "a")
        for what, options, expected in selections:
            seen = await context.within(context.backend.peek(**options), what)
            ordered = context.can.ordering != "none"
            exactly(seen, [{"n": n} for n in expected], what, ordered=ordered)

    @case("peek", "groups", "redelivery")
    async def test_peek_is_per_group(self, context: CaseContext) -> None:
        """peek(group=…) shows what waits for that group: not what it has done or has in hand."""
        async with context.stream("a") as first, context.stream("b"):
            await context.send(3)
            await (await context.next(first)).ack()
            await context.flush(first)
            await context.next(first)
        await context.let_unsettled_return()
        for group, count in (("a", 2), ("b", 3)):
            seen = await context.within(context.backend.peek(group=group), f"peek(group={group!r})")
            check(len(seen) == count, f"{count} wait for group {group!r}, but peek() shows {seen}")

    @case("peek")
    async def test_peeked_cannot_be_settled(self, context: CaseContext) -> None:
        """What peek() returns has metadata, but cannot be acked."""
        async with context.stream():
            pass
        await context.send(1, "orders.eu")
        seen = only(await context.within(context.backend.peek(), "peek()"), "peek()")
        check(seen.key == "orders.eu", f"its key is {seen.key!r}")
        with refused("ack() of a message from peek()", UnsupportedError):
            await seen.ack()
        (message,) = await context.collect([{"n": 0}])
        check(message.id == seen.id, f"peek() told id {seen.id!r}, consume() {message.id!r}")

    @case("peek", "backlog")
    async def test_peek_before_any_group(self, context: CaseContext) -> None:
        """While no group exists, peek() shows what the first one will receive."""
        sent = await context.send(2)
        seen = await context.within(context.backend.peek(), "peek()")
        exactly(seen, sent, "peek() while no group exists")
        await context.collect(sent, what="what peek() has shown")

    # -- stats -----------------------------------------------------------------------------

    @case("stats", "redelivery")
    async def test_stats_add_up(self, context: CaseContext) -> None:
        """stats() counts what is ready and what is in flight, of each key."""
        async with context.stream(prefetch=1) as stream:
            await context.send(5)
            await context.send(2, "other", start=5)
            stats = await _stats(context)
            _compare(context, stats, "orders", ready=5, in_flight=0, dead=0)
            _compare(context, stats, "other", ready=2, in_flight=0)
            seen: dict[str, int] = {"orders": 0, "other": 0}
            held = await context.next(stream)
            seen[str(held.key)] += 1
            stats = await _stats(context)
            for key, total in (("orders", 5), ("other", 2)):
                _compare(context, stats, key, ready=total - seen[key], in_flight=seen[key])
            await held.ack()
            await context.flush(stream)
            stats = await _stats(context)
            for key, total in (("orders", 5), ("other", 2)):
                _compare(context, stats, key, ready=total - seen[key], in_flight=0)

    @case("stats", "delay")
    async def test_stats_count_delayed(self, context: CaseContext) -> None:
        """stats() counts a message that waits for its delay as delayed, not as ready."""
        async with context.stream():
            pass
        await context.publish({"n": 0}, delay=min(60.0, context.can.delay))
        _compare(context, await _stats(context), "orders", ready=0, in_flight=0, delayed=1)

    @case("stats", "nack_delay", "redelivery")
    async def test_stats_count_failed(self, context: CaseContext) -> None:
        """stats() counts a failed message that waits for its nack delay as delayed."""
        async with context.stream() as stream:
            await context.send(1)
            await (await context.next(stream)).nack(delay=min(60.0, context.can.nack_delay))
            await context.flush(stream)
        _compare(context, await _stats(context), "orders", ready=0, in_flight=0, delayed=1)

    @case("stats", "reject", "dead_letters")
    async def test_stats_count_dead(self, context: CaseContext) -> None:
        """stats() counts dead letters apart from what can be delivered."""
        async with context.stream() as stream:
            await context.send(1)
            await (await context.next(stream)).reject("test")
            await context.flush(stream)
        _compare(context, await _stats(context), "orders", ready=0, in_flight=0, dead=1)

    @case("stats", "groups")
    async def test_stats_are_per_group(self, context: CaseContext) -> None:
        """stats() counts each group by itself."""
        async with context.stream("a") as first, context.stream("b"):
            sent = await context.send(3)
            await context.expect(first, sent, what="everything, in group a")
        stats = await _stats(context)
        _compare(context, stats, "orders", "a", ready=0, in_flight=0)
        _compare(context, stats, "orders", "b", ready=3, in_flight=0)

    @case("stats")
    async def test_stats_tell_age(self, context: CaseContext) -> None:
        """stats() tells the age of the oldest waiting message in seconds, if it tells it at all."""
        async with context.stream():
            pass
        await context.send(1)
        entry = _entry(await _stats(context), "orders", None)
        age = entry.oldest_age if entry is not None else None
        check(
            age is None or 0 <= age < 60,
            f"a message published just now is said to be {age} s old",
        )

    @case("stats", "backlog")
    async def test_stats_before_any_group(self, context: CaseContext) -> None:
        """While no group exists, stats() counts what is retained, for the default group."""
        await context.send(2)
        _compare(context, await _stats(context), "orders", ready=2, in_flight=0)

    # -- admin -----------------------------------------------------------------------------

    @case("admin", "groups")
    async def test_groups_are_listed(self, context: CaseContext) -> None:
        """groups() lists the groups that were opened, the default one as None, and no other."""
        if context.can.backlog:  # else groups are configured, not opened
            none = await context.within(context.backend.groups(), "groups()")
            check(list(none) == [], f"no group was opened, but groups() returned {none}")
        for group in ("a", None):
            async with context.stream(group):
                pass
        listed = await context.within(context.backend.groups(), "groups()")
        complete = {None, "a"} <= {*listed} and len({*listed}) == len(listed)
        check(
            complete and (len(listed) == 2 or not context.can.backlog),
            f"'a' and None were opened, but groups() returned {listed}",
        )

    @case("admin", "groups")
    async def test_deleted_group_is_forgotten(self, context: CaseContext) -> None:
        """delete_group() forgets the group and what waits for it, and leaves other groups alone."""
        for group in ("a", "b"):
            async with context.stream(group):
                pass
        sent = await context.send(2)
        await context.within(context.backend.delete_group("a"), "delete_group('a')")
        listed = await context.within(context.backend.groups(), "groups()")
        check(
            "a" not in listed and "b" in listed,
            f"after delete_group('a'), groups() returned {listed}",
        )
        await context.collect(sent, "b", what="everything, in the group that was not deleted")

    @case("admin", "redelivery")
    async def test_purge_spares_what_is_in_flight(self, context: CaseContext) -> None:
        """purge() drops what waits and returns how many; what is in flight goes on."""
        async with context.stream(prefetch=1) as stream:
            await context.send(5)
            held = await context.next(stream)
            count = await context.within(context.backend.purge(), "purge()")
            check(
                count == 4, f"4 messages waited and 1 was in flight, but purge() returned {count}"
            )
            check(await held.nack(), "nack() of the message in flight should return True")
            again = await context.next(stream, "the message that was in flight")
            same(again, dict(held), "its redelivery")
            await context.nothing(stream, "everything else was purged")

    @case("admin")
    async def test_purge_selects(self, context: CaseContext) -> None:
        """purge(keys) drops only messages of those keys."""
        async with context.stream():
            pass
        for n in range(6):
            await context.publish({"n": n}, "b" if n % 2 else "a")
        count = await context.within(context.backend.purge("b"), "purge('b')")
        check(count == 3, f"3 messages of key b waited, but purge('b') returned {count}")
        await context.collect([{"n": n} for n in (0, 2, 4)], what="what was not purged")

    @case("admin", "redelivery")
    async def test_purge_drops_what_came_back(self, context: CaseContext) -> None:
        """purge() drops a message that has failed and waits again."""
        async with context.stream(prefetch=1) as stream:
            await context.send(2)
            await (await context.next(stream)).nack()
            await context.flush(stream)
        await context.let_unsettled_return()
        count = await context.within(context.backend.purge(), "purge()")
        check(count == 2, f"2 messages waited, one after a failure, but purge() returned {count}")
        await context.collect([], what="after all was purged")

    @case("admin")
    async def test_purge_counts_beside_a_publisher(self, context: CaseContext) -> None:
        """purge() returns how many it dropped, and ends, while others publish."""
        async with context.stream():
            pass
        await context.spread(30)
        publishing = asyncio.ensure_future(context.spread(30, start=30))
        count = await context.within(context.backend.purge(), "purge(), beside a publisher")
        await context.within(publishing, "the publisher")
        check(count >= 30, f"30 messages waited, but purge() returned {count}")
        async with context.stream() as stream:
            await context.take(stream, 60 - count, f"what is left of 60 after {count} were dropped")
            await context.nothing(stream, f"purge() returned {count}, so that all have come")

    @case("admin", "delay")
    async def test_purge_keeps_other_delayed(self, context: CaseContext) -> None:
        """purge(keys) keeps the delayed messages of other keys, and all that it does not count."""
        async with context.stream():
            pass
        delay = min(context.harness.short_delay, context.can.delay)
        for n, key in enumerate(("a", "b", "a", "b")):
            await context.publish({"n": n}, key, delay=delay)
        count = await context.within(context.backend.purge("b"), "purge('b')")
        check(0 <= count <= 2, f"2 messages of key b were delayed, but purge('b') returned {count}")
        async with context.stream() as stream:
            left = [await context.next(stream, "what was not purged") for _ in range(4 - count)]
            await context.nothing(stream, f"{count} of 4 delayed messages were purged")
        others = [message for message in left if message["n"] % 2 == 0]
        exactly(others, [{"n": 0}, {"n": 2}], "delayed messages of the key that was not purged")

    @case("admin", "backlog")
    async def test_purge_before_any_group(self, context: CaseContext) -> None:
        """While no group exists, purge() drops what is retained."""
        await context.send(2)
        await context.publish({"n": 2}, "other")
        count = await context.within(context.backend.purge("orders"), "purge('orders')")
        check(count == 2, f"2 messages of key orders were retained, but purge() returned {count}")
        await context.collect([{"n": 2}], what="what was not purged")

    @case("admin", "groups")
    async def test_purge_is_per_group(self, context: CaseContext) -> None:
        """purge(group=…) drops nothing of what waits for other groups."""
        for group in ("a", "b"):
            async with context.stream(group):
                pass
        sent = await context.send(3)
        await context.within(context.backend.purge(group="a"), "purge(group='a')")
        await context.collect([], "a", what="in the purged group")
        await context.collect(sent, "b", what="in the other group")


async def _stats(context: CaseContext) -> QueueStats:
    stats = await context.within(context.backend.stats(), "stats()")
    check(isinstance(stats, QueueStats), f"stats() must return QueueStats, not {stats!r}")
    assert isinstance(stats, QueueStats)
    return stats


def _entry(stats: QueueStats, key: str, group: ConsumerGroup) -> KeyStats | None:
    found = [e for e in stats.entries if e.key == key and e.group == group]
    check(len(found) < 2, f"stats() has {len(found)} entries for key {key!r} of group {group!r}")
    return found[0] if found else None


def _compare(
    context: CaseContext, stats: QueueStats, key: str, group: ConsumerGroup = None, **expected: int
) -> None:
    """Fail if a number differs that the broker tells exactly; no entry means all 0."""
    entry = _entry(stats, key, group)
    for name, number in expected.items():
        told = getattr(entry, name) if entry is not None else 0
        check(
            stats.approximate or told is None or told == number,
            f"stats() of key {key!r}, group {group!r}: {name} should be {number}, but is {told}; "
            f"{context.account()}",
        )
