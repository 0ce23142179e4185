"""Broken groups, filters, order and delays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from abe.backends.message_queue.base import Delivery, KeyFilter, MessageStream, Outgoing
from abe.errors import InvalidKeyError
from abe.types import ConsumerGroup
from tests.selftest.broken.registry import Streamed, broken
from tests.selftest.reference import ReferenceBackend, ReferenceReceiver
from tests.selftest.store import Group, Place, Store, Stored
from tests.selftest.variants import GroupFiltered, KeyOrdered, Modest

# -- groups --------------------------------------------------------------------------------


@broken(
    "each_group_sees_everything",
    "consumers_of_two_groups",
    "stats_are_per_group",
    "deleted_group_is_forgotten",
    says="never arrived",
)
class SharedGroup(ReferenceBackend):
    """All groups are one: what one has taken the others never see."""

    class STORE(Store):
        def open_group(self, name: ConsumerGroup, keys: KeyFilter) -> Group:
            return super().open_group("shared", keys)


@broken("group_names_are_distinct", says="in group")
class FoldsGroupNames(ReferenceBackend):
    """Group names that differ only in case, or in what a broker forbids, are one group."""

    class STORE(Store):
        def open_group(self, name: ConsumerGroup, keys: KeyFilter) -> Group:
            return super().open_group(str(name).lower(), keys)


@broken("group_exists_once_opened", says="never arrived")
class GroupDiesWithItsConsumer(ReferenceBackend):
    """A group without a consumer gets nothing."""

    class STORE(Store):
        def publish(self, items: Sequence[Outgoing], maxsize: float) -> None:
            sleeping = [] if self.listeners else list(self.groups.values())
            before = {group.name: dict(group.places) for group in sleeping}
            super().publish(items, maxsize)
            for group in sleeping:
                group.places = before[group.name]


@broken("failure_stays_in_its_group", says="failed in group a only")
class FailsForAllGroups(ReferenceBackend):
    """A failed message is delivered again in every group."""

    class STORE(Store):
        def nack(self, place: Place, delay: float) -> None:
            super().nack(place, delay)
            for group in self.groups.values():
                group.places.setdefault(place.stored.seq, Place(place.stored, 0.0))


@broken("new_group_sees_the_backlog", "retained_without_a_group", says="never arrived")
class NewGroupMissesTheBacklog(ReferenceBackend):
    """A new group sees only what is published later, though backlog is declared."""

    class STORE(Store):
        def backlog(self) -> Sequence[Stored]:
            return ()


@broken("retained_without_a_group", "what_is_published_arrives", says="never arrived")
class NothingWithoutAGroup(ReferenceBackend):
    """What is published while no group exists is lost."""

    class STORE(Store):
        def publish(self, items: Sequence[Outgoing], maxsize: float) -> None:
            if self.groups:
                super().publish(items, maxsize)


@broken("no_backlog_unclaimed", says="'backlog'")
class OffersBacklog(Modest):
    """A new group sees the backlog, which is not declared."""

    class STORE(Store):
        def backlog(self) -> Sequence[Stored]:
            return self.log


@broken("publish_to_nobody_is_refused", says="but it returned")
class PublishesToNobody(Modest):
    """A message that reaches no group is accepted."""

    class STORE(Store):
        def publish(self, items: Sequence[Outgoing], maxsize: float) -> None:
            if self.groups:
                super().publish(items, maxsize)


# -- keys ----------------------------------------------------------------------------------


@broken("filter_selects", says="keys=['orders.*']")
class StarMatchesDots(ReferenceBackend):
    """A star matches several segments, as a glob does."""

    class STORE(Store):
        def matches(self, group: Group, keys: KeyFilter, key: str) -> bool:
            wider = [p.removesuffix("*") + "**" if p.endswith(".*") else p for p in keys.patterns]
            return KeyFilter(wider or None).matches(key)


@broken("several_patterns", says="more often than published")
class OncePerPattern(ReferenceBackend):
    """A message is delivered once for each pattern that matches it."""

    class RECEIVER(ReferenceReceiver):
        async def receive(self, max_messages: int, timeout: float) -> Sequence[Delivery]:
            found = await super().receive(max_messages, timeout)
            return [
                self.deliver(delivery.receipt)
                for delivery in found
                for pattern in self.keys.patterns or ("**",)
                if KeyFilter(pattern).matches(str(delivery.message.key))
            ]


@broken(
    "unmatched_stay_for_others",
    "filtered_consumers_work_side_by_side",
    "consumer_filters_keys",
    says="never arrived",
)
class FilterEatsMessages(ReferenceBackend):
    """What a filter leaves out is acked."""

    class STORE(Store):
        def matches(self, group: Group, keys: KeyFilter, key: str) -> bool:
            if keys.matches(key):
                return True
            for seq in [s for s, p in group.places.items() if p.stored.item.key == key]:
                del group.places[seq]
            return False


@broken("filtered_consumers_work_side_by_side", says="messages of key")
class FirstFilterCounts(ReferenceBackend):
    """Only the filter of a group's first consumer is served."""

    class STORE(Store):
        def matches(self, group: Group, keys: KeyFilter, key: str) -> bool:
            first = vars(self).setdefault("filters", {}).setdefault(group.name, keys)
            return keys.matches(key) and first.patterns == keys.patterns


