"""Broken recovery: after a cut, a loss of data, a suspect; and admin beside traffic."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence

from abe.types import ConsumerGroup
from tests.selftest.broken.registry import broken
from tests.selftest.reference import ReferenceBackend
from tests.selftest.store import Group, Lease, Place, Store, Stored


@broken("order_survives_a_cut", says="more often than published")
class CutEndsLeases(ReferenceBackend):
    """What a lost connection had received belongs to nobody, so that it comes twice."""

    class STORE(Store):
        def cut(self) -> None:
            for group in self.groups.values():
                for place in group.places.values():
                    place.lease, place.due = None, 0.0
            super().cut()


@broken("order_survives_a_cut", says="out of order")
class CutReverses(ReferenceBackend):
    """What a lost connection had received ahead comes last."""

    class STORE(Store):
        def release(self, place: Place) -> None:
            super().release(place)
            place.due = self.now() - 1.0

        def candidates(self, group: Group, now: float) -> Iterator[Place]:
            released = [place for place in super().candidates(group, now) if place.due > 1e-9]
            fresh = [place for place in super().candidates(group, now) if place not in released]
            yield from [*fresh, *released[::-1]]


@broken("begun_handling_is_counted", says="lapsed in its handling: begun 0, not 1")
class LapseForgetsBegun(ReferenceBackend):
    """How often handling has begun is forgotten when a lease lapses."""

    class STORE(Store):
        def lease(self, place: Place, until: float) -> Lease:
            if place.lease is not None:
                place.begun.clear()
            return super().lease(place, until)


@broken("begun_handling_is_counted", says="released after that: begun 3, not 1")
class ReleaseKeepsBegun(ReferenceBackend):
    """Handling that ended by a release counts as begun."""

    class STORE(Store):
        def release(self, place: Place) -> None:
            begun = {*place.begun, 1_000}
            super().release(place)
            place.begun = begun


@broken("groups_outlive_lost_data", says="what was published after that")
class RemakesGroupsTooLate(ReferenceBackend):
    """After a loss of data a group begins with what comes after its consumer has noticed."""

    class STORE(Store):
        lost = False

        def lose(self) -> None:
            super().lose()
            self.lost = True

        def backlog(self) -> Sequence[Stored]:
            return () if self.lost else super().backlog()

    def restore_groups(self) -> None:
        """Leave that to the consumers."""


@broken("replay_ends", says="returned")
class ReplaysUntilNoneIsLeft(ReferenceBackend):
    """replay() goes on as long as there are dead letters."""

    async def replay(
        self,
        *,
        group: ConsumerGroup = None,
        ids: Iterable[str] | None = None,
        limit: int | None = None,
    ) -> int:
        """Put back all, again and again, for a while."""
        count = 0
        for _ in range(20):
            count += await super().replay(group=group, ids=ids, limit=limit)
            await asyncio.sleep(0.005)
        return count


@broken("purge_counts_beside_a_publisher", says="so that all have come")
class PurgeCountsAfterwards(ReferenceBackend):
    """purge() says how many messages fewer there are, and takes a while."""

    async def purge(
        self, keys: Sequence[str] | str | None = None, *, group: ConsumerGroup = None
    ) -> int:
        """Drop what waits and count what has come."""
        count = await super().purge(keys, group=group)
        await asyncio.sleep(0.01)
        return count + len(self.store.log)
