"""What `MemoryBackend` keeps: records, and for each group what is ready, delayed, leased, dead.

Everything here is synchronous and guarded by one lock per store; nothing in it awaits or decodes.
"""

from __future__ import annotations

import asyncio
import heapq
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import suppress
from itertools import islice

from abe.backends.message_queue.base import KeyFilter, Outcome, Outgoing, Settlement
from abe.backends.message_queue.service.memory_store.census import Census
from abe.backends.message_queue.service.memory_store.group import (
    DeadLetter,
    Group,
    Lease,
    Record,
    View,
)
from abe.errors import ConfigurationError
from abe.types import ConsumerGroup

__all__ = ["Store"]

ACK = Outcome.ACK
SLICE = 10_000
"""Messages dropped without a pause: some milliseconds."""


class Store:
    """Records and groups, shared by all backends of one name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: dict[int, Record] = {}
        self._groups: dict[ConsumerGroup, Group] = {}
        self._waiting: dict[asyncio.Future[None], object] = {}
        self._seq = 0
        self._prefix = _prefix()
        self._offset = 0.0

    def now(self) -> float:
        return time.monotonic() + self._offset

    def advance_time(self, seconds: float) -> None:
        with self._lock:
            self._offset += seconds
            woken = self._wake(None)
        _notify(woken)

    def before_fork(self) -> None:
        """Keep other threads out, so that the child's copy is not caught in the middle."""
        self._lock.acquire()

    def after_fork(self, *, child: bool) -> None:
        """Let others in again; no loop waits in the child, and its ids are its own."""
        if child:
            self._waiting = {}
            self._prefix = _prefix()
        self._lock.release()

    # -- publishing ------------------------------------------------------------------------

    def publish(self, items: Sequence[Outgoing], maxsize: float) -> int:
        """Store as many of ``items`` as there is room for and return how many."""
        with self._lock:
            room = maxsize - len(self._records)
            if room < len(items):
                items = items[: max(0, int(room))]
            published, prefix, records = time.time(), self._prefix, self._records
            groups = [*self._groups.values()]
            seq, pending = self._seq, len(groups)
            for item in items:
                seq += 1
                record = Record(seq, item, f"{prefix}-{seq}", published, pending)
                if record.visible:  # so far this is its delay
                    record.visible += self.now()
                records[seq] = record
                for group in groups:
                    group.add(record)
            self._seq = seq
            woken = self._wake(None) if items and self._waiting else None
        if woken:
            _notify(woken)
        return len(items)

    def wait_for_room(self, maxsize: float) -> asyncio.Future[None]:
        """Return a future that is done when a message has gone, or there is room already."""
        with self._lock:
            future = self._wait("room")
            full = len(self._records) >= maxsize
        if not full:
            future.set_result(None)
        return future

    def wake_publishers(self) -> None:
        with self._lock:
            woken = self._wake("room")
        _notify(woken)

    def slowest(self) -> str:
        with self._lock:
            if not self._groups:
                return "no group consumes from it"
            sizes = {name: sum(1 for _ in g.unsettled()) for name, g in self._groups.items()}
        name = max(sizes, key=sizes.__getitem__)
        return f"the slowest group is {name!r} with {sizes[name]} messages unsettled"

    # -- consuming -------------------------------------------------------------------------

    def open_group(self, name: ConsumerGroup, keys: KeyFilter) -> tuple[Group, View]:
        with self._lock:
            group = self._groups.get(name)
            if group is None:
                group = self._groups[name] = Group()
                for record in sorted(self._records.values(), key=lambda r: r.seq):
                    record.pending += 1
                    group.add(record)
            view = group.views.get(keys.patterns)
            if view is None:
                view = group.views[keys.patterns] = View(keys, group.ready)
            view.users += 1
            return group, view

    def close_view(self, group: Group, view: View) -> None:
        with self._lock:
            view.users -= 1
            if not view.users:
                group.views.pop(view.keys.patterns, None)

    def take(
        self, group: Group, view: View, limit: int, lease: float
    ) -> tuple[list[Lease], asyncio.Future[None] | None, float]:
        """Lease up to ``limit`` messages; if there are none, a future and how long it may wait."""
        with self._lock:
            if group.deleted:
                return [], None, 0.0
            now = self.now()
            group.advance(now)
            leases = group.take(view, limit, now + lease)
            if leases:
                return leases, None, 0.0
            return leases, self._wait(group), max(0.0, group.due() - now)

    def settle(self, group: Group, settlements: Sequence[Settlement]) -> list[int]:
        """Apply settlements; returns the positions of those whose lease is lost."""
        lost = []
        with self._lock:
            now = self.now()
            group.advance(now)
            size = len(self._records)
            leases, attempts, begun = group.leases, group.attempts, group.begun
            back = False
            for position, (delivery, outcome, delay, reason) in enumerate(settlements):
                lease: Lease = delivery.receipt
                record = lease.record
                seq = record.seq
                if group.deleted or leases.get(seq) is not lease:
                    lost.append(position)
                    continue
                del leases[seq]
                if outcome is not ACK and outcome is not Outcome.REJECT:
                    back = True
                    if delivery.began and outcome is Outcome.RELEASE and begun.get(seq):
                        begun[seq] -= 1
                    group.give_back(lease, outcome, now + delay if delay else 0.0)
                    continue
                if outcome is not ACK:
                    group.bury(lease, reason)
                if attempts:
                    attempts.pop(seq, None)
                if begun:
                    begun.pop(seq, None)
                record.pending -= 1
                if record.pending <= 0:
                    self._records.pop(seq, None)
            woken = [*self._wake(group)] if back else []
            if len(self._records) < size:
                woken += self._wake("room")
        _notify(woken)
        return lost

    def extend(self, group: Group, leases: Sequence[Lease], seconds: float) -> list[int]:
        """Let leases end ``seconds`` from now; returns the positions of those that are lost."""
        lost = []
        with self._lock:
            now = self.now()
            group.advance(now)
            for position, lease in enumerate(leases):
                if group.deleted or group.leases.get(lease.record.seq) is not lease:
                    lost.append(position)
                else:
                    lease.ends = now + seconds
            sooner = now + seconds < group.next_expiry
            if sooner:
                group.next_expiry = now + seconds
            woken = self._wake(group) if sooner else []
        _notify(woken)
        return lost

    def begin(self, group: Group, leases: Sequence[Lease]) -> None:
        with self._lock:
            for lease in leases:
                seq = lease.record.seq
                if group.leases.get(seq) is lease:
                    group.begun[seq] = group.begun.get(seq, 0) + 1

    def forget_wait(self, future: asyncio.Future[None]) -> None:
        with self._lock:
            self._waiting.pop(future, None)

    # -- looking and cleaning up -----------------------------------------------------------

    def peek(self, keys: KeyFilter, name: ConsumerGroup, limit: int) -> list[tuple[Record, int]]:
        with self._lock:
            now = self.now()
            group = self._groups.get(name)
            if group is not None:
                group.advance(now)
                records = group.in_order()
            else:
                records = (r for r in self._records.values() if r.visible <= now)
            seen = [*islice((r for r in records if keys.matches(r.key)), limit)]
            attempts = group.attempts if group is not None else {}
            return [(record, attempts.get(record.seq, 0) + 1) for record in seen]

    def census(self) -> list[Census]:
        """Return what there is to count; the retained messages if there is no group."""
        with self._lock:
            now = self.now()
            groups = dict(self._groups)
            if not groups:
                groups[None] = Group()
                for record in self._records.values():
                    groups[None].add(record)
            for group in groups.values():
                group.advance(now)
            return [Census(name, group) for name, group in groups.items()]

    def dead_letters(self, name: ConsumerGroup, limit: int) -> list[DeadLetter]:
        with self._lock:
            group = self._groups.get(name)
            dead = group.dead.values() if group is not None else ()
            return [*islice(dead, limit)]

    def replay(self, name: ConsumerGroup, ids: Set[str] | None, limit: int) -> int:
        with self._lock:
            group = self._groups.get(name)
            if group is None:
                return 0
            chosen = [r for r, _, _ in group.dead.values() if ids is None or r.id in ids][:limit]
            for record in chosen:
                # What every other group is done with is no longer retained for later groups.
                del group.dead[record.seq]
                record.pending += 1
                group.put_back(record)
            woken = self._wake(group)
        _notify(woken)
        return len(chosen)

    def group_names(self) -> list[ConsumerGroup]:
        with self._lock:
            return list(self._groups)

    def delete_group(self, name: ConsumerGroup) -> None:
        with self._lock:
            group = self._groups.pop(name, None)
            if group is None:
                raise ConfigurationError(f"there is no group {name!r}")
            group.deleted = True
            for record in group.unsettled():
                self._done(record)
            woken = [*self._wake(group), *self._wake("room")]
        _notify(woken)

    def purge(self, keys: KeyFilter, name: ConsumerGroup) -> Iterator[int]:
        """Drop what waits, a slice at each step, and yield how many; ends with what was there."""
        with self._lock:
            group = self._groups.get(name)
            if group is None and self._groups:
                return
            late: list[Record] = []
            if group is not None:
                group.advance(self.now())
                late = [record for _, _, record in group.delayed if keys.matches(record.key)]
                group.delayed = [e for e in group.delayed if not keys.matches(e[2].key)]
                heapq.heapify(group.delayed)
                self._drop(group, late)
            waiting = self._records if group is None else group.ready
            seqs = iter(list(waiting))
            woken = self._wake("room")
        _notify(woken)
        yield len(late)
        while some := list(islice(seqs, SLICE)):
            with self._lock:
                there = (waiting[seq] for seq in some if seq in waiting)
                gone = [record for record in there if keys.matches(record.key)]
                self._drop(group, gone)
                woken = self._wake("room")
            _notify(woken)
            yield len(gone)

    # -- with the lock held ----------------------------------------------------------------

    def _drop(self, group: Group | None, records: Iterable[Record]) -> None:
        """Take records out of a group, or, where there is none, out of what is retained."""
        for record in records:
            if group is None:
                del self._records[record.seq]
                continue
            for known in (group.ready, group.attempts, group.begun):
                known.pop(record.seq, None)
            self._done(record)

    def _done(self, record: Record) -> None:
        record.pending -= 1
        if record.pending <= 0:
            self._records.pop(record.seq, None)

    def _wait(self, what: object) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = what
        return future

    def _wake(self, what: object) -> list[asyncio.Future[None]]:
        """Take out the futures that wait for ``what``; ``None`` = every group's."""
        woken = [
            future
            for future, waits_for in self._waiting.items()
            if waits_for is what or (what is None and waits_for != "room")
        ]
        for future in woken:
            del self._waiting[future]
        return woken


def _prefix() -> str:
    return uuid.uuid4().hex[:16]


def _notify(futures: Iterable[asyncio.Future[None]]) -> None:
    if not futures:
        return
    running = asyncio._get_running_loop()
    for future in futures:
        loop = future.get_loop()
        if loop is running:
            _resolve(future)
        else:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_resolve, future)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
