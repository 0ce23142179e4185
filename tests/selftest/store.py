"""What the reference backend keeps: plain lists and dicts, correct before fast."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from abe.backends.message_queue.base import (
    Capabilities,
    KeyFilter,
    Outcome,
    Outgoing,
    Settlement,
    dead_headers,
)
from abe.errors import ConfigurationError, PublishError
from abe.testing.harness import GROUPS
from abe.types import ConsumerGroup, KeyStats, QueueStats

__all__ = ["Group", "Lease", "Place", "Store", "Stored"]


@dataclass(slots=True)
class Stored:
    """A published message."""

    seq: int
    id: str
    item: Outgoing
    time: float
    visible: float


@dataclass(slots=True, eq=False)
class Lease:
    """A message in the hands of one consumer; the receipt of its delivery."""

    place: Place
    attempt: int


@dataclass(slots=True, eq=False)
class Place:
    """Where a message stands in one group: it can be taken from ``due`` on."""

    stored: Stored
    due: float
    attempts: int = 0
    lease: Lease | None = None
    """Who took it last; the lease has lapsed once ``due`` has passed."""
    begun: set[int] = field(default_factory=set)
    """The attempts whose handling has begun."""


@dataclass(slots=True, eq=False)
class Group:
    """What one group has not settled, and what it has given up."""

    name: ConsumerGroup
    places: dict[int, Place] = field(default_factory=dict)
    dead: dict[int, tuple[Stored, int, dict[str, str]]] = field(default_factory=dict)
    patterns: tuple[str, ...] | None = None
    deleted: bool = False

    def in_order(self) -> list[Place]:
        """Return the places in publish order."""
        return [place for _, place in sorted(self.places.items())]


class Store:
    """Messages and groups, shared by all reference backends of a namespace.

    Broken backends override one method each, so every decision is a method of its own.
    """

    def __init__(self, can: Capabilities) -> None:
        self.can = can
        self.log: list[Stored] = []
        self.groups: dict[ConsumerGroup, Group] = {}
        self.connection = 0
        """Counts the times that all connections were cut."""
        self.listeners: set[asyncio.Event] = set()
        self._offset = 0.0
        if not can.backlog:
            for name in GROUPS if can.groups else (None,):
                self.groups[name] = Group(name)
        self._ids = itertools.count(1)

    # -- time and waiting ------------------------------------------------------------------

    def now(self) -> float:
        """Return the store's clock."""
        return time.monotonic() + self._offset

    def advance(self, seconds: float) -> None:
        """Let time pass at once."""
        self._offset += seconds
        self.notify()

    def cut(self) -> None:
        """Break every connection."""
        self.connection += 1
        self.notify()

    def lose(self) -> None:
        """Lose all messages and groups."""
        self.log.clear()
        self.groups.clear()
        self.cut()

    def notify(self) -> None:
        """Wake every waiting consumer."""
        for listener in self.listeners:
            listener.set()

    def next_due(self, group: Group) -> float:
        """Return the seconds until a delay or lease of ``group`` ends."""
        now = self.now()
        return min((p.due - now for p in group.places.values() if p.due > now), default=math.inf)

    # -- publishing ------------------------------------------------------------------------

    def publish(self, items: Sequence[Outgoing], maxsize: float) -> None:
        """Store ``items``, or as many as there is room for."""
        if not self.can.backlog and not self.groups:
            failed = dict.fromkeys(range(len(items)), "no group exists")
            raise PublishError("no group exists that would see this message", failed=failed)
        for position, item in enumerate(items):
            if len(self.log) >= maxsize:
                self.notify()
                raise PublishError(
                    f"the reference store is full: it holds {len(self.log)} messages",
                    retryable=True,
                    published=range(position),
                    failed=dict.fromkeys(range(position, len(items)), "store is full"),
                )
            seq = next(self._ids)
            visible = self.now() + item.delay
            stored = Stored(seq, f"r{seq}", item, time.time(), visible)
            self.log.append(stored)
            for group in self.groups.values():
                group.places[seq] = Place(stored, visible)
        self.notify()

    # -- consuming -------------------------------------------------------------------------

    def open_group(self, name: ConsumerGroup, keys: KeyFilter) -> Group:
        """Return the group, created if it does not exist."""
        group = self.groups.get(name)
        if group is None:
            group = self.groups[name] = Group(name)
            for stored in self.backlog():
                group.places[stored.seq] = Place(stored, stored.visible)
        if self.can.keys == "group":
            if group.patterns not in (None, keys.patterns):
                raise ConfigurationError(
                    f"group {name!r} consumes {group.patterns}; all its consumers must"
                )
            group.patterns = keys.patterns
        return group

    def backlog(self) -> Sequence[Stored]:
        """Return what a new group sees."""
        return self.log if self.can.backlog else ()

    def take(self, group: Group, keys: KeyFilter, limit: int, seconds: float) -> list[Lease]:
        """Lease up to ``limit`` messages that are due, in publish order."""
        now = self.now()
        taken: list[Lease] = []
        for place in self.candidates(group, now):
            if len(taken) == limit:
                break
            if self.matches(group, keys, place.stored.item.key):
                taken.append(self.lease(place, now + seconds))
        return taken

    def candidates(self, group: Group, now: float) -> Iterator[Place]:
        """Yield what may be handed out now."""
        blocked: set[str] = set()
        for place in group.in_order():
            key = place.stored.item.key
            if place.due <= now and key not in blocked:
                yield place
            if self.can.ordering == "key":
                blocked.add(key)

    def matches(self, group: Group, keys: KeyFilter, key: str) -> bool:
        """Whether a consumer with this filter takes messages of ``key``."""
        return keys.matches(key)

    def lease(self, place: Place, until: float) -> Lease:
        """Hand out one message."""
        place.attempts += 1
        place.due = until
        place.lease = Lease(place, place.attempts)
        return place.lease

    def begin(self, lease: Lease) -> None:
        """Count that handling begins, once for each delivery."""
        lease.place.begun.add(lease.attempt)

    def owns(self, group: Group, lease: Lease) -> bool:
        """Whether a delivery still belongs to whom it was handed."""
        place = lease.place
        known = group.places.get(place.stored.seq) is place and not group.deleted
        return known and place.lease is lease and place.due > self.now()

    def settle(self, group: Group, settlement: Settlement) -> bool:
        """Apply one settlement; False if the delivery is lost."""
        lease: Lease = settlement.delivery.receipt
        if not self.owns(group, lease):
            return False
        place = lease.place
        place.lease = None
        if settlement.outcome is Outcome.ACK:
            self.ack(group, place)
        elif settlement.outcome is Outcome.NACK:
            self.nack(place, settlement.delay)
        elif settlement.outcome is Outcome.RELEASE:
            self.release(place)
        else:
            self.reject(group, place, settlement.reason)
        self.notify()
        return True

    def ack(self, group: Group, place: Place) -> None:
        """Done."""
        del group.places[place.stored.seq]
        self.forget([place.stored])

    def nack(self, place: Place, delay: float) -> None:
        """Failed: counted."""
        place.due = self.now() + delay if delay else 0.0

    def release(self, place: Place) -> None:
        """Not processed: counted only where the capability ``attempts`` is an upper bound."""
        place.due = 0.0
        if self.can.attempts == "exact":
            place.begun.discard(place.attempts)
            place.attempts -= 1

    def reject(self, group: Group, place: Place, reason: str) -> None:
        """To the dead letters."""
        stored = place.stored
        del group.places[stored.seq]
        self.forget([stored])
        headers = dead_headers(
            stored.item.headers,
            reason=reason,
            attempts=place.attempts,
            id=stored.id,
            key=stored.item.key,
        )
        group.dead[stored.seq] = (stored, place.attempts, headers)

    def extend(self, group: Group, lease: Lease, seconds: float) -> bool:
        """Prolong a lease; False if it is lost."""
        if not self.owns(group, lease):
            return False
        lease.place.due = self.now() + seconds
        return True

    # -- looking and cleaning up -----------------------------------------------------------

    def peek(self, name: ConsumerGroup, keys: KeyFilter, limit: int) -> list[tuple[Stored, int]]:
        """Return what ``name`` could take now, and as which attempt."""
        group = self.groups.get(name)
        places = group.in_order() if group is not None else [Place(s, s.visible) for s in self.log]
        now = self.now()
        due = (p for p in places if p.due <= now and keys.matches(p.stored.item.key))
        return [(p.stored, p.attempts + 1) for p in itertools.islice(due, limit)]

    def stats(self) -> QueueStats:
        """Count everything."""
        groups = list(self.groups.values())
        if not groups:
            groups = [Group(None, {s.seq: Place(s, s.visible) for s in self.log})]
        return QueueStats(tuple(entry for group in groups for entry in self.count(group)))

    def count(self, group: Group) -> Iterator[KeyStats]:
        """Count one group, key by key."""
        now = self.now()
        places = group.in_order()
        dead = [stored for stored, _, _ in group.dead.values()]
        for key in sorted({s.item.key for s in [*dead, *(p.stored for p in places)]}):
            own = [p for p in places if p.stored.item.key == key]
            late = [p for p in own if p.due > now]
            yield KeyStats(
                key=key,
                group=group.name,
                ready=len(own) - len(late),
                in_flight=sum(p.lease is not None for p in late),
                delayed=sum(p.lease is None for p in late),
                dead=sum(stored.item.key == key for stored in dead),
                oldest_age=max((time.time() - p.stored.time for p in own), default=None),
            )

    def replay(self, name: ConsumerGroup, wanted: Callable[[str], bool], limit: int | None) -> int:
        """Put dead letters back for one group."""
        group = self.groups.get(name)
        if group is None:
            return 0
        chosen = [stored for stored, _, _ in group.dead.values() if wanted(stored.id)][:limit]
        for stored in chosen:
            del group.dead[stored.seq]
            self.revive(group, stored)
        self.notify()
        return len(chosen)

    def revive(self, group: Group, stored: Stored) -> None:
        """Put back one dead letter, counted as never delivered."""
        group.places[stored.seq] = Place(stored, 0.0)

    def delete_group(self, name: ConsumerGroup) -> None:
        """Forget a group."""
        group = self.groups.pop(name, None)
        if group is None:
            raise ConfigurationError(f"there is no group {name!r}")
        group.deleted = True
        self.forget(place.stored for place in group.places.values())
        self.notify()

    def purge(self, name: ConsumerGroup, keys: KeyFilter) -> int:
        """Drop what waits for a group; while no group exists, what is retained."""
        group = self.groups.get(name)
        if group is None:
            before = len(self.log)
            if not self.groups:
                self.log = [s for s in self.log if not keys.matches(s.item.key)]
            return before - len(self.log)
        now = self.now()
        gone = [
            p
            for p in group.places.values()
            if (p.lease is None or p.due <= now) and keys.matches(p.stored.item.key)
        ]
        for place in gone:
            del group.places[place.stored.seq]
        self.forget(place.stored for place in gone)
        return len(gone)

    def forget(self, settled: Iterable[Stored]) -> None:
        """Drop what no group has to settle any more."""
        kept = {seq for group in self.groups.values() for seq in group.places}
        gone = {stored.seq for stored in settled} - kept
        self.log = [stored for stored in self.log if stored.seq not in gone]
