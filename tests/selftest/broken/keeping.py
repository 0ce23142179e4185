"""Broken bulk publishing, dead letters, numbers and cleaning up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from abe.backends.message_queue.base import KeyFilter, Message, Outgoing
from abe.errors import PayloadError, PublishError
from abe.types import ConsumerGroup, KeyStats, QueueStats
from tests.selftest.broken.registry import broken
from tests.selftest.reference import ReferenceBackend, message_of
from tests.selftest.store import Group, Place, Store, Stored

# -- publishing ----------------------------------------------------------------------------


@broken("publish_many_sends_all", says="returned 19")
class BulkMiscounts(ReferenceBackend):
    """publish_many() counts from 0."""

    async def publish_many(self, items: Any, *, key: str | None = None) -> int:
        """Publish."""
        return max(0, await super().publish_many(items, key=key) - 1)


@broken("publish_many_sends_all", says="never arrived")
class BulkSendsTenAtMost(ReferenceBackend):
    """publish_many() sends one batch of ten, and says it has sent all."""

    async def publish_many(self, items: Any, *, key: str | None = None) -> int:
        """Publish some."""
        given = list(items)
        await super().publish_many(given[:10], key=key)
        return len(given)


@broken("publish_many_checks_first", says="more often than published")
class BulkChecksAsItGoes(ReferenceBackend):
    """publish_many() has sent the items before a malformed one when it raises."""

    async def publish_many(self, items: Any, *, key: str | None = None) -> int:
        """Publish one by one."""
        count = 0
        for position, item in enumerate(items):
            pair = (key, item) if key is not None else item
            try:
                await self.publish(*pair)
            except (TypeError, ValueError) as error:
                kind = PayloadError if isinstance(error, TypeError) else type(error)
                raise kind(f"item {position}: {error}") from error
            count += 1
        return count


@broken("publish_many_reports_exactly", says="says was published")
class BulkSaysNothingWentThrough(ReferenceBackend):
    """A bulk that failed half way is reported as failed altogether."""

    class STORE(Store):
        def publish(self, items: Sequence[Outgoing], maxsize: float) -> None:
            try:
                super().publish(items, maxsize)
            except PublishError as error:
                failed = dict.fromkeys(range(len(items)), "failed")
                raise PublishError(str(error), failed=failed) from error


@broken("publish_many_reports_exactly", says="account for every item")
class BulkReportsNothing(ReferenceBackend):
    """A bulk that failed half way does not say where."""

    class STORE(Store):
        def publish(self, items: Sequence[Outgoing], maxsize: float) -> None:
            try:
                super().publish(items, maxsize)
            except PublishError as error:
                raise PublishError(str(error)) from error


@broken("refused_publish_raises", "publish_many_reports_exactly", says="accepted 100")
class SwallowsPublishErrors(ReferenceBackend):
    """What the broker refuses is dropped without a word."""

    async def _send(self, items: Sequence[Outgoing]) -> None:
        with suppress(PublishError):
            await super()._send(items)


@broken("refused_publish_raises", says="should say why")
class SaysNotWhy(ReferenceBackend):
    """A refusal has no text."""

    async def _send(self, items: Sequence[Outgoing]) -> None:
        try:
            await super()._send(items)
        except PublishError:
            raise PublishError("failed") from None


@broken("unreachable_broker_raises", says="should raise an AbeError")
class RawDriverErrors(ReferenceBackend):
    """The driver's own exceptions come through."""

    async def _send(self, items: Sequence[Outgoing]) -> None:
        if not self.reachable:
            raise ConnectionRefusedError("connection refused by the broker")
        await super()._send(items)


@broken("unreachable_broker_raises", says="waited")
class PublishesForever(ReferenceBackend):
    """publish() waits without end for a broker that does not answer."""

    async def _send(self, items: Sequence[Outgoing]) -> None:
        if not self.reachable:
            await asyncio.Event().wait()
        await super()._send(items)


# -- dead letters --------------------------------------------------------------------------


