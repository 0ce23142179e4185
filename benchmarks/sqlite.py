"""The SQLite backend beside raw sqlite3 and three other queues in SQLite files.

    python benchmarks/sqlite.py [--quick] [--rounds N] [--only WORD] [--dir FOLDER] [--json FILE]

All on one file in WAL mode with ``synchronous=FULL``, except where a line says otherwise; all
payloads are encoded to and decoded from JSON. Needs the dependency group ``bench``.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import random
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from abe.backends.message_queue.service.sqlite import SQLiteBackend
from benchmarks._harness import Case, Options, Stopwatch, Target, main

KEY = "orders.eu.created"
BATCH = 500
PUBLISHERS = 100

TABLE = """CREATE TABLE messages (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, key TEXT NOT NULL,
    body TEXT NOT NULL, headers TEXT, time REAL NOT NULL, visible REAL NOT NULL)"""
INSERT = "INSERT INTO messages (id, key, body, time, visible) VALUES (?, ?, ?, ?, 0)"


def payload(n: int) -> dict[str, Any]:
    """Return an order, about 200 bytes of JSON."""
    return {
        "order": n,
        "customer": {"id": 48_151 + n % 1000, "name": "Ada Lovelace", "city": "Zürich"},
        "items": [{"sku": "AB-1234", "count": 2, "price": 12.5}, {"sku": "CD-9", "count": 1}],
        "total": 31.75,
        "paid": True,
    }


def _raw(folder: Path) -> sqlite3.Connection:
    c = sqlite3.connect(folder / "raw.sqlite3", isolation_level=None, check_same_thread=False)
    c.execute("PRAGMA journal_mode = WAL")
    c.execute("PRAGMA synchronous = FULL")
    c.execute(TABLE)
    return c


def _rows(numbers: Iterable[int]) -> list[tuple[str, str, str, float]]:
    return [
        (f"{random.getrandbits(64):x}", KEY, json.dumps(payload(n)), time.time()) for n in numbers
    ]


def _insert(c: sqlite3.Connection, numbers: Iterable[int]) -> None:
    c.execute("BEGIN IMMEDIATE")
    c.executemany(INSERT, _rows(numbers))
    c.execute("COMMIT")


# -- publishing ----------------------------------------------------------------------------


def publish_one_by_one(folder: Path, options: Options) -> float:
    """``await publish`` in a loop."""
    count = options.size(2000)

    async def run() -> float:
        watch = Stopwatch()
        async with SQLiteBackend(folder / "q.sqlite3") as backend:
            await backend.publish(KEY, payload(0))
            with watch.timing():
                for n in range(count):
                    await backend.publish(KEY, payload(n))
        return watch.rate(count)

    return asyncio.run(run())


def raw_one_by_one(folder: Path, options: Options) -> float:
    """A transaction for each row, in a thread that a coroutine awaits."""
    count = options.size(2000)
    c = _raw(folder)

    async def run() -> float:
        watch = Stopwatch()
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as thread:
            await loop.run_in_executor(thread, _insert, c, (0,))
            with watch.timing():
                for n in range(count):
                    await loop.run_in_executor(thread, _insert, c, (n,))
        return watch.rate(count)

    try:
        return asyncio.run(run())
    finally:
        c.close()


def publish_concurrently(folder: Path, options: Options) -> float:
    """A hundred tasks, each awaiting one publish at a time."""
    each = options.size(20_000) // PUBLISHERS + 1

    async def publisher(backend: SQLiteBackend, first: int) -> None:
        for n in range(first, first + each):
            await backend.publish(KEY, payload(n))

    async def run() -> float:
        watch = Stopwatch()
        async with SQLiteBackend(folder / "q.sqlite3") as backend:
            await backend.publish(KEY, payload(0))
            with watch.timing():
                await asyncio.gather(*(publisher(backend, i * each) for i in range(PUBLISHERS)))
        return watch.rate(PUBLISHERS * each)

    return asyncio.run(run())


def publish_many(folder: Path, options: Options) -> float:
    """``await publish_many`` of 500 at a time."""
    count = options.size(20_000)

    async def run() -> float:
        watch = Stopwatch()
        async with SQLiteBackend(folder / "q.sqlite3") as backend:
            await backend.publish(KEY, payload(0))
            with watch.timing():
                for first in range(0, count, BATCH):
                    items = [payload(n) for n in range(first, first + BATCH)]
                    await backend.publish_many(items, key=KEY)
        return watch.rate(count // BATCH * BATCH)

    return asyncio.run(run())


def raw_batches(folder: Path, options: Options) -> float:
    """A transaction for each 500 rows, in this thread."""
    count = options.size(20_000)
    watch = Stopwatch()
    c = _raw(folder)
    with watch.timing():
        for first in range(0, count, BATCH):
            _insert(c, range(first, first + BATCH))
    c.close()
    return watch.rate(count // BATCH * BATCH)


# -- consuming -----------------------------------------------------------------------------


def consume(folder: Path, options: Options) -> float:
    """``async for``, every message acked and every ack stored."""
    count = options.size(20_000)

    async def run() -> float:
        watch = Stopwatch()
        async with SQLiteBackend(folder / "q.sqlite3") as backend:
            await backend.publish_many([payload(n) for n in range(count)], key=KEY)
            async with backend.consume() as stream:
                with watch.timing():
                    left = count
                    async for message in stream:
                        assert message["paid"]
                        left -= 1
                        if not left:
                            await message.ack()
                            break
                    await stream.flush()
        return watch.rate(count)

    return asyncio.run(run())


def raw_consume(folder: Path, options: Options) -> float:
    """Lease 500 rows in one transaction, decode them, delete them in another."""
    count = options.size(20_000)
    watch = Stopwatch()
    c = _raw(folder)
    _insert(c, range(count))
    claim = (
        "UPDATE messages SET visible = ? WHERE seq IN (SELECT seq FROM messages WHERE visible <= ?"
        " ORDER BY seq LIMIT ?)"
    )
    query = "SELECT seq, id, key, body, headers, time FROM messages WHERE visible = ? ORDER BY seq"
    with watch.timing():
        left = count
        while left:
            now = time.time()
            c.executescript("PRAGMA synchronous = NORMAL")  # a lease may be lost in a power cut
            c.execute("BEGIN IMMEDIATE")
            c.execute(claim, (now + 30, now, BATCH))
            rows = c.execute(f"{query} LIMIT ?", (now + 30, BATCH)).fetchall()
            c.execute("COMMIT")
            for row in rows:
                assert json.loads(row[3])["paid"]
            c.executescript("PRAGMA synchronous = FULL")
            c.execute("BEGIN IMMEDIATE")
            c.executemany(
                "DELETE FROM messages WHERE seq = ? AND visible = ?",
                [(row[0], now + 30) for row in rows],
            )
            c.execute("COMMIT")
            left -= len(rows)
    c.close()
    return watch.rate(count)


def _drain(count: int, take: Callable[[], Any]) -> float:
    watch = Stopwatch()
    with watch.timing():
        for _ in range(count):
            assert take()["paid"]
    return watch.rate(count)


def _litequeue(folder: Path, options: Options, synchronous: str) -> float:
    count = options.size(2000)
    c = sqlite3.connect(folder / "lite.sqlite3")
    queue = importlib.import_module("litequeue").LiteQueue(c)
    with queue.transaction():
        for n in range(count):
            queue.put(json.dumps(payload(n)))
    c.execute(f"PRAGMA synchronous = {synchronous}")

    def take() -> Any:
        message = queue.pop()
        decoded = json.loads(message.data)
        queue.done(message.message_id)
        return decoded

    try:
        return _drain(count, take)
    finally:
        c.close()


def litequeue(folder: Path, options: Options) -> float:
    """``pop`` and ``done``, synced like abe."""
    return _litequeue(folder, options, "FULL")


def litequeue_default(folder: Path, options: Options) -> float:
    """``pop`` and ``done`` as litequeue comes: a power cut may lose the last messages."""
    return _litequeue(folder, options, "NORMAL")


def persist_queue(folder: Path, options: Options) -> float:
    """``get`` and ``ack`` of SQLiteAckQueue."""
    count = options.size(500)
    serializer = importlib.import_module("persistqueue.serializers.json")
    kind = importlib.import_module("persistqueue").SQLiteAckQueue
    queue = kind(str(folder), multithreading=True, serializer=serializer)
    for n in range(count):
        queue.put(payload(n))

    def take() -> Any:
        item = queue.get()
        queue.ack(item)
        return item

    try:
        return _drain(count, take)
    finally:
        queue.close()


def huey(folder: Path, options: Options) -> float:
    """``dequeue`` of SqliteStorage, which deletes at once: a crash loses what is in work."""
    count = options.size(2000)
    storage = importlib.import_module("huey.storage").SqliteStorage(
        filename=str(folder / "huey.db"), fsync=True
    )
    for n in range(count):
        storage.enqueue(json.dumps(payload(n)).encode())
    try:
        return _drain(count, lambda: json.loads(bytes(storage.dequeue())))
    finally:
        storage.close()


# -- latency -------------------------------------------------------------------------------


def latency(folder: Path, options: Options) -> float:
    """From publish to receipt, both in this process, one message at a time."""
    count = options.size(1000)

    async def run() -> float:
        watch = Stopwatch()
        async with SQLiteBackend(folder / "q.sqlite3") as backend, backend.consume() as stream:
            with watch.timing():
                for n in range(count):
                    await backend.publish(KEY, payload(n))
                    await anext(stream)
        return watch.rate(count)

    return asyncio.run(run())


CASES = [
    Case(
        "Publish, awaited one by one",
        "raw sqlite3",
        {"abe": publish_one_by_one, "raw sqlite3": raw_one_by_one},
        [Target("abe", 0.8, ["raw sqlite3"])],
        "raw: a transaction for each row, with the same hop to a thread and back.",
    ),
    Case(
        "Publish, 100 concurrent publishers",
        "raw sqlite3",
        {
            "abe": publish_concurrently,
            "abe publish_many(500)": publish_many,
            "raw sqlite3": raw_batches,
        },
        [Target("abe", 0.6, ["raw sqlite3"])],
        "raw: a transaction for each 500 rows, in the main thread, without asyncio.",
    ),
    Case(
        "Consume with acks",
        "raw sqlite3",
        {
            "abe": consume,
            "raw sqlite3": raw_consume,
            "litequeue": litequeue,
            "litequeue, NORMAL": litequeue_default,
            "persist-queue": persist_queue,
            "huey": huey,
        },
        [
            Target("abe", 0.7, ["raw sqlite3"]),
            Target("abe", 7, ["litequeue", "persist-queue", "huey"]),
        ],
        "raw: lease 500 rows in one transaction, which like abe's does not wait for the disk,"
        " decode them,\ndelete them in another, which does; without asyncio and threads.\n"
        "litequeue syncs nothing by default (NORMAL); the target compares at equal durability.",
    ),
    Case(
        "Publish and receive one message at a time",
        "abe",
        {"abe": latency},
        unit="round trips/s",
    ),
]

if __name__ == "__main__":
    main("SQLite", CASES)
