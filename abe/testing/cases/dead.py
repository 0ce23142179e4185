"""Dead letters: out of the way, with their reason, and back on demand."""

from __future__ import annotations

import asyncio

from abe.backends.message_queue.base import Message
from abe.testing.base import ContractBase
from abe.testing.case import case
from abe.testing.context import CaseContext
from abe.testing.expect import check, exactly, only, same
from abe.types import ConsumerGroup

__all__ = ["DeadLetterCases"]


async def _bury(context: CaseContext, count: int, group: ConsumerGroup = None) -> list[Message]:
    """Publish and reject ``count`` messages; return them."""
    dead = []
    async with context.stream(group) as stream:
        await context.send(count)
        for n in range(count):
            message = await context.next(stream)
            check(await message.reject(f"reason {n}"), "reject() should return True")
            dead.append(message)
    return dead


class DeadLetterCases(ContractBase):
    """``reject`` and ``dead_letters``."""

    @case("reject")
    async def test_rejected_is_never_delivered(self, context: CaseContext) -> None:
        """A rejected message is not delivered again, under its own or any other key."""
        await _bury(context, 2)
        await context.let_unsettled_return()
        await context.collect([], what="after all were rejected")

    @case("reject", "groups")
    async def test_rejected_stays_in_other_groups(self, context: CaseContext) -> None:
        """A message that one group has rejected is delivered to the others, and only once."""
        async with context.stream("b") as other:
            dead = await _bury(context, 1, "a")
            await context.expect(other, dead, what="what group a has rejected, in group b")

    @case("dead_letters", "reject")
    async def test_dead_letters_tell_why(self, context: CaseContext) -> None:
        """Dead letters are listed with id and key, and with reason and attempts in headers."""
        async with context.stream() as stream:
            await context.send(1, "orders.eu")
            for _ in range(2):
                await (await context.next(stream)).nack()
            last = await context.next(stream)
            await last.reject("no such customer\nat line 7")
        listed = await context.within(context.backend.dead_letters(), "dead_letters()")
        dead = only(listed, "dead_letters()")
        same(dead, {"n": 0}, "payload of the dead letter")
        check(dead.id == last.id, f"its id was {last.id!r} and is {dead.id!r}")
        check(dead.key == "orders.eu", f"its key was 'orders.eu' and is {dead.key!r}")
        expected = {
            "abe-dead-reason": "no such customer",
            "abe-dead-traceback": "at line 7",
            "abe-dead-attempts": str(last.attempt),
            "abe-dead-id": str(last.id),
            "abe-dead-key": "orders.eu",
        }
        for name, value in expected.items():
            told = dead.headers.get(name)
            check(told == value, f"header {name} should be {value!r}, but is {told!r}")
        check(float(dead.headers.get("abe-dead-time", 0)) > 0, "header abe-dead-time is missing")

    @case("dead_letters", "reject")
    async def test_dead_letters_are_only_listed(self, context: CaseContext) -> None:
        """Listing dead letters takes none, returns at most limit, oldest first."""
        await _bury(context, 3)
        for _ in range(2):
            listed = await context.within(context.backend.dead_letters(), "dead_letters()")
            exactly(listed, [{"n": n} for n in range(3)], "dead_letters()", ordered=True)
        some = await context.within(context.backend.dead_letters(limit=2), "dead_letters(limit=2)")
        exactly(some, [{"n": 0}, {"n": 1}], "dead_letters(limit=2)", ordered=True)

    @case("dead_letters", "reject", "redelivery")
    async def test_only_rejected_are_dead(self, context: CaseContext) -> None:
        """What was nacked or acked is no dead letter."""
        async with context.stream() as stream:
            sent = await context.send(2)
            await (await context.next(stream)).nack()
            for _ in sent:
                await (await context.next(stream)).ack()
            await context.flush(stream)
        listed = await context.within(context.backend.dead_letters(), "dead_letters()")
        exactly(listed, [], "dead_letters() while none was rejected")

    @case("dead_letters", "reject", "groups")
    async def test_dead_letters_are_per_group(self, context: CaseContext) -> None:
        """Dead letters are those of one group; another has none to list and none to replay."""
        await _bury(context, 1, "a")
        for group, expected in (("a", [{"n": 0}]), ("b", []), (None, [])):
            listed = await context.within(
                context.backend.dead_letters(group=group), f"dead_letters(group={group!r})"
            )
            exactly(listed, expected, f"dead_letters(group={group!r})")
        count = await context.within(context.backend.replay(group="b"), "replay(group='b')")
        check(count == 0, f"replay(group='b') returned {count}, but group b has no dead letters")

    @case("dead_letters", "reject")
    async def test_replayed_is_delivered_anew(self, context: CaseContext) -> None:
        """A replayed dead letter reaches who waits, as attempt 1, with its id and own headers."""
        (dead,) = await _bury(context, 1)
        async with context.stream() as stream:
            await context.nothing(stream, "the only message was rejected")
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            count = await context.within(context.backend.replay(), "replay()")
            check(count == 1, f"replay() returned {count}, but there was one dead letter")
            again = await context.within(waiting, "the replayed dead letter")
            same(again, {"n": 0}, "its payload")
            check(again.id == dead.id, f"its id was {dead.id!r} and is {again.id!r}")
            check(again.attempt == 1, f"its attempt should be 1 anew, but is {again.attempt}")
            check(not dict(again.headers), f"it had no headers, but has {dict(again.headers)}")
        left = await context.within(context.backend.dead_letters(), "dead_letters()")
        exactly(left, [], "dead_letters() after all were replayed")

    @case("dead_letters", "reject", "groups")
    async def test_replay_reaches_its_group_only(self, context: CaseContext) -> None:
        """Replaying the dead letters of a group delivers them to no other group."""
        async with context.stream("b") as other:
            dead = await _bury(context, 1, "a")
            await context.expect(other, dead, what="the message itself, in group b")
            await context.within(context.backend.replay(group="a"), "replay(group='a')")
            await context.nothing(other, "the dead letters of group a were replayed, not of b")
        await context.collect(dead, "a", what="the replayed dead letter, in its group")

    @case("dead_letters", "reject")
    async def test_replay_of_some(self, context: CaseContext) -> None:
        """replay() can be limited to some ids or to the oldest few; the others stay dead."""
        dead = await _bury(context, 4)
        backend = context.backend
        for what, options, expected in (
            ("replay(ids=[one])", {"ids": [dead[2].id]}, 1),
            ("replay(limit=2)", {"limit": 2}, 2),
            ("replay(ids=['unknown'])", {"ids": ["unknown"]}, 0),
        ):
            count = await context.within(backend.replay(**options), what)
            check(count == expected, f"{what} returned {count}, not {expected}")
        left = await context.within(backend.dead_letters(), "dead_letters()")
        exactly(left, [{"n": 3}], "dead_letters() after three of four were replayed")
        await context.collect([{"n": n} for n in range(3)], what="the three that were replayed")

    @case("dead_letters", "reject")
    async def test_replay_ends(self, context: CaseContext) -> None:
        """replay() puts back what was dead when it was called, though it is rejected again."""
        await _bury(context, 5)
        async with context.stream() as stream:

            async def reject_all() -> None:
                async for message in stream:
                    await message.reject("again")

            rejecting = asyncio.ensure_future(reject_all())
            count = await context.within(context.backend.replay(), "replay(), while all fail again")
            stream.stop()
            await context.within(rejecting, "the stream to end after stop()")
        check(count == 5, f"5 dead letters were there, but replay() returned {count}")