@broken("rejected_is_never_delivered", "consumer_rejects", says="more often than published")
class DeadIsDelivered(ReferenceBackend):
    """Dead letters are put back into the queue they came from."""

    class STORE(Store):
        def reject(self, group: Group, place: Place, reason: str) -> None:
            super().reject(group, place, reason)
            group.places[place.stored.seq] = Place(place.stored, 0.0)


@broken("rejected_is_never_delivered", "rejected_stays_in_other_groups", says="more often than")
class DeadUnderAnotherKey(ReferenceBackend):
    """Dead letters are published under a key that ordinary consumers receive."""

    class STORE(Store):
        def reject(self, group: Group, place: Place, reason: str) -> None:
            item = place.stored.item
            super().reject(group, place, reason)
            self.publish([item._replace(key=f"dead.{item.key}")], float("inf"))


@broken("rejected_stays_in_other_groups", says="never arrived")
class RejectsForAllGroups(ReferenceBackend):
    """A message that one group rejects is taken from all."""

    class STORE(Store):
        def reject(self, group: Group, place: Place, reason: str) -> None:
            super().reject(group, place, reason)
            for other in self.groups.values():
                other.places.pop(place.stored.seq, None)


@broken("dead_letters_tell_why", "consumer_gives_reasons", "consumer_gives_up", says="reason")
class NoReason(ReferenceBackend):
    """Why a message was rejected is not kept."""

    class STORE(Store):
        def reject(self, group: Group, place: Place, reason: str) -> None:
            super().reject(group, place, "")


@broken("only_rejected_are_dead", says="more often than published")
class AcksAreBuried(ReferenceBackend):
    """What was acked is kept among the dead letters."""

    class STORE(Store):
        def ack(self, group: Group, place: Place) -> None:
            self.reject(group, place, "done")


@broken("dead_letters_are_only_listed", says="never arrived")
class ListingTakes(ReferenceBackend):
    """Listing dead letters takes them."""

    async def dead_letters(self, **options: Any) -> list[Message]:
        """Return and forget."""
        listed = await super().dead_letters(**options)
        for group in self.store.groups.values():
            group.dead.clear()
        return listed


@broken("dead_letters_are_per_group", says="group='b'")
class DeadOfAllGroups(ReferenceBackend):
    """Every group sees the dead letters of all."""

    async def dead_letters(self, *, group: ConsumerGroup = None, limit: int = 100) -> list[Message]:
        """Return all."""
        found = [one for g in self.store.groups.values() for one in g.dead.values()]
        return [message_of(*one) for one in found][:limit]


@broken("replayed_is_delivered_anew", says="should be 1 anew")
class ReplayKeepsCounting(ReferenceBackend):
    """A replayed message goes on with its old attempts."""

    class STORE(Store):
        def revive(self, group: Group, stored: Stored) -> None:
            group.places[stored.seq] = Place(stored, 0.0, attempts=1)


@broken("replayed_is_delivered_anew", says="it had no headers")
class ReplayKeepsDeadHeaders(ReferenceBackend):
    """A replayed message carries the headers of its death."""

    class STORE(Store):
        def revive(self, group: Group, stored: Stored) -> None:
            headers = {**stored.item.headers, "abe-dead-reason": "once"}
            again = replace(stored, item=stored.item._replace(headers=headers))
            super().revive(group, again)


@broken("replayed_is_delivered_anew", says="waited")
class ReplayWakesNobody(ReferenceBackend):
    """A consumer that waits is not told of what is replayed."""

    class STORE(Store):
        def replay(
            self, name: ConsumerGroup, wanted: Callable[[str], bool], limit: int | None
        ) -> int:
            waiting, self.listeners = self.listeners, set()
            try:
                return super().replay(name, wanted, limit)
            finally:
                self.listeners = waiting


@broken("replay_reaches_its_group_only", says="not of b")
class ReplaysToAllGroups(ReferenceBackend):
    """A replayed message is published again, for everybody."""

    class STORE(Store):
        def revive(self, group: Group, stored: Stored) -> None:
            for other in self.groups.values():
                super().revive(other, stored)


