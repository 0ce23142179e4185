"""Kill a producer and four consumers of one SQLite queue with SIGKILL, again and again.

    python benchmarks/crash_sqlite.py [--rounds 100] [--published 0] [--seed N] [--json] [--dir DIR]

Each process notes in a file of its own what ``publish`` has returned for, what it received, and
what ``flush`` has confirmed as settled. Each is killed at a moment of its own, a few milliseconds
to half a second after its start, often while the file is being made. After every few rounds the
rest is drained and compared; the next round begins a new file. Rounds are added until ``publish``
has returned for at least ``--published`` messages, however slow the machine. Exits with 1 if a
message is lost, delivered after its settlement was confirmed, or a ``publish_many`` is found half
done.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from abe.backends.message_queue.service.sqlite import SQLiteBackend

CONSUMERS = 4
LEASE = 2.0
BULK = 10
ROUNDS_PER_FILE = 5


class Notes:
    """Lines that survive the process: each is one write to a file opened for appending."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def add(self, kind: str, numbers: list[int]) -> None:
        """Note what happened to ``numbers``, and when."""
        line = f"{kind} {time.monotonic_ns()} {' '.join(map(str, numbers))}\n"
        os.write(self._file, line.encode())


async def produce(path: Path, notes: Notes, first: int, chance: random.Random) -> None:
    """Publish for ever: one by one, several at once, many in one call."""
    number = first
    async with SQLiteBackend(path, lease=LEASE) as backend:

        async def publish(n: int) -> None:
            await backend.publish(f"key.{n % 7}", {"n": n, "x": "x" * (n % 2000)})
            notes.add("published", [n])

        while True:
            way = chance.randrange(3)
            numbers = [*range(number, number + BULK)]
            number += BULK
            if way == 0:
                for n in numbers:
                    await publish(n)
            elif way == 1:
                await asyncio.gather(*(publish(n) for n in numbers))
            else:
                notes.add("bulk", numbers)
                await backend.publish_many([{"n": n} for n in numbers], key="key.bulk")
                notes.add("published", numbers)
            await asyncio.sleep(chance.choice([0, 0, 0.002]))


async def consume(path: Path, notes: Notes, _: int, chance: random.Random) -> None:
    """Take and ack for ever; now and then release or nack."""
    async with SQLiteBackend(path, lease=LEASE) as backend, backend.consume() as stream:
        while True:
            messages = await stream.take(chance.randint(1, 20), chance.uniform(0.005, 0.05))
            notes.add("received", [message["n"] for message in messages])
            acked = []
            for message in messages:
                if chance.random() < 0.95:
                    await message.ack()
                    acked.append(message["n"])
                else:
                    await (message.release() if chance.random() < 0.5 else message.nack())
            if chance.random() < 0.5:
                await stream.flush()
                notes.add("settled", acked)


async def drain(path: Path, notes: Notes, _: int, __: random.Random) -> None:
    """Take what is left, once every lease of the dead has lapsed."""
    async with SQLiteBackend(path, lease=LEASE) as backend, backend.consume() as stream:
        while True:
            messages = await stream.take(500, LEASE / 4)
            notes.add("received", [message["n"] for message in messages])
            stats = await backend.stats()
            if not messages and not any(e.ready or e.in_flight for e in stats.entries):
                return


Role = Callable[[Path, Notes, int, random.Random], Coroutine[Any, Any, None]]