@broken("failed_returns_to_its_filter", says="does not match the failed")
class FailedGoesToAnyone(ReferenceBackend):
    """A redelivered message reaches consumers whose filter does not match it."""

    class STORE(Store):
        def take(self, group: Group, keys: KeyFilter, limit: int, seconds: float) -> Any:
            again = any(p.attempts and p.due <= self.now() for p in group.places.values())
            return super().take(group, KeyFilter() if again else keys, limit, seconds)


@broken("group_has_one_filter", says="keys='group'")
class MixesFilters(GroupFiltered):
    """Consumers of one group may give different filters, which then eat each other's messages."""

    class STORE(Store):
        def open_group(self, name: ConsumerGroup, keys: KeyFilter) -> Group:
            group = super().open_group(name, keys) if name not in self.groups else self.groups[name]
            group.patterns = keys.patterns
            return group


@broken("malformed_filters_are_refused", says="should raise InvalidKeyError")
class AcceptsAnyFilter(Streamed):
    """A malformed filter matches everything."""

    def consume(self, *, keys: Any = None, **options: Any) -> MessageStream:
        """Take any filter."""
        try:
            KeyFilter(keys)
        except InvalidKeyError:
            keys = None
        return super().consume(keys=keys, **options)


# -- order ---------------------------------------------------------------------------------


@broken(
    "one_consumer_sees_publish_order",
    "one_consumer_sees_order_across_keys",
    "publishers_keep_their_order",
    says="out of order",
)
class LastInFirstOut(ReferenceBackend):
    """The newest message comes first."""

    class STORE(Store):
        def candidates(self, group: Group, now: float) -> Iterator[Place]:
            return reversed(list(super().candidates(group, now)))


@broken("one_consumer_sees_order_across_keys", says="out of order")
class OrderedWithinKeysOnly(ReferenceBackend):
    """Order is kept within a key, though declared for all keys of a consumer."""

    class STORE(Store):
        def candidates(self, group: Group, now: float) -> Iterator[Place]:
            return iter(
                sorted(super().candidates(group, now), key=lambda place: place.stored.item.key)
            )


@broken("bulk_keeps_order", says="out of order")
class BulkReversed(ReferenceBackend):
    """publish_many() publishes in another order."""

    async def publish_many(self, items: Any, *, key: str | None = None) -> int:
        """Publish the last first."""
        return await super().publish_many(list(items)[::-1], key=key)


@broken(
    "key_waits_for_its_unsettled",
    "key_waits_for_its_failed",
    "key_waits_for_its_delayed",
    says="earlier message of the key is unsettled",
)
class KeyDoesNotWait(KeyOrdered):
    """Ordered per key is declared, but the next message of a key is handed out at once."""

    class STORE(Store):
        def candidates(self, group: Group, now: float) -> Iterator[Place]:
            return (place for place in group.in_order() if place.due <= now)