@broken("replay_of_some", says="returned 4, not 1")
class ReplaysAll(ReferenceBackend):
    """replay() does not select."""

    class STORE(Store):
        def replay(
            self, name: ConsumerGroup, wanted: Callable[[str], bool], limit: int | None
        ) -> int:
            return super().replay(name, lambda id_: True, None)


# -- looking -------------------------------------------------------------------------------


@broken("peek_takes_nothing", says="attempt")
class PeekCounts(ReferenceBackend):
    """peek() takes messages and gives them back, which counts as an attempt."""

    class STORE(Store):
        def peek(
            self, name: ConsumerGroup, keys: KeyFilter, limit: int
        ) -> list[tuple[Stored, int]]:
            found = super().peek(name, keys, limit)
            for stored, _ in found:
                self.groups[name].places[stored.seq].attempts += 1
            return found


@broken("peek_takes_nothing", says="never arrived")
class PeekTakes(ReferenceBackend):
    """peek() leases what it shows."""

    class STORE(Store):
        def peek(
            self, name: ConsumerGroup, keys: KeyFilter, limit: int
        ) -> list[tuple[Stored, int]]:
            found = super().peek(name, keys, limit)
            self.take(self.groups[name], keys, limit, 30.0)
            return found


@broken("peek_selects", says="peek(keys='b')")
class PeekIgnoresKeys(ReferenceBackend):
    """peek() shows every key."""

    async def peek(self, keys: Any = None, **options: Any) -> list[Message]:
        """Show all."""
        return await super().peek(None, **options)


@broken("peek_before_any_group", says="never arrived")
class PeekNeedsAGroup(ReferenceBackend):
    """peek() shows nothing until somebody has consumed."""

    class STORE(Store):
        def peek(
            self, name: ConsumerGroup, keys: KeyFilter, limit: int
        ) -> list[tuple[Stored, int]]:
            return super().peek(name, keys, limit) if name in self.groups else []


@broken("peek_is_per_group", says="wait for group 'a'")
class PeekIgnoresGroups(ReferenceBackend):
    """peek() shows what is retained, whoever asks."""

    async def peek(
        self, keys: Any = None, *, group: ConsumerGroup = None, limit: int = 10
    ) -> list[Message]:
        """Show all."""
        return [message_of(stored, 1) for stored in self.store.log][:limit]


class _Ackable(Message):
    __slots__ = ()

    async def ack(self) -> bool:
        return True


@broken("peeked_cannot_be_settled", says="should raise UnsupportedError")
class PeekedCanBeAcked(ReferenceBackend):
    """What peek() shows seems to be ours to settle."""

    async def peek(self, keys: Any = None, **options: Any) -> list[Message]:
        """Show messages that lie."""
        found = await super().peek(keys, **options)
        return [_Ackable(m, m.id, m.key, m._time, m.attempt, m.headers) for m in found]


class _Recount(Store):
    """Counts like the reference, then changes the numbers."""

    def change(self, entry: KeyStats) -> KeyStats:
        return entry

    def count(self, group: Group) -> Iterator[KeyStats]:
        return map(self.change, super().count(group))


@broken("stats_add_up", says="ready should be")
class CountsInFlightAsReady(ReferenceBackend):
    """What is in flight is counted as ready."""

    class STORE(_Recount):
        def change(self, entry: KeyStats) -> KeyStats:
            ready = (entry.ready or 0) + (entry.in_flight or 0)
            return replace(entry, ready=ready, in_flight=0)


@broken("stats_before_any_group", says="ready should be 2, but is 0")
class CountsGroupsOnly(ReferenceBackend):
    """Nothing is counted until somebody has consumed."""

    class STORE(Store):
        def stats(self) -> QueueStats:
            return super().stats() if self.groups else QueueStats()


@broken("stats_count_delayed", "stats_count_failed", says="in_flight should be 0")
class CountsDelayedAsInFlight(ReferenceBackend):
    """What waits for its delay is counted as in flight."""

    class STORE(_Recount):
        def change(self, entry: KeyStats) -> KeyStats:
            return replace(
                entry, in_flight=(entry.in_flight or 0) + (entry.delayed or 0), delayed=0
            )


