"""Random histories on the SQLite backend's tables and on the reference store agree."""

from __future__ import annotations

import functools
import random
import sqlite3
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import pytest
from hypothesis import settings

from abe.backends.message_queue.base import (
    Delivery,
    KeyFilter,
    Message,
    Outcome,
    Outgoing,
    Settlement,
)
from abe.backends.message_queue.service.sqlite import admin, content, settling, store
from abe.backends.message_queue.service.sqlite.schema import TABLES
from abe.errors import ConfigurationError
from abe.types import KeyStats, QueueStats
from tests.selftest.reference import FULL
from tests.selftest.store import Group, Lease, Store

KEYS = ("a", "a.x", "b.x.y")
FILTERS = (None, None, "a", "a.*", "*.x", ["a.x", "b.x.y"], "b.**")
GROUPS = (None, "g")
OUTCOMES = (Outcome.ACK, Outcome.NACK, Outcome.RELEASE, Outcome.REJECT)
LEASE = 10.0
WALKS = settings().max_examples // 5


class Expected(Store):
    """The reference, where a lapsed lease ends when its group is next looked at, as in a file."""

    time = 1000.0

    def now(self) -> float:
        return self.time

    def advance_group(self, group: Group) -> None:
        for place in group.places.values():
            if place.due <= self.time:
                place.lease = None

    def owns(self, group: Group, lease: Lease) -> bool:
        known = group.places.get(lease.place.stored.seq) is lease.place and not group.deleted
        return known and lease.place.lease is lease

    def take(self, group: Group, keys: KeyFilter, limit: int, seconds: float) -> list[Lease]:
        """From the third attempt on a message is handed out alone."""
        self.advance_group(group)
        ready = [p for p in self.candidates(group, self.time) if keys.matches(p.stored.item.key)]
        suspect = [place.attempts + 1 >= store.SUSPECT_ATTEMPT for place in ready]
        if any(suspect[:limit]):
            limit = max(1, suspect.index(True))
        return super().take(group, keys, limit, seconds)


class Taken:
    """A delivery: the group, its number in the file, and both receipts."""

    def __init__(self, group: Group, gid: int, claim: content.Claim, lease: Lease) -> None:
        self.group, self.gid, self.claim, self.lease = group, gid, claim, lease

    def __repr__(self) -> str:
        return f"{self.group.name}: {self.claim}"

    def settlement(self, receipt: object, outcome: Outcome, delay: float) -> Settlement:
        return Settlement(Delivery(Message({}), receipt), outcome, delay, "why")


def in_slices(step: Callable[[admin.Position | None], tuple[int, admin.Position | None]]) -> int:
    total, position = step(None)
    while position is not None:
        number, position = step(position)
        total += number
    return total


