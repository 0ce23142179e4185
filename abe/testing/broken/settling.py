"""Broken settlement, counting and leases."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from abe.backends.message_queue.base import (
    Delivery,
    KeyFilter,
    Message,
    MessageStream,
    Outcome,
    Outgoing,
    SettleFailure,
    Settlement,
)
from abe.testing._store import Group, Lease, Place, Store
from abe.testing.broken.registry import Streamed, broken
from abe.testing.reference import FULL, ReferenceBackend, ReferenceReceiver
from abe.testing.variants import Modest, UpperBound


@broken(
    "break_redelivers",
    "exception_redelivers",
    "cancellation_redelivers",
    "take_gives_back_on_exception",
    "cancelled_run_loses_nothing",
    "killed_consumer_loses_nothing",
    "closing_gives_back",
    "close_gives_back_what_was_ahead",
    says="never arrived",
)
class AcksBeforeYielding(ReferenceBackend):
    """A message is acked when it is received."""

    class STORE(Store):
        def lease(self, place: Place, until: float) -> Lease:
            lease = super().lease(place, until)
            for group in self.groups.values():
                if group.places.get(place.stored.seq) is place:
                    del group.places[place.stored.seq]
            return lease


@broken(
    "nack_redelivers",
    "nack_then_resume_is_no_ack",
    "failures_do_not_block",
    "load_with_failures",
    "consumer_tries_failures_again",
    "consumers_under_load",
    says="the nacked message to come again",
)
class NackIsAck(ReferenceBackend):
    """A failed message is dropped."""

    class STORE(Store):
        def settle(self, group: Group, settlement: Settlement) -> bool:
            if settlement.outcome is Outcome.NACK:
                settlement = settlement._replace(outcome=Outcome.ACK)
            return super().settle(group, settlement)


@broken(
    "resume_acks",
    "ack_is_final",
    "take_acks_on_clean_exit",
    "many_unsettled_at_once",
    "consumer_acks_what_is_handled",
    says="more often than published",
)
class NeverAcks(ReferenceBackend):
    """An acked message is kept and delivered to the next consumer."""

    class RECEIVER(ReferenceReceiver):
        kept: list[Place]

        async def open(self) -> None:
            await super().open()
            self.kept = []

        async def settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleFailure]:
            acked = [s for s in settlements if s.outcome is Outcome.ACK]
            self.kept += [s.delivery.receipt.place for s in acked]
            return await super().settle([s for s in settlements if s not in acked])

        async def aclose(self) -> None:
            await super().aclose()
            for place in self.kept:
                place.due = 0.0


class _AckAlwaysWins(Message):
    behind: tuple[Place, Group, Store]

    async def ack(self) -> bool:
        place, group, store = self.behind
        if group.places.get(place.stored.seq) is place:
            store.ack(group, place)
        await super().ack()
        return True


@broken(
    "first_settlement_wins",
    "consumer_leaves_settling_to_handlers",
    says="ack() after nack() should return False",
)
class LastSettlementWins(ReferenceBackend):
    """An ack after a nack acks."""

    class RECEIVER(ReferenceReceiver):
        def deliver(self, lease: Lease) -> Delivery:
            m = super().deliver(lease).message
            own = _AckAlwaysWins(m, m.id, m.key, m._time, m.attempt, m.headers)
            own.behind = (lease.place, self.group, self.store)
            return Delivery(own, lease)


class _ResumeAcksAll(MessageStream):
    __slots__ = ()

    async def __anext__(self) -> Message:
        for delivery in self._engine.hand:
            receiver: Any = self._engine._connection.receiver
            place = delivery.receipt.place
            if not delivery.detached and receiver is not None:
                receiver.group.places.pop(place.stored.seq, None)
        return await super().__anext__()


@broken("nack_then_resume_is_no_ack", "nack_redelivers", says="both, the nacked")
class ResumeAcksTheNacked(Streamed):
    """Asking for more acks what came before, even if it was nacked."""

    STREAM = _ResumeAcksAll


@broken("acks_out_of_order", says="never acked")
class CumulativeAcks(ReferenceBackend):
    """An ack acks everything published before it, as a naive offset commit does."""

    class STORE(Store):
        def ack(self, group: Group, place: Place) -> None:
            for seq in [seq for seq in group.places if seq <= place.stored.seq]:
                del group.places[seq]

        def owns(self, group: Group, lease: Lease) -> bool:
            return super().owns(group, lease) or lease.place.stored.seq not in group.places


class _AcksDetached(MessageStream):
    __slots__ = ()

    async def __anext__(self) -> Message:
        for delivery in self._engine.hand:
            delivery.detached = False
        return await super().__anext__()


@broken("detached_is_its_owners", says="detached message was settled")
class DetachIsIgnored(Streamed):
    """Asking for more acks messages that somebody else has taken over."""

    STREAM = _AcksDetached


@broken(
    "failure_does_not_hold_others_up", "consumer_goes_on_beside_poison", says="after the failed one"
)
class FailureBlocksTheQueue(ReferenceBackend):
    """While a failed message waits to be tried again, nothing else is handed out."""

    class STORE(Store):
        def nack(self, place: Place, delay: float) -> None:
            super().nack(place, max(delay, 0.2))

        def candidates(self, group: Group, now: float) -> Iterator[Place]:
            waiting = any(p.due > now and p.lease is None for p in group.places.values())
            return iter(()) if waiting else super().candidates(group, now)


@broken(
    "many_unsettled_at_once",
    "consumer_works_concurrently",
    "prefetch_of_one_holds_one",
    says="are unsettled",
)
class OneAtATime(ReferenceBackend):
    """A group gets nothing while one of its messages is unsettled."""

    class STORE(Store):
        def candidates(self, group: Group, now: float) -> Iterator[Place]:
            busy = any(p.lease is not None and p.due > now for p in group.places.values())
            return iter(()) if busy else super().candidates(group, now)

        def take(self, group: Group, keys: KeyFilter, limit: int, seconds: float) -> list[Lease]:
            return super().take(group, keys, 1, seconds)


class _AckFails(Message):
    __slots__ = ()

    def _record(self, outcome: Outcome, delay: float = 0.0, reason: str = "") -> bool:
        return super()._record(outcome, delay, reason) and outcome is not Outcome.ACK


@broken("ack_is_final", "consumer_runs_sync_handlers", says="should return True")
class AckTellsNothing(ReferenceBackend):
    """The first ack() returns False although it acks."""

    class RECEIVER(ReferenceReceiver):
        def deliver(self, lease: Lease) -> Delivery:
            m = super().deliver(lease).message
            own = _AckFails(m, m.id, m.key, m._time, m.attempt, m.headers)
            return Delivery(own, lease)


# -- counting ------------------------------------------------------------------------------


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
    says="releases and no failure",
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
        stream._engine.capabilities = replace(self.capabilities, nack_delay=86_400.0)
        return stream