class Round:
    """The files of one queue, and the processes that work on it."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.queue = folder / "queue.sqlite3"
        self.folder = folder
        self.chance = chance
        self.children = 0
        self.kills = 0

    def start(self, role: Role) -> int:
        """Fork a process that plays ``role``."""
        self.children += 1
        seed = self.chance.random()
        if pid := os.fork():
            return pid
        status = 1
        try:
            notes = Notes(self.folder / f"notes-{self.children}")
            first = self.children * 1_000_000
            asyncio.run(role(self.queue, notes, first, random.Random(seed)))
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)

    def run(self) -> None:
        """Let all work and kill each at a moment of its own."""
        roles: list[Role] = [produce, *[consume] * CONSUMERS]
        self.chance.shuffle(roles)
        started = time.monotonic()
        ends = [(0.5 * self.chance.random() ** 2, self.start(role)) for role in roles]
        for end, pid in sorted(ends):
            time.sleep(max(0.0, started + end - time.monotonic()))
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            if os.WIFEXITED(status):
                raise SystemExit(f"a process ended by itself with {os.WEXITSTATUS(status)}")
            self.kills += 1

    def finish(self) -> None:
        """Drain in peace."""
        pid = self.start(drain)
        _, status = os.waitpid(pid, 0)
        if status:
            raise SystemExit("draining failed")
        with closing(sqlite3.connect(self.queue)) as c:
            verdict = c.execute("PRAGMA integrity_check").fetchone()
        if verdict != ("ok",):
            raise SystemExit(f"the file is damaged: {verdict}")


@dataclass
class Result:
    """What the notes say.

    Attributes:
        rounds: How often all processes were started and killed.
        files: How many queue files that took.
        kills: How many processes were killed.
        published: Messages for which ``publish`` had returned.
        lost: Those of them that nobody received.
        received: Deliveries noted.
        duplicates: Deliveries beyond the first.
        after_settled: Deliveries after a settlement had been confirmed.
        half_bulks: Bulks of which some messages arrived and others did not.
        seconds: How long it took.
    """

    rounds: int = 0
    files: int = 0
    kills: int = 0
    published: int = 0
    lost: int = 0
    received: int = 0
    duplicates: int = 0
    after_settled: int = 0
    half_bulks: int = 0
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether all promises were kept."""
        return not (self.lost or self.after_settled or self.half_bulks)

    def add(self, folder: Path) -> None:
        """Count what the processes of one file noted."""
        published: set[int] = set()
        received: Counter[int] = Counter()
        settled: dict[int, int] = {}
        last: dict[int, int] = {}
        bulks: list[list[int]] = []
        for notes in folder.glob("notes-*"):
            for line in notes.read_text(encoding="utf-8").splitlines():
                kind, when, *words = line.split()
                numbers, moment = [int(word) for word in words], int(when)
                if kind == "published":
                    published.update(numbers)
                elif kind == "received":
                    received.update(numbers)
                    last.update((n, max(moment, last.get(n, 0))) for n in numbers)
                elif kind == "settled":
                    settled.update((n, moment) for n in numbers)
                else:
                    bulks.append(numbers)
        self.published += len(published)
        self.lost += len(published - received.keys())
        self.received += received.total()
        self.duplicates += received.total() - len(received)
        self.after_settled += sum(last[n] > moment for n, moment in settled.items())
        self.half_bulks += sum(0 < sum(n in received for n in bulk) < BULK for bulk in bulks)


def main() -> int:
    """Run the rounds that the command line asks for and print the figures."""
    parser = argparse.ArgumentParser(description="SIGKILL processes that share a SQLite queue")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--published", type=int, default=0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not hasattr(os, "fork"):
        raise SystemExit("needs os.fork()")
    seed = given.seed if given.seed is not None else random.randrange(10**6)
    chance = random.Random(seed)
    result = Result()
    started = time.monotonic()
    while result.rounds < given.rounds or result.published < given.published:
        with tempfile.TemporaryDirectory(prefix="abe-crash-", dir=given.dir) as folder:
            place = Round(Path(folder), chance)
            result.files += 1
            left = max(1, given.rounds - result.rounds)
            for _ in range(min(ROUNDS_PER_FILE, left)):
                place.run()
                result.rounds += 1
            place.finish()
            result.kills += place.kills
            result.add(Path(folder))
    result.seconds = round(time.monotonic() - started, 1)
    if given.json:
        print(json.dumps({"seed": seed, **asdict(result)}))
    else:
        print(f"seed {seed}")
        for name, value in asdict(result).items():
            print(f"{name.replace('_', ' '):>14}: {value:,}")
    return 0 if result.good else 1


if __name__ == "__main__":
    sys.exit(main())