class Walk:
    """A random history; its steps are in `log`, to be read when one of them fails."""

    def __init__(self, seed: int) -> None:
        self.c = sqlite3.connect(":memory:", isolation_level=None)
        for statement in TABLES:
            self.c.execute(statement)
        self.expected = Expected(FULL)
        self.random = random.Random(seed)
        self.tokens = 0
        self.taken: list[Taken] = []
        self.log: list[str] = []

    def run(self) -> None:
        steps = {
            self.publish: 5,
            self.claim: 8,
            self.settle: 8,
            self.disturb: 3,
            self.wait: 3,
            self.open_group: 3,
            self.clean_up: 2,
            self.look: 2,
        }
        for step in self.random.choices([*steps], [*steps.values()], k=100):
            step()
            self.compare()

    def note(self, what: str, *details: object) -> None:
        self.log.append(f"{what} {details}")

    @property
    def now(self) -> float:
        return self.expected.time

    # -- what happens ----------------------------------------------------------------------

    def publish(self) -> None:
        keys = self.random.choices(KEYS, k=self.random.randint(1, 4))
        delay = self.random.choice([0, 0, 3])
        self.note("publish", keys, delay)
        items = [Outgoing(key, "{}", {}, delay) for key in keys]
        store.publish(self.c, items, self.now)
        self.expected.publish(items, 1000)

    def open_group(self) -> None:
        name = self.random.choice(GROUPS)
        self.note("open", name)
        gid = store.open_group(self.c, name)
        assert gid == store.open_group(self.c, name)
        self.expected.open_group(name, KeyFilter())

    def claim(self) -> None:
        name, keys = self.random.choice(GROUPS), KeyFilter(self.random.choice(FILTERS))
        limit = self.random.randint(1, 5)
        self.note("claim", name, keys.patterns, limit)
        group, gid = self.expected.groups.get(name), store.gid_of(self.c, name)
        assert (group is None) == (gid is None)
        if group is None or gid is None:
            return
        self.tokens += 1
        nothing = store.glance(self.c, gid, keys, self.now)
        batch = store.claim(self.c, gid, keys, limit, self.now, LEASE, self.tokens)
        messages, claims = batch.messages(), batch.claims
        leases = self.expected.take(group, keys, limit, LEASE)
        assert [(it.seq, it.attempt) for it in claims] == [
            (it.place.stored.seq, it.attempt) for it in leases
        ]
        assert [(it.key, it.attempt) for it in messages] == [
            (it.place.stored.item.key, it.attempt) for it in leases
        ]
        if nothing is not None:
            assert not claims
            dues = [it.due - self.now for it in group.places.values() if it.due > self.now]
            assert nothing.pause == min(dues, default=None)
        for claim, lease in zip(claims, leases, strict=True):
            self.taken.append(Taken(group, gid, claim, lease))

    def settle(self) -> None:
        if not self.taken:
            return
        first = self.random.choice(self.taken)
        others = [it for it in self.taken if it.gid == first.gid]
        chosen = self.random.sample(others, k=min(len(others), 3))
        if self.random.random() < 0.8:
            self.taken = [taken for taken in self.taken if taken not in chosen]
        else:
            chosen += chosen
        outcome = self.random.choice(OUTCOMES)
        delay = self.random.choice([0, 0, 4]) if outcome is Outcome.NACK else 0
        self.note("settle", chosen, outcome, delay)
        settlements = [it.settlement(it.claim, outcome, delay) for it in chosen]
        lost = settling.settle(self.c, first.gid, settlements, self.now)
        expected = [it.settlement(it.lease, outcome, delay) for it in chosen]
        settled = [self.expected.settle(first.group, settlement) for settlement in expected]
        assert lost == [position for position, done in enumerate(settled) if not done]

    def disturb(self) -> None:
        if not self.taken:
            return
        chosen = self.random.choice(self.taken)
        group, gid, token = chosen.group, chosen.gid, chosen.claim.token
        if self.random.random() < 0.5:
            self.note("give back", chosen)
            store.give_back(self.c, gid, token)
            for taken in self.taken:
                if (taken.gid, taken.claim.token) == (gid, token):
                    released = taken.settlement(taken.lease, Outcome.RELEASE, 0.0)
                    self.expected.settle(group, released)
        else:
            seconds = self.random.choice([5.0, 20.0])
            self.note("extend", chosen, seconds)
            lost = settling.extend(self.c, gid, [chosen.claim], self.now, seconds)
            assert bool(lost) is not self.expected.extend(group, chosen.lease, seconds)

    def wait(self) -> None:
        seconds = self.random.choice([1.0, 1.0, 4.0, 11.0])
        self.note("wait", seconds)
        self.expected.time += seconds

    def clean_up(self) -> None:
        name, keys = self.random.choice(GROUPS), KeyFilter(self.random.choice(FILTERS))
        change = self.random.choice(["replay", "replay", "delete", "purge"])
        self.note(change, name, keys.patterns)
        if change == "replay":
            limit = self.random.choice([1, 100])
            number = self.expected.replay(name, lambda _: True, limit)
            assert in_slices(lambda at: admin.replay(self.c, name, None, limit, at)) == number
        elif change == "delete":
            known = name in self.expected.groups
            with nullcontext() if known else pytest.raises(ConfigurationError):
                in_slices(lambda at: admin.delete_group(self.c, name, self.now, at))
            if known:
                self.expected.delete_group(name)
        else:
            if name in self.expected.groups:
                self.expected.advance_group(self.expected.groups[name])
            number = self.expected.purge(name, keys)
            purge = functools.partial(admin.purge, self.c, name, keys, self.now)
            assert in_slices(purge) == number

    def look(self) -> None:
        name, keys = self.random.choice(GROUPS), KeyFilter(self.random.choice(FILTERS))
        seen = admin.peek(self.c, name, keys, 3, self.now)
        expected = self.expected.peek(name, keys, 3)
        assert [(message.key, message.attempt) for message in seen] == [
            (stored.item.key, attempt) for stored, attempt in expected
        ]

    # -- what is then there ----------------------------------------------------------------

    def compare(self) -> None:
        kept = {seq for (seq,) in self.c.execute("SELECT seq FROM entries")}
        groups = self.expected.groups.values()
        needed = {seq for group in groups for seq in group.places}
        assert kept == needed | {stored.seq for stored in self.expected.log}
        assert counted(admin.stats(self.c, self.now)) == counted(self.expected.stats())


def counted(stats: QueueStats) -> set[KeyStats]:
    """Return the numbers that are not zero, without ages: both clocks are made up."""
    entries = {replace(entry, oldest_age=None) for entry in stats.entries}
    return {it for it in entries if it.ready or it.in_flight or it.delayed or it.dead}


@pytest.mark.parametrize("block", range(4))
def test_random_histories(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "SLICE", 2)  # so that there are several
    for seed in range(block * WALKS, (block + 1) * WALKS):
        walk = Walk(seed)
        try:
            walk.run()
        except Exception as error:
            error.add_note("\n".join([f"seed {seed}:", *walk.log]))
            raise
        finally:
            walk.c.close()