@broken("consumer_keeps_key_order", "one_consumer_sees_publish_order", says="out of order")
class KeyReversed(KeyOrdered):
    """Of a key, the newest message comes first."""

    class STORE(Store):
        def candidates(self, group: Group, now: float) -> Iterator[Place]:
            newest = {place.stored.item.key: place for place in group.in_order()}
            busy = {
                p.stored.item.key
                for p in group.places.values()
                if p.due > now and p.lease is not None
            }
            return (p for p in newest.values() if p.due <= now and p.stored.item.key not in busy)


@broken("other_keys_go_on", says="of another key")
class EveryKeyWaits(KeyOrdered):
    """An unsettled message holds up all keys."""

    class STORE(Store):
        def candidates(self, group: Group, now: float) -> Iterator[Place]:
            return (place for place in group.in_order()[:1] if place.due <= now)


@broken("key_waits_for_its_failed", "key_order_survives_release", says="out of order")
class ReturnedGoesToTheEnd(KeyOrdered):
    """A message that comes back is put behind its successors."""

    class STORE(Store):
        def candidates(self, group: Group, now: float) -> Iterator[Place]:
            busy = {
                p.stored.item.key
                for p in group.places.values()
                if p.due > now and p.lease is not None
            }
            for place in sorted(group.in_order(), key=lambda p: id(p) in self.returned):
                key = place.stored.item.key
                if key not in busy and place.due <= now:
                    busy.add(key)
                    yield place

        @property
        def returned(self) -> set[int]:
            own: set[int] = vars(self).setdefault("back", set())
            return own

        def nack(self, place: Place, delay: float) -> None:
            super().nack(place, delay)
            self.returned.add(id(place))

        def release(self, place: Place) -> None:
            super().release(place)
            self.returned.add(id(place))


@broken("key_waits_for_its_delayed", says="overtook")
class DelayedIsOvertaken(KeyOrdered):
    """A delayed message does not hold back the next ones of its key."""

    class STORE(Store):
        def candidates(self, group: Group, now: float) -> Iterator[Place]:
            late = [p for p in group.places.values() if p.due > now and not p.attempts]
            hidden = {p.stored.seq: group.places.pop(p.stored.seq) for p in late}
            found = list(super().candidates(group, now))
            group.places |= hidden
            return iter(found)


# -- delays --------------------------------------------------------------------------------


@broken("delay_is_a_lower_bound", "longest_delay", "stats_count_delayed", says="before its delay")
class DelayIgnored(ReferenceBackend):
    """A delay is accepted and ignored."""

    class STORE(Store):
        def publish(self, items: Sequence[Outgoing], maxsize: float) -> None:
            super().publish([item._replace(delay=0.0) for item in items], maxsize)


@broken("delay_holds_up_no_other_key", says="never arrived")
class DelayHoldsUpAll(ReferenceBackend):
    """Nothing is handed out while a message waits for its delay."""

    class STORE(Store):
        def candidates(self, group: Group, now: float) -> Iterator[Place]:
            late = any(p.due > now and p.lease is None for p in group.places.values())
            return iter(()) if late else super().candidates(group, now)


@broken("longest_delay", says="only 90 %")
class DelayCapped(ReferenceBackend):
    """Delays of more than a minute are cut silently."""

    class STORE(Store):
        def publish(self, items: Sequence[Outgoing], maxsize: float) -> None:
            super().publish([item._replace(delay=min(item.delay, 60.0)) for item in items], maxsize)


@broken("delay_beyond_the_longest", says="'delay'")
class AcceptsAnyDelay(ReferenceBackend):
    """A delay longer than declared is accepted."""

    def _check(self, key: Any, payload: Any, headers: Any, delay: float) -> Outgoing:
        return super()._check(key, payload, headers, min(delay, self.capabilities.delay))
