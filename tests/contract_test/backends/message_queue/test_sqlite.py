"""The SQLite backend fulfils the contract."""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path

from abe.backends.message_queue.service.sqlite import SQLiteBackend
from abe.testing import BackendContract, ConsumerContract, Harness
from abe.testing.process import kill_consumer, kill_publisher
from abe.types import ConsumerGroup

LEASE = 30.0


class SQLiteHarness(Harness):
    """One file for each namespace."""

    quiet = 0.1  # other processes are noticed by polling every 50 ms
    short_delay = 0.15

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="abe-contract-")
        self._made: list[SQLiteBackend] = []
        self._namespace = ""
        self._passed = 0.0

    def close(self) -> None:
        self._folder.cleanup()

    def path(self, namespace: str) -> Path:
        return Path(self._folder.name) / f"{namespace}.sqlite3"

    def make(self, namespace: str, lease: float = LEASE) -> SQLiteBackend:
        if namespace != self._namespace:  # each case begins at the present time
            self._namespace, self._passed, self._made = namespace, 0.0, []
        backend = SQLiteBackend(self.path(namespace), lease=lease)
        backend.advance_time(self._passed)
        self._made.append(backend)
        return backend

    def make_short_lease(self, namespace: str, seconds: float) -> SQLiteBackend:
        return self.make(namespace, lease=seconds)

    async def make_bounded(self, namespace: str, capacity: int) -> SQLiteBackend:
        """Leave room for one page more: SQLite has no limit in messages."""
        backend = self.make(namespace)

        def limit(connection: sqlite3.Connection) -> None:
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {pages + 1}")

        await backend._worker.run(limit)
        return backend

    def make_unreachable(self, namespace: str) -> SQLiteBackend:
        self.path(namespace).write_text("a file, where a folder would have to be")
        return SQLiteBackend(self.path(namespace) / "queue.sqlite3")

    def advance_time(self, seconds: float) -> None:
        self._passed += seconds
        for backend in self._made:
            backend.advance_time(seconds)

    def restart_broker(self) -> None:
        """There is no broker: what can restart is every connection to the file."""
        for backend in self._made:
            for thread in backend._worker.threads:
                thread.stop()
                thread.join()

    async def kill_consumer(self, namespace: str, group: ConsumerGroup, count: int) -> None:
        await kill_consumer("sqlite", self._env(namespace), group, count)

    async def kill_publisher(self, namespace: str, key: str) -> int:
        return await kill_publisher("sqlite", self._env(namespace), key)

    def _env(self, namespace: str) -> dict[str, str]:
        return {"ABE_SQLITE_PATH": str(self.path(namespace)), "ABE_SQLITE_LEASE": str(LEASE)}


class TestSQLite(BackendContract):
    harness = SQLiteHarness


class TestSQLiteConsumer(ConsumerContract):
    harness = SQLiteHarness
