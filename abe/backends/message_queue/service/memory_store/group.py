"""What one consumer group of a memory store has not settled: ready, delayed, leased, dead.

Nothing here locks: the `Store` does, around every call.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator
from typing import Any

from abe.backends.message_queue.base import KeyFilter, Outcome, Outgoing, dead_headers

__all__ = ["DeadLetter", "Group", "Lease", "Record", "View"]

SUSPECT_ATTEMPT = 3
"""From this attempt on a message is handed out alone: it may be what kills its consumers."""


class Record:
    """A published message.

    Attributes:
        visible: When its delay is over, by the store's clock; 0 = it had none.
        body: What `freeze_payload` made.
        pending: Number of groups that have not settled it.
    """

    __slots__ = ("body", "headers", "id", "key", "pending", "seq", "time", "visible")

    body: Any

    def __init__(self, seq: int, item: Outgoing, id: str, published: float, pending: int) -> None:
        self.seq = seq
        self.key, self.body, self.headers, self.visible = item
        self.id = id
        self.time = published
        self.pending = pending


class Lease:
    """A record in the hands of one consumer; the receipt of its delivery."""

    __slots__ = ("attempt", "ends", "record")

    def __init__(self, record: Record, ends: float, attempt: int) -> None:
        self.record = record
        self.ends = ends
        self.attempt = attempt


DeadLetter = tuple[Record, int, dict[str, str]]
"""A rejected record, how often it was delivered, and its headers."""


class View:
    """The ready messages of a group that pass one filter, in publish order.

    May name messages that have been taken through another view meanwhile; they are skipped.
    """

    __slots__ = ("fresh", "keys", "returned", "users")

    def __init__(self, keys: KeyFilter, ready: dict[int, Record]) -> None:
        self.keys = keys
        self.users = 0
        self.rebuild(ready)

    def rebuild(self, ready: dict[int, Record]) -> None:
        matching = sorted(seq for seq, record in ready.items() if self.keys.matches(record.key))
        self.fresh = deque(matching)
        self.returned: list[int] = []

    def first(self, ready: dict[int, Record]) -> int | None:
        """Return the first ready message, dropping those taken through other views."""
        fresh, returned = self.fresh, self.returned
        while fresh and fresh[0] not in ready:
            fresh.popleft()
        while returned and returned[0] not in ready:
            heapq.heappop(returned)
        if returned and not (fresh and fresh[0] < returned[0]):
            return returned[0]
        return fresh[0] if fresh else None


class Group:
    """What one consumer group has not settled."""

    def __init__(self) -> None:
        self.ready: dict[int, Record] = {}
        self.views: dict[tuple[str, ...], View] = {}
        self.delayed: list[tuple[float, int, Record]] = []
        self.leases: dict[int, Lease] = {}
        self.attempts: dict[int, int] = {}
        """Deliveries so far, of messages that have come back."""
        self.begun: dict[int, int] = {}
        """How often the handling of a message has begun; only suspects are here."""
        self.dead: dict[int, DeadLetter] = {}
        self.came_back: set[int] = set()
        """Ready messages that are not where publishing put them in `ready`, and others."""
        self.next_expiry = math.inf
        self.deleted = False

    def add(self, record: Record) -> None:
        """A newly published message; called in publish order."""
        if record.visible:
            heapq.heappush(self.delayed, (record.visible, record.seq, record))
            return
        self.ready[record.seq] = record
        for view in self.views.values():
            if view.keys.matches(record.key):
                view.fresh.append(record.seq)
                self._compact(view)

    def put_back(self, record: Record) -> None:
        self.ready[record.seq] = record
        self.came_back.add(record.seq)
        if len(self.came_back) > 2 * len(self.ready) + 1000:
            self.came_back.intersection_update(self.ready)
        for view in self.views.values():
            if view.keys.matches(record.key):
                heapq.heappush(view.returned, record.seq)
                self._compact(view)

    def _compact(self, view: View) -> None:
        if len(view.fresh) + len(view.returned) > 2 * len(self.ready) + 1000:
            view.rebuild(self.ready)

    def advance(self, now: float) -> None:
        """Make ready what is due: delays that are over, leases that have lapsed."""
        while self.delayed and self.delayed[0][0] <= now:
            self.put_back(heapq.heappop(self.delayed)[2])
        if now >= self.next_expiry:
            lapsed = [lease for lease in self.leases.values() if lease.ends <= now]
            for lease in lapsed:
                del self.leases[lease.record.seq]
                self.attempts[lease.record.seq] = lease.attempt
                self.put_back(lease.record)
            self.next_expiry = min((x.ends for x in self.leases.values()), default=math.inf)

    def take(self, view: View, limit: int, ends: float) -> list[Lease]:
        taken: list[Lease] = []
        while len(taken) < limit:
            if not (self.attempts or view.returned):
                taken += self._take_fresh(view, limit - len(taken), ends)
                break
            seq = view.first(self.ready)
            if seq is None:
                break
            attempt = self.attempts.get(seq, 0) + 1
            if attempt >= SUSPECT_ATTEMPT and taken:
                break
            lease = Lease(self.ready.pop(seq), ends, attempt)
            self.leases[seq] = lease
            taken.append(lease)
            if attempt >= SUSPECT_ATTEMPT:
                break
        if taken:
            self.next_expiry = min(self.next_expiry, ends)
        return taken

    def _take_fresh(self, view: View, limit: int, ends: float) -> list[Lease]:
        """Take messages where none has ever come back, which is how it mostly is."""
        fresh, ready, leases = view.fresh, self.ready, self.leases
        taken: list[Lease] = []
        while fresh and len(taken) < limit:
            seq = fresh.popleft()
            record = ready.pop(seq, None)
            if record is not None:
                leases[seq] = lease = Lease(record, ends, 1)
                taken.append(lease)
        return taken

    def in_order(self) -> Iterator[Record]:
        """Yield the ready messages in publish order, without looking at all of them."""
        ready, came_back = self.ready, self.came_back
        fresh = (record for seq, record in ready.items() if seq not in came_back)
        returned = (ready[seq] for seq in sorted(came_back.intersection(ready)))
        return heapq.merge(fresh, returned, key=lambda record: record.seq)

    def due(self) -> float:
        return min(self.next_expiry, self.delayed[0][0] if self.delayed else math.inf)

    def unsettled(self) -> Iterator[Record]:
        yield from self.ready.values()
        yield from (record for _, _, record in self.delayed)
        yield from (lease.record for lease in self.leases.values())

    def give_back(self, lease: Lease, outcome: Outcome, due: float) -> None:
        record = lease.record
        earlier = lease.attempt if outcome is Outcome.NACK else lease.attempt - 1
        if earlier:
            self.attempts[record.seq] = earlier
        if due:
            heapq.heappush(self.delayed, (due, record.seq, record))
        else:
            self.put_back(record)

    def bury(self, lease: Lease, reason: str) -> None:
        record = lease.record
        headers = dead_headers(
            record.headers, reason=reason, attempts=lease.attempt, id=record.id, key=record.key
        )
        self.dead[record.seq] = record, lease.attempt, headers