@broken("stats_count_dead", says="dead should be 1")
class DeadAreNotCounted(ReferenceBackend):
    """Dead letters are not counted."""

    class STORE(_Recount):
        def change(self, entry: KeyStats) -> KeyStats:
            return replace(entry, dead=0)


@broken("stats_are_per_group", says="ready should be 0")
class StatsMergeGroups(ReferenceBackend):
    """Numbers of all groups are attributed to each."""

    async def stats(self) -> QueueStats:
        """Mix them up."""
        stats = await super().stats()
        names = list(self.store.groups)
        return QueueStats(tuple(replace(e, group=name) for e in stats.entries for name in names))


@broken("stats_tell_age", says="is said to be")
class AgeIsATimestamp(ReferenceBackend):
    """The age of the oldest message is when it was published."""

    class STORE(_Recount):
        def change(self, entry: KeyStats) -> KeyStats:
            return replace(entry, oldest_age=time.time() - (entry.oldest_age or 0.0))


# -- cleaning up ---------------------------------------------------------------------------


@broken("groups_are_listed", says="groups() returned")
class DefaultGroupIsHidden(ReferenceBackend):
    """groups() leaves out the default group."""

    async def groups(self) -> list[ConsumerGroup]:
        """List the named."""
        return [group for group in await super().groups() if group is not None]


@broken("groups_are_listed", says="no group was opened")
class InventsAGroup(ReferenceBackend):
    """groups() lists the default group before it exists."""

    async def groups(self) -> list[ConsumerGroup]:
        """List one too many."""
        return list({None: 1, **dict.fromkeys(await super().groups())})


@broken("deleted_group_is_forgotten", says="after delete_group")
class DeletesNothing(ReferenceBackend):
    """delete_group() returns and deletes nothing."""

    async def delete_group(self, name: ConsumerGroup) -> None:
        """Return."""


@broken("purge_spares_what_is_in_flight", says="returned 5")
class PurgesInFlight(ReferenceBackend):
    """purge() also drops what consumers are working on."""

    class STORE(Store):
        def purge(self, name: ConsumerGroup, keys: KeyFilter) -> int:
            for place in self.groups[name].places.values():
                place.lease = None
            return super().purge(name, keys)


@broken("purge_drops_what_came_back", says="returned 1")
class PurgeSparesTheFailed(ReferenceBackend):
    """purge() drops only what was never delivered."""

    class STORE(Store):
        def purge(self, name: ConsumerGroup, keys: KeyFilter) -> int:
            group = self.groups[name]
            failed = {seq: place for seq, place in group.places.items() if place.attempts}
            group.places = {seq: p for seq, p in group.places.items() if seq not in failed}
            count = super().purge(name, keys)
            group.places |= failed
            return count


@broken("purge_keeps_other_delayed", says="what was not purged")
class PurgeDropsEveryDelayed(ReferenceBackend):
    """purge(keys) forgets the delayed messages of all keys, though it counts right."""

    class STORE(Store):
        def purge(self, name: ConsumerGroup, keys: KeyFilter) -> int:
            group, now = self.groups[name], self.now()
            count = super().purge(name, keys)
            group.places = {seq: p for seq, p in group.places.items() if p.due <= now}
            return count


@broken("purge_selects", says="returned 6")
class PurgesEveryKey(ReferenceBackend):
    """purge() does not select."""

    async def purge(self, keys: Any = None, *, group: ConsumerGroup = None) -> int:
        """Drop all."""
        return await super().purge(None, group=group)


@broken("purge_before_any_group", says="returned 0")
class PurgeNeedsAGroup(ReferenceBackend):
    """purge() drops nothing until somebody has consumed."""

    class STORE(Store):
        def purge(self, name: ConsumerGroup, keys: KeyFilter) -> int:
            return super().purge(name, keys) if self.groups else 0


@broken("purge_is_per_group", says="in the other group")
class PurgesEveryGroup(ReferenceBackend):
    """purge() drops what waits for other groups as well."""

    class STORE(Store):
        def purge(self, name: ConsumerGroup, keys: KeyFilter) -> int:
            return sum(super(type(self), self).purge(other, keys) for other in list(self.groups))
