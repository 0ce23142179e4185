"""Broken counting, leases and nack delays."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from abe.backends.message_queue.base import (
    Delivery,
    MessageStream,
    Outcome,
    Outgoing,
    SettleFailure,
    Settlement,
)
from tests.selftest.broken.registry import Streamed, broken
from tests.selftest.reference import FULL, ReferenceBackend, ReferenceReceiver
from tests.selftest.store import Group, Lease, Place, Store
from tests.selftest.variants import Modest, UpperBound


@broken(
    "attempts_are_exact", "metadata_is_complete", "consumer_tells_attempts", says="is 0 after 0"
)
class CountsFromZero(ReferenceBackend):
    """The first attempt is 0."""

    class RECEIVER(ReferenceReceiver):
        def deliver(self, lease: Lease) -> Delivery:
            delivery = super().deliver(lease)
            delivery.message.attempt -= 1
            return delivery


@broken("attempts_are_exact", "consumer_tells_attempts", says="is 1 after 1 failures")
class NeverCounts(ReferenceBackend):
    """The attempt is always 1, though declared exact."""

    class RECEIVER(ReferenceReceiver):
        def deliver(self, lease: Lease) -> Delivery:
            delivery = super().deliver(lease)
            delivery.message.attempt = 1
            return delivery


@broken("attempts_are_exact", "lapsed_lease_redelivers", says="failures, not")
class CountsPerConsumer(ReferenceBackend):
    """Attempts are counted by each consumer for itself, not by the group."""

    class RECEIVER(ReferenceReceiver):
        def deliver(self, lease: Lease) -> Delivery:
            counts: dict[int, int] = vars(self).setdefault("counts", {})
            seq = lease.place.stored.seq
            counts[seq] = counts.get(seq, 0) + 1
            delivery = super().deliver(lease)
            delivery.message.attempt = counts[seq]
            return delivery


@broken("attempts_are_an_upper_bound", says="is too low")
class UpperBoundTooLow(UpperBound):
    """Attempts are declared an upper bound, but every other failure is not counted."""

    class RECEIVER(ReferenceReceiver):
        def deliver(self, lease: Lease) -> Delivery:
            delivery = super().deliver(lease)
            delivery.message.attempt = (lease.attempt + 1) // 2
            return delivery


@broken("attempts_unclaimed_are_one", says="'attempts'")
class CountsUnclaimed(Modest):
    """Attempts are told, but not declared."""

    class RECEIVER(ReferenceReceiver):
        def deliver(self, lease: Lease) -> Delivery:
            delivery = super().deliver(lease)
            delivery.message.attempt = lease.attempt
            return delivery


@broken(
    "release_is_not_counted",
    "leaving_is_not_counted",
    "close_gives_back_what_was_ahead",
    "cancelled_run_loses_nothing",
    says="nothing failed; releases",
)
class ReleaseCounts(ReferenceBackend):
    """A release counts as an attempt, though attempts are declared exact."""

    class STORE(Store):
        def release(self, place: Place) -> None:
            place.due = 0.0


@broken("attempts_are_per_group", says="in group b")
class AttemptsOfAllGroups(ReferenceBackend):
    """Attempts are counted over all groups together."""

    class STORE(Store):
        def lease(self, place: Place, until: float) -> Lease:
            lease = super().lease(place, until)
            seq = place.stored.seq
            lease.attempt = sum(
                group.places[seq].attempts for group in self.groups.values() if seq in group.places
            )
            return lease


# -- leases --------------------------------------------------------------------------------


@broken(
    "lapsed_lease_redelivers",
    "stale_ack_changes_nothing",
    "stale_nack_changes_nothing",
    "killed_consumer_loses_nothing",
    says="whose lease has lapsed",
)
class LeaseIsNotEnforced(ReferenceBackend):
    """What a dead consumer held never comes back."""

    class STORE(Store):
        def lease(self, place: Place, until: float) -> Lease:
            return super().lease(place, float("inf"))


@broken("stale_ack_changes_nothing", says="not lost")
class AcceptsStaleAcks(ReferenceBackend):
    """Whoever once held a message can ack it."""

    class STORE(Store):
        def owns(self, group: Group, lease: Lease) -> bool:
            return group.places.get(lease.place.stored.seq) is lease.place


@broken("stale_nack_changes_nothing", says="in the hands of another consumer")
class AcceptsStaleNacks(ReferenceBackend):
    """A stale nack takes the message away from its present owner."""

    class STORE(Store):
        def settle(self, group: Group, settlement: Settlement) -> bool:
            place = settlement.delivery.receipt.place
            if settlement.outcome is Outcome.NACK and not self.owns(
                group, settlement.delivery.receipt
            ):
                place.lease, place.due = None, 0.0
                self.notify()
                return True
            return super().settle(group, settlement)


@broken("flushed_ack_outlives_the_lease", says="more often than published")
class FlushLies(ReferenceBackend):
    """Acks are confirmed at once and sent when the consumer closes."""

    class RECEIVER(ReferenceReceiver):
        kept: list[Settlement]

        async def open(self) -> None:
            await super().open()
            self.kept = []

        async def settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleFailure]:
            self.kept += [s for s in settlements if s.outcome is Outcome.ACK]
            return await super().settle([s for s in settlements if s.outcome is not Outcome.ACK])

        async def aclose(self) -> None:
            with suppress(AttributeError):
                await super().settle(self.kept)
            await super().aclose()


@broken("lease_is_kept_while_working", says="while the first worked")
class NeverExtends(ReferenceBackend):
    """Extending a lease is confirmed and not done."""

    class RECEIVER(ReferenceReceiver):
        async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> list[Delivery]:
            return []


@broken(
    "idle_consumer_gives_back",
    "prefetch_of_one_holds_one",
    "suspect_is_held_alone",
    says="stuck consumer held",
)
class ReadsAhead(ReferenceBackend):
    """The driver reads ahead by itself and keeps what it has read."""

    class RECEIVER(ReferenceReceiver):
        async def open(self) -> None:
            await super().open()
            self.ahead: list[Lease] = []
            self.arrived = asyncio.Event()
            self.reader = asyncio.create_task(self.read())

        async def read(self) -> None:
            news = asyncio.Event()
            self.store.listeners.add(news)
            try:
                while True:
                    news.clear()
                    self.ahead += self.store.take(self.group, self.keys, 100, 3600.0)
                    if self.ahead:
                        self.arrived.set()
                    await news.wait()
            finally:
                self.store.listeners.discard(news)

        async def receive(self, max_messages: int, timeout: float) -> Sequence[Delivery]:
            while not self.ahead and not self.woken:
                self.arrived.clear()
                await self.arrived.wait()
            self.woken = False
            taken, self.ahead = self.ahead[:max_messages], self.ahead[max_messages:]
            return [self.deliver(lease) for lease in taken]

        def wake(self) -> None:
            super().wake()
            self.arrived.set()

        async def aclose(self) -> None:
            await super().aclose()
            if hasattr(self, "reader"):
                self.reader.cancel()
                for lease in self.ahead:
                    lease.place.due, lease.place.lease = 0.0, None
                    lease.place.attempts -= 1
                self.store.notify()


@broken("killed_publisher_loses_nothing", says="message 10 of 10")
class WritesBehind(ReferenceBackend):
    """A message is stored when the next one is published, or at the end."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.behind: list[Outgoing] = []

    async def _send(self, items: Sequence[Outgoing]) -> None:
        behind, self.behind = self.behind, list(items)
        await super()._send(behind)

    async def _disconnect(self) -> None:
        await super()._send(self.behind)


@broken("nack_delay_is_a_lower_bound", "consumer_waits_before_retrying", says="before its delay")
class NackDelayIgnored(ReferenceBackend):
    """A nacked message comes back at once."""

    class STORE(Store):
        def nack(self, place: Place, delay: float) -> None:
            super().nack(place, 0.0)


@broken("longest_nack_delay", says="only 90 %")
class NackDelayCapped(ReferenceBackend):
    """Nack delays of more than a minute are cut silently."""

    class STORE(Store):
        def nack(self, place: Place, delay: float) -> None:
            super().nack(place, min(delay, 60.0))


@broken("nack_delay_beyond_the_longest", says="'nack_delay'")
class AcceptsAnyNackDelay(Streamed):
    """A nack delay longer than declared is accepted."""

    CAPABILITIES = replace(FULL, nack_delay=5.0)

    def consume(self, **options: Any) -> MessageStream:
        """Return a stream that claims more."""
        stream = super().consume(**options)
        stream.subscription.capabilities = replace(self.capabilities, nack_delay=86_400.0)
        return stream
