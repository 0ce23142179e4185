"""What the SQLite backend does to its tables, against a model of a page, by random histories."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from abe.backends.message_queue.base import (
    Delivery,
    KeyFilter,
    Message,
    Outcome,
    Outgoing,
    Settlement,
)
from abe.backends.message_queue.service.sqlite import admin, settling, store
from abe.backends.message_queue.service.sqlite.schema import _MIGRATIONS
from abe.errors import ConfigurationError

KEYS = ("a", "a.x", "b.x.y")
FILTERS = (None, None, "a", "a.*", "*.x", ["a.x", "b.x.y"], "b.**")
GROUPS = (None, "g")
OUTCOMES = (Outcome.ACK, Outcome.NACK, Outcome.RELEASE, Outcome.REJECT)
LEASE = 10.0
WALKS = 30


@dataclass
class Entry:
    """One message, in one group."""

    state: str
    due: float = 0.0
    attempts: int = 0
    token: int = 0

    def seen_at(self, now: float) -> str:
        """Its state for somebody who looks."""
        return "ready" if self.state != "ready" and self.due <= now else self.state


@dataclass
class Group:
    """What a group has not settled, and its dead letters."""

    entries: dict[int, Entry] = field(default_factory=dict)
    dead: dict[int, int] = field(default_factory=dict)

    def advance(self, now: float) -> None:
        for entry in self.entries.values():
            entry.state = entry.seen_at(now)


Taken = tuple[int, store.Claim]
Keys = str | list[str] | None


def in_slices(step: Callable[[admin.Position | None], tuple[int, admin.Position | None]]) -> int:
    total, position = step(None)
    while position is not None:
        number, position = step(position)
        total += number
    return total


class Queue:
    """Publishes, claims, settles and cleans up, and says what is then to be there."""

    def __init__(self) -> None:
        self.c = sqlite3.connect(":memory:", isolation_level=None)
        for statements in _MIGRATIONS:
            for statement in statements:
                self.c.execute(statement)
        self.now = 1000.0
        self.tokens = 0
        self.keys: dict[int, str] = {}
        self.visible: dict[int, float] = {}
        self.shared: set[int] = set()
        """What a later group would see."""
        self.groups: dict[str | None, Group] = {}
        self.gids: dict[str | None, int] = {}

    def forget(self, seq: int) -> None:
        if not any(seq in group.entries for group in self.groups.values()):
            self.shared.discard(seq)

    # -- what happens ----------------------------------------------------------------------

    def publish(self, keys: list[str], delay: float) -> None:
        store.publish(self.c, [Outgoing(k, "{}", {}, delay) for k in keys], self.now)
        due = self.now + delay if delay else 0.0
        first = max(self.keys, default=0) + 1
        for seq, key in enumerate(keys, first):
            self.keys[seq], self.visible[seq] = key, due
            self.shared.add(seq)
            for group in self.groups.values():
                group.entries[seq] = Entry("delayed" if delay else "ready", due)

    def open_group(self, name: str | None) -> None:
        gid = store.open_group(self.c, name)
        assert self.gids.setdefault(name, gid) == gid
        if name not in self.groups:
            group = self.groups[name] = Group()
            for seq in self.shared:
                due = self.visible[seq]
                group.entries[seq] = Entry("delayed" if due > self.now else "ready", due)

    def claim(self, name: str | None, keys: Keys, limit: int) -> list[Taken]:
        if name not in self.groups:
            return []
        gid, chosen = self.gids[name], KeyFilter(keys)
        self.tokens += 1
        nothing = store.glance(self.c, gid, chosen, self.now)
        claims = store.claim(self.c, gid, chosen, limit, self.now, LEASE, self.tokens)
        assert not (nothing and claims)
        group = self.groups[name]
        group.advance(self.now)
        expected = self.choose(group, chosen, limit)
        assert [claim.seq for claim, _ in claims] == expected
        for claim, row in claims:
            entry = group.entries[claim.seq]
            assert (claim.key, claim.attempt) == (self.keys[claim.seq], entry.attempts + 1)
            assert row[1] == claim.key
            group.entries[claim.seq] = Entry("leased", self.now + LEASE, claim.attempt, self.tokens)
        if nothing:
            dues = [e.due for e in group.entries.values() if e.state != "ready"]
            due = min(dues, default=None)
            assert nothing.pause == (None if due is None else due - self.now)
        return [(gid, claim) for claim, _ in claims]

    def choose(self, group: Group, keys: KeyFilter, limit: int) -> list[int]:
        chosen: list[int] = []
        for seq, entry in sorted(group.entries.items()):
            if entry.state != "ready" or not keys.matches(self.keys[seq]):
                continue
            suspect = entry.attempts + 1 >= store.SUSPECT_ATTEMPT
            if len(chosen) == limit or (suspect and chosen):
                break
            chosen.append(seq)
            if suspect:
                break
        return chosen

    def settle(self, claims: list[Taken], outcome: Outcome, delay: float) -> None:
        gid = claims[0][0]
        own = [claim for other, claim in claims if other == gid]
        settled = [Settlement(Delivery(Message({}), x), outcome, delay, "why") for x in own]
        lost = settling.settle(self.c, gid, settled, self.now)
        name = next((n for n in self.groups if self.gids[n] == gid), "no such group")
        group = self.groups.get(name, Group())
        expected: list[int] = []
        for position, claim in enumerate(own):
            entry = group.entries.get(claim.seq)
            if entry is None or entry.state != "leased" or entry.token != claim.token:
                expected.append(position)
            else:
                self.apply(group, claim, outcome, delay)
        assert lost == expected

    def apply(self, group: Group, claim: store.Claim, outcome: Outcome, delay: float) -> None:
        seq, attempts = claim.seq, claim.attempt
        if outcome in (Outcome.NACK, Outcome.RELEASE):
            attempts -= outcome is Outcome.RELEASE
            due = self.now + delay if delay else 0.0
            group.entries[seq] = Entry("delayed" if delay else "ready", due, attempts)
        else:
            del group.entries[seq]
            if outcome is Outcome.REJECT:
                group.dead[seq] = attempts
            self.forget(seq)

    def give_back(self, claim: Taken) -> None:
        gid, (_, token, *_) = claim
        store.give_back(self.c, gid, token)
        for name, group in self.groups.items():
            for entry in group.entries.values():
                if self.gids[name] == gid and (entry.state, entry.token) == ("leased", token):
                    entry.state, entry.attempts = "ready", entry.attempts - 1

    def extend(self, claim: Taken, seconds: float) -> None:
        gid, own = claim
        lost = settling.extend(self.c, gid, [own], self.now, seconds)
        name = next((n for n in self.groups if self.gids[n] == gid), "no such group")
        entry = self.groups.get(name, Group()).entries.get(own.seq)
        if entry is not None and (entry.state, entry.token) == ("leased", own.token):
            assert not lost
            entry.due = self.now + seconds
        else:
            assert lost == [0]

    def replay(self, name: str | None, limit: int) -> None:
        group = self.groups.get(name, Group())
        chosen = list(group.dead)[:limit]
        assert in_slices(lambda at: admin.replay(self.c, name, None, limit, at)) == len(chosen)
        for seq in chosen:
            del group.dead[seq]
            group.entries[seq] = Entry("ready")

    def delete_group(self, name: str | None) -> None:
        if name not in self.groups:
            try:
                admin.delete_group(self.c, name, self.now)
            except ConfigurationError:
                return
            raise AssertionError("a group that does not exist was deleted")
        in_slices(lambda at: admin.delete_group(self.c, name, self.now, at))
        gone = self.groups.pop(name)
        del self.gids[name]
        for seq in gone.entries:
            self.forget(seq)

    def purge(self, name: str | None, keys: Keys) -> None:
        chosen = KeyFilter(keys)
        number = in_slices(lambda at: admin.purge(self.c, name, chosen, self.now, at))
        if not self.groups:
            gone = [seq for seq in self.shared if chosen.matches(self.keys[seq])]
            self.shared.difference_update(gone)
        elif name not in self.groups:
            gone = []
        else:
            group = self.groups[name]
            group.advance(self.now)
            gone = [
                seq
                for seq, entry in group.entries.items()
                if entry.state != "leased" and chosen.matches(self.keys[seq])
            ]
            for seq in gone:
                del group.entries[seq]
                self.forget(seq)
        assert number == len(gone)

    def look(self, name: str | None, keys: Keys) -> None:
        group, chosen = self.groups.get(name), KeyFilter(keys)
        if group is None:
            ready = {n: 1 for n in self.shared if self.visible[n] <= self.now}
        else:
            entries = group.entries.items()
            ready = {n: e.attempts + 1 for n, e in entries if e.seen_at(self.now) == "ready"}
        seen = admin.peek(self.c, name, chosen, 3, self.now)
        expected = sorted(n for n in ready if chosen.matches(self.keys[n]))[:3]
        assert [(row[1], attempt) for row, attempt in seen] == [
            (self.keys[n], ready[n]) for n in expected
        ]

    # -- what is then there ----------------------------------------------------------------

    def messages_are_kept_as_long_as_needed_and_no_longer(self) -> None:
        kept = {seq for (seq,) in self.c.execute("SELECT seq FROM messages")}
        needed = {seq for group in self.groups.values() for seq in group.entries}
        assert kept == needed | self.shared
        assert not self.groups or self.shared <= needed

    def numbers_agree(self) -> None:
        expected: dict[tuple[str | None, str], dict[str, int]] = {}
        retained = Group({n: Entry("delayed", self.visible[n]) for n in self.shared})
        for name, group in (self.groups or {None: retained}).items():
            states = [(seq, entry.seen_at(self.now)) for seq, entry in group.entries.items()]
            for seq, state in states + [(seq, "dead") for seq in group.dead]:
                numbers = expected.setdefault((name, self.keys[seq]), {})
                numbers[state] = numbers.get(state, 0) + 1
        stats = admin.stats(self.c, self.now)
        found = {
            (e.group, e.key): {
                "ready": e.ready, "leased": e.in_flight, "delayed": e.delayed, "dead": e.dead
            }
            for e in stats.entries
        }  # fmt: skip
        assert {k: {n: x for n, x in v.items() if x} for k, v in found.items()} == expected


class Walk:
    """A random history; its steps are in `log`, to be read when one of them fails."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.queue = Queue()
        self.taken: list[Taken] = []
        self.log: list[str] = []
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
        self.steps = self.random.choices([*steps], [*steps.values()], k=100)

    def run(self) -> None:
        for step in self.steps:
            step()
            self.queue.messages_are_kept_as_long_as_needed_and_no_longer()
            self.queue.numbers_agree()

    def note(self, what: str, *details: object) -> None:
        self.log.append(f"{what} {details}")

    def publish(self) -> None:
        keys = self.random.choices(KEYS, k=self.random.randint(1, 4))
        delay = self.random.choice([0, 0, 3])
        self.note("publish", keys, delay)
        self.queue.publish(keys, delay)

    def open_group(self) -> None:
        name = self.random.choice(GROUPS)
        self.note("open", name)
        self.queue.open_group(name)

    def claim(self) -> None:
        name, keys = self.random.choice(GROUPS), self.random.choice(FILTERS)
        limit = self.random.randint(1, 5)
        self.note("claim", name, keys, limit)
        self.taken += self.queue.claim(name, keys, limit)

    def settle(self) -> None:
        if self.taken:
            chosen = self.random.sample(self.taken, k=min(len(self.taken), 3))
            if self.random.random() < 0.8:
                self.taken = [taken for taken in self.taken if taken not in chosen]
            else:
                chosen += chosen
            outcome, delay = self.random.choice(OUTCOMES), self.random.choice([0, 0, 4])
            self.note("settle", chosen, outcome, delay)
            self.queue.settle(chosen, outcome, delay)

    def disturb(self) -> None:
        if self.taken:
            taken = self.random.choice(self.taken)
            change = self.random.choice(["give_back", "extend"])
            self.note(change, taken)
            if change == "give_back":
                self.queue.give_back(taken)
            else:
                self.queue.extend(taken, self.random.choice([5.0, 20.0]))

    def wait(self) -> None:
        seconds = self.random.choice([1.0, 1.0, 4.0, 11.0])
        self.note("wait", seconds)
        self.queue.now += seconds

    def clean_up(self) -> None:
        name, keys = self.random.choice(GROUPS), self.random.choice(FILTERS)
        change = self.random.choice(["replay", "replay", "delete", "purge"])
        self.note(change, name, keys)
        if change == "replay":
            self.queue.replay(name, self.random.choice([1, 100]))
        elif change == "delete":
            self.queue.delete_group(name)
        else:
            self.queue.purge(name, keys)

    def look(self) -> None:
        self.queue.look(self.random.choice(GROUPS), self.random.choice(FILTERS))


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
            walk.queue.c.close()
