"""Consumer groups: each sees everything, and what waits for one is not affected by another."""

from __future__ import annotations

from abe.errors import ConfigurationError, PublishError
from abe.testing.base import ContractBase
from abe.testing.case import case
from abe.testing.context import CaseContext
from abe.testing.expect import check, refused, same
from abe.testing.harness import ODD_GROUPS

__all__ = ["GroupCases"]


class GroupCases(ContractBase):
    """``groups`` and ``backlog``."""

    @case("groups")
    async def test_each_group_sees_everything(self, context: CaseContext) -> None:
        """Each group receives every message, also what another group has acked already."""
        async with context.stream("a") as first, context.stream("b") as second:
            sent = await context.send(5)
            await context.expect(first, sent, what="everything, in group a")
            await context.flush(first)
            await context.expect(second, sent, what="everything, in group b")

    @case("groups")
    async def test_group_names_are_distinct(self, context: CaseContext) -> None:
        """Group names are kept exactly: each odd name, and the default, is a group of its own."""
        streams = [context.open(name) for name in ODD_GROUPS]
        for stream in streams:
            await context.within(stream.__aenter__(), "opening a stream")
        (sent,) = await context.send(1)
        for name, stream in zip(ODD_GROUPS, streams, strict=True):
            message = await context.next(stream, f"the message, in group {name!r}")
            same(message, sent, f"what group {name!r} received")
            await message.ack()

    @case("groups")
    async def test_group_exists_once_opened(self, context: CaseContext) -> None:
        """A group that was opened once receives all that is published from then on."""
        async with context.stream("a"):
            pass
        sent = await context.send(3)
        await context.collect(sent, "a", what="what was published while nobody of a consumed")

    @case("groups", "redelivery")
    async def test_failure_stays_in_its_group(self, context: CaseContext) -> None:
        """A message that fails in one group is not delivered again in another."""
        async with context.stream("a") as first, context.stream("b") as second:
            sent = await context.send(1)
            await context.expect(second, sent, what="the message, in group b")
            message = await context.next(first)
            await message.nack()
            await context.flush(first)
            await context.nothing(second, "the message failed in group a only")
            again = await context.next(first, "the message again, in group a")
            same(again, sent[0], "the redelivery in group a")

    @case("groups", "backlog")
    async def test_new_group_sees_the_backlog(self, context: CaseContext) -> None:
        """A new group sees what was published before it existed and is still retained."""
        async with context.stream("a"):
            pass
        sent = await context.send(3)
        await context.collect(sent, "b", what="the backlog, in a new group")
        await context.collect(sent, "a", what="everything, in the older group")

    @case("backlog")
    async def test_retained_without_a_group(self, context: CaseContext) -> None:
        """While no group exists, everything that is published waits for the first one."""
        sent = await context.send(10)
        await context.collect(sent, what="what was published before any consumer existed")

    @case("groups", "!backlog")
    async def test_no_backlog_unclaimed(self, context: CaseContext) -> None:
        """Without the capability backlog a new group sees nothing of what was published before."""
        await context.send(2)
        late = context.open("not-in-GROUPS")
        try:
            await context.within(late.__aenter__(), "opening a stream of a new group")
        except ConfigurationError:
            return  # the groups of this broker are configured: there is no such thing
        came = await context.within(late.take(1, timeout=context.harness.quiet), "take() to return")
        check(
            not came,
            "the backend does not declare the capability 'backlog', but a new group received "
            f"{came}",
        )

    @case("groups", "!backlog", hooks=["make_without_groups"])
    async def test_publish_to_nobody_is_refused(self, context: CaseContext) -> None:
        """Without the capability backlog, a publish that would reach no group is refused."""
        backend = await context.make("make_without_groups")
        with refused("publish() while no group exists", PublishError):
            await backend.publish("orders", {"n": 0})
