"""Consumer groups: each sees everything, and what waits for one is not affected by another."""

from __future__ import annotations

from abe.errors import ConfigurationError, PublishError
from abe.testing.base import ContractBase
from abe.testing.case import case
from abe.testing.expect import check, refused, same
from abe.testing.harness import ODD_GROUPS
from abe.testing.trial import Trial

__all__ = ["GroupCases"]


class GroupCases(ContractBase):
    """``groups`` and ``backlog``."""

    @case("groups")
    async def test_each_group_sees_everything(self, trial: Trial) -> None:
        """Each group receives every message, also what another group has acked already."""
        async with trial.stream("a") as first, trial.stream("b") as second:
            sent = await trial.send(5)
            await trial.expect(first, sent, what="everything, in group a")
            await trial.flush(first)
            await trial.expect(second, sent, what="everything, in group b")

    @case("groups")
    async def test_group_names_are_distinct(self, trial: Trial) -> None:
        """Group names are kept exactly: each odd name, and the default, is a group of its own."""
        streams = [trial.open(name) for name in ODD_GROUPS]
        for stream in streams:
            await trial.within(stream.__aenter__(), "opening a stream")
        (sent,) = await trial.send(1)
        for name, stream in zip(ODD_GROUPS, streams, strict=True):
            message = await trial.next(stream, f"the message, in group {name!r}")
            same(message, sent, f"what group {name!r} received")
            await message.ack()

    @case("groups")
    async def test_group_exists_once_opened(self, trial: Trial) -> None:
        """A group that was opened once receives all that is published from then on."""
        async with trial.stream("a"):
            pass
        sent = await trial.send(3)
        await trial.collect(sent, "a", what="what was published while nobody of a consumed")

    @case("groups", "redelivery")
    async def test_failure_stays_in_its_group(self, trial: Trial) -> None:
        """A message that fails in one group is not delivered again in another."""
        async with trial.stream("a") as first, trial.stream("b") as second:
            sent = await trial.send(1)
            await trial.expect(second, sent, what="the message, in group b")
            message = await trial.next(first)
            await message.nack()
            await trial.flush(first)
            await trial.nothing(second, "the message failed in group a only")
            again = await trial.next(first, "the message again, in group a")
            same(again, sent[0], "the redelivery in group a")

    @case("groups", "backlog")
    async def test_new_group_sees_the_backlog(self, trial: Trial) -> None:
        """A new group sees what was published before it existed and is still retained."""
        async with trial.stream("a"):
            pass
        sent = await trial.send(3)
        await trial.collect(sent, "b", what="the backlog, in a new group")
        await trial.collect(sent, "a", what="everything, in the older group")

    @case("backlog")
    async def test_retained_without_a_group(self, trial: Trial) -> None:
        """While no group exists, everything that is published waits for the first one."""
        sent = await trial.send(10)
        await trial.collect(sent, what="what was published before any consumer existed")

    @case("groups", "!backlog")
    async def test_no_backlog_unclaimed(self, trial: Trial) -> None:
        """Without the capability backlog a new group sees nothing of what was published before."""
        await trial.send(2)
        late = trial.open("not-in-GROUPS")
        try:
            await trial.within(late.__aenter__(), "opening a stream of a new group")
        except ConfigurationError:
            return  # the groups of this broker are configured: there is no such thing
        came = await trial.within(late.take(1, timeout=trial.harness.quiet), "take() to return")
        check(
            not came,
            "the backend does not declare the capability 'backlog', but a new group received "
            f"{came}",
        )

    @case("groups", "!backlog", hooks=["make_without_groups"])
    async def test_publish_to_nobody_is_refused(self, trial: Trial) -> None:
        """Without the capability backlog, a publish that would reach no group is refused."""
        backend = await trial.make("make_without_groups")
        with refused("publish() while no group exists", PublishError):
            await backend.publish("orders", {"n": 0})
