"""The thread that owns a SQLite connection and commits what several callers ask for at once."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

__all__ = ["Worker"]

T = TypeVar("T")
MAX_BATCH = 500


class _Job(NamedTuple):
    function: Callable[[sqlite3.Connection], Any]
    future: asyncio.Future[Any]
    writes: bool


class Worker:
    """Runs functions on one connection, each inside a transaction, many to a commit.

    Whatever is waiting when a transaction begins becomes part of it, so concurrent callers share
    one sync to disk; a caller's result arrives after the commit. If a shared transaction fails,
    its functions run again one by one, so that only the one at fault fails.

    Args:
        connect: Opens the connection, on the thread.
        name: Name of the thread.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection], name: str) -> None:
        self._connect = connect
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._start_lock = threading.Lock()

    async def run(self, function: Callable[[sqlite3.Connection], T], *, writes: bool = True) -> T:
        """Run ``function(connection)`` and return its result once it is committed.

        Args:
            function: What to do.
            writes: False for a single query, which then takes no lock that others wait for.

        Raises:
            sqlite3.Error: If it failed; then nothing of it was stored.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._start()
        self._jobs.put(_Job(function, future, writes))
        # Once queued it will happen: a cancelled caller must not think otherwise and go on.
        return await asyncio.shield(future)

    def close(self) -> None:
        """Finish what is queued, close the connection and wait for the thread."""
        if self._thread is not None and self._pid == os.getpid():
            self._jobs.put(None)
            self._thread.join()
        self._thread = None

    def _start(self) -> None:
        with self._start_lock:
            # A forked child has neither the thread nor the right to its connection.
            if self._thread is None or self._pid != os.getpid():
                self._jobs = SimpleQueue()
                self._pid = os.getpid()
                self._thread = threading.Thread(
                    target=self._work, args=(self._jobs,), name=self._name, daemon=True
                )
                self._thread.start()

    def _work(self, jobs: SimpleQueue[_Job | None]) -> None:
        connection: sqlite3.Connection | None = None
        open_ = True
        while open_:
            first = jobs.get()
            batch = [] if first is None else [first]
            open_ = first is not None
            while open_ and len(batch) < MAX_BATCH:
                try:
                    job = jobs.get_nowait()
                except Empty:
                    break
                if job is None:
                    open_ = False
                else:
                    batch.append(job)
            try:
                if connection is None and batch:
                    connection = self._connect()
            except BaseException as error:
                _finish((job, None, error) for job in batch)
                continue
            if connection is not None and batch:
                _finish(_commit(connection, batch))
        if connection is not None:
            connection.close()


def _commit(
    connection: sqlite3.Connection, batch: list[_Job]
) -> list[tuple[_Job, Any, BaseException | None]]:
    try:
        if any(job.writes for job in batch):
            connection.execute("BEGIN IMMEDIATE")
        results = [job.function(connection) for job in batch]
        if connection.in_transaction:
            connection.execute("COMMIT")
    except BaseException as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if len(batch) == 1:
            return [(batch[0], None, error)]
        return [_commit(connection, [job])[0] for job in batch]
    return [(job, result, None) for job, result in zip(batch, results, strict=True)]


def _finish(outcomes: Iterable[tuple[_Job, Any, BaseException | None]]) -> None:
    """Tell each caller, with one hop to each event loop."""
    loops: dict[asyncio.AbstractEventLoop, list[tuple[_Job, Any, BaseException | None]]] = {}
    for outcome in outcomes:
        loops.setdefault(outcome[0].future.get_loop(), []).append(outcome)
    for loop, group in loops.items():
        try:
            loop.call_soon_threadsafe(_resolve, group)
        except RuntimeError:
            continue  # the loop is closed: nobody waits any more


def _resolve(outcomes: list[tuple[_Job, Any, BaseException | None]]) -> None:
    for job, result, error in outcomes:
        if job.future.done():
            continue
        if error is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(error)
            job.future.exception()  # a cancelled caller does not ask; the others get it raised
