"""Broken settlement, counting and leases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from abe.backends.message_queue.base import (
    Delivery,
    KeyFilter,
    Message,
    MessageStream,
    Outcome,
    SettleFailure,
    Settlement,
)
from tests.selftest.broken.registry import Streamed, broken
from tests.selftest.reference import ReferenceBackend, ReferenceReceiver
from tests.selftest.store import Group, Lease, Place, Store


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
        for delivery in self._hand:
            receiver: Any = self.subscription._connection.receiver
            place = delivery.receipt.place
            if not delivery.owned and receiver is not None:
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
        for delivery in self._hand:
            delivery.owned = False
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
