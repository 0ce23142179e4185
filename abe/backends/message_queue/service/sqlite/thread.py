"""A thread that owns a SQLite connection and commits what several callers ask for at once."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future as ThreadFuture
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from abe.backends.message_queue.base.log_records import log
from abe.backends.message_queue.base.process import start_thread
from abe.backends.message_queue.service.sqlite.schema import QueueConnection, connect, primary_code
from abe.errors import AbeError, LoopError

__all__ = ["ConnectionThread", "Job", "Listener", "Members", "Mode"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

MAX_BATCH = 512
FIRST_LOOK = 0.002
LAST_LOOK = 0.05
"""Bounds of the time, in seconds, between two looks for what other processes have written."""
CLOSING_PATIENCE = 2.0
"""Seconds to wait for another process's write lock once the backend is being closed."""
BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
BROKEN = (
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_CANTOPEN,
)
"""After one of these the connection is not used again."""
NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE)


class Mode(IntEnum):
    """What a job does to the file."""

    READ = 0
    WRITE = 1
    """A power cut may undo it; a message is then delivered again."""
    DURABLE = 2


class Job(NamedTuple):
    """What a caller asks for; see `Worker.run`."""

    function: Callable[[QueueConnection], Any]
    futures: Sequence[asyncio.Future[Any]] = ()
    """Of those who wait for it, all on one event loop."""
    mode: Mode = Mode.WRITE
    news: bool = True
    glance: Callable[[QueueConnection], Any] | None = None
    parts: Callable[[], list[Job]] | None = None
    """What to run instead if it fails."""


Outcome = tuple[Job, Any, BaseException | None]
"""A job, its result, its error."""


class Listener(Protocol):
    """Somebody who wants to know of news."""

    def tell(self) -> None:
        """There may be news; called from any thread."""


class Members(Generic[T]):
    """Weak references, for use by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: weakref.WeakSet[T] = weakref.WeakSet()

    def __bool__(self) -> bool:
        return bool(self._all)

    def add(self, member: T) -> None:
        with self._lock:
            self._all.add(member)

    def discard(self, member: T) -> None:
        with self._lock:
            self._all.discard(member)

    def list(self) -> list[T]:
        with self._lock:
            return list(self._all)


class ConnectionThread:
    """Runs jobs in transactions, as many to a commit as are waiting, and looks for news.

    ``announce`` is called with the path after a commit that others of this process wait for; the
    jobs of ``after``, a thread that is ending, come first.
    """

    def __init__(
        self,
        path: Path,
        durable: bool,
        busy_timeout: float,
        listeners: Members[Listener],
        announce: Callable[[Path], None],
        after: ConnectionThread | None,
    ) -> None:
        self.generation = object()
        self.stopping = False
        self.ended: ThreadFuture[None] = ThreadFuture()
        self._path = path
        self._durable = durable
        self._busy_timeout = busy_timeout
        self._listeners = listeners
        self._announce = announce
        self._after = after
        self._process = os.getpid()
        self._thread: threading.Thread | None = None
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._putting = threading.Lock()
        self._using = threading.Lock()
        self._connection: QueueConnection | None = None
        self._identity = (0, 0)
        self._synced = True
        self._version = -1
        self._look_at = 0.0
        self._interval = FIRST_LOOK

    # -- from any thread -------------------------------------------------------------------

    def start(self) -> None:
        self._thread = start_thread(self._work, "abe-sqlite")

    def join(self) -> None:
        assert self._thread is not None
        self._thread.join()

    def put(self, job: Job) -> bool:
        """Queue ``job``; False if the thread is ending."""
        with self._putting:
            if not self.stopping:
                self._jobs.put(job)
            return not self.stopping

    def stop(self) -> None:
        if self._process != os.getpid():
            return  # nothing runs here, and a fork may have left the lock locked
        with self._putting:
            if not self.stopping:
                self.stopping = True
                self._jobs.put(None)

    def before_fork(self) -> None:
        """Close the connection, after the transaction that is running, and open no other.

        SQLite keeps account of this process's locks on the file. A child would inherit the
        account and not the locks.
        """
        self._using.acquire()
        self._disconnect()

    def after_fork(self) -> None:
        self._using.release()

    def after_fork_in_child(self) -> None:
        """In the child, where the thread does not run: let nobody wait for it."""
        self._putting = threading.Lock()
        self.stopping = True

    def close_inherited(self) -> None:
        """In a child whose fork ran no hooks: close the connection, unless it was in use."""
        if not self._using.acquire(blocking=False):
            raise LoopError(
                f"process {os.getpid()} was forked while {self._path} was in use, in a way that "
                "Python's at-fork hooks do not see, and cannot use SQLite; start a new process"
            )
        try:
            self._disconnect()
        finally:
            self._using.release()

    # -- on the thread ---------------------------------------------------------------------

    def _work(self) -> None:
        if self._after is not None:
            self._after.join()
            self._after = None
        try:
            while not self.stopping or not self._jobs.empty():
                if batch := self._gather():
                    self._serve(batch)
                if self._listeners and not self.stopping:
                    self._look()
        finally:
            with self._using:
                self._disconnect()
            self.ended.set_result(None)

    def _gather(self) -> list[Job]:
        """Wait for jobs, or until it is time to look, and take all there are."""
        pause = max(0.0, self._look_at - time.monotonic()) if self._listeners else None
        batch: list[Job] = []
        with suppress(Empty):
            job = self._jobs.get(timeout=pause)
            while True:
                # A caller who was cancelled before it began would do it again.
                if job and not (job.futures and all(future.cancelled() for future in job.futures)):
                    batch.append(job)
                if len(batch) == MAX_BATCH:
                    break
                job = self._jobs.get_nowait()
        return batch

    def _serve(self, batch: list[Job]) -> None:
        outcomes: list[Outcome] = []
        started = time.monotonic()
        emptied = False
        while batch:
            with self._using:
                batch, error = self._attempt(batch, outcomes)
            if error is None:
                continue
            if getattr(error, "sqlite_errorcode", 0) in NO_ROOM and not emptied:
                emptied = True
                again = self._empty_log()
            else:
                again = self._retry(error, started)
            if not again:
                outcomes += [(job, None, error) for job in batch]
                break
        self._interval = FIRST_LOOK
        _finish(outcomes)
        if any(job.news for job, _, error in outcomes if error is None):
            self._announce(self._path)

    def _attempt(
        self, batch: list[Job], outcomes: list[Outcome]
    ) -> tuple[list[Job], BaseException | None]:
        """Do what can be done; returns what is left of ``batch``, and why if nothing was done."""
        try:
            connection = self._connected()
            answered = _glance(connection, batch)
            if answered:
                outcomes += answered.values()
                batch = [job for n, job in enumerate(batch) if n not in answered]
            if batch:
                batch = self._commit(connection, batch, outcomes)
        except BaseException as error:
            self._roll_back()
            if primary_code(error) in BROKEN:
                self._disconnect()
            return batch, error
        return batch, None

    def _retry(self, error: BaseException, started: float) -> bool:
        """Pause and return True if another process was in the way and there is time left."""
        patience = min(self._busy_timeout, CLOSING_PATIENCE if self.stopping else math.inf)
        if primary_code(error) not in BUSY or time.monotonic() - started >= patience:
            return False
        # SQLite's own waits grow to 0.1 s, which starves whoever has waited longest.
        time.sleep(random.uniform(0.0005, 0.004))
        return True

    def _empty_log(self) -> bool:
        """Make room on a full disk: what is in the log may replace as much in the file."""
        with self._using, suppress(sqlite3.Error, OSError, AbeError):
            (busy, *_) = self._connected().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return not busy
        return False

    def _commit(
        self, connection: QueueConnection, batch: list[Job], outcomes: list[Outcome]
    ) -> list[Job]:
        """Run ``batch`` in one transaction; returns what to run again, without one at fault."""
        mode = max(job.mode for job in batch)
        if mode:
            self._sync(connection, mode is Mode.DURABLE)
        connection.execute("BEGIN IMMEDIATE" if mode else "BEGIN")
        done: list[Outcome] = []
        for position, job in enumerate(batch):
            try:
                done.append((job, job.function(connection), None))
            except BaseException as error:
                if primary_code(error) in BUSY + BROKEN:
                    raise
                self._roll_back()
                if job.parts is None:
                    outcomes.append((job, None, error))
                instead = job.parts() if job.parts is not None else []
                return batch[:position] + instead + batch[position + 1 :]
        connection.execute("COMMIT")
        outcomes += done
        return []

    def _sync(self, connection: sqlite3.Connection, wanted: bool) -> None:
        if self._durable and wanted is not self._synced:
            # Not execute(): it caches statements, and this one acts when it is compiled.
            connection.executescript(f"PRAGMA synchronous = {'FULL' if wanted else 'NORMAL'}")
            self._synced = wanted

    def _roll_back(self) -> None:
        if self._connection is not None and self._connection.in_transaction:
            with suppress(sqlite3.Error):  # some errors have ended the transaction already
                self._connection.execute("ROLLBACK")

    # -- the connection --------------------------------------------------------------------

    def _connected(self) -> QueueConnection:
        if self._connection is not None and self._moved():
            text = "%s was deleted or replaced while in use; opening it anew"
            log(logger, logging.WARNING, text, self._path)
            self._disconnect()
            self.generation = object()
        if self._connection is None:
            connection = connect(self._path)
            self._connection = connection
            self._identity = self._identify()
            self._synced = self._durable
            connection.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'NORMAL'}")
        return self._connection

    def _identify(self) -> tuple[int, int]:
        status = self._path.stat()
        return status.st_dev, status.st_ino

    def _moved(self) -> bool:
        """Whether the path leads elsewhere by now: what is written here would reach nobody."""
        try:
            return self._identify() != self._identity
        except FileNotFoundError:
            return True
        except OSError:
            return False

    def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
            self._version = -1

    def _look(self) -> None:
        now = time.monotonic()
        if now < self._look_at:
            return
        version = 0
        with self._using, suppress(sqlite3.Error):
            if self._connection is not None and not self._moved():
                (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        if version == self._version:
            self._interval = min(self._interval * 1.5, LAST_LOOK)
        else:
            self._version = version
            self._interval = FIRST_LOOK
            for listener in self._listeners.list():
                listener.tell()
        self._look_at = now + self._interval


def _glance(connection: QueueConnection, batch: Iterable[Job]) -> dict[int, Outcome]:
    """Answer the jobs for which looking is enough, by position."""
    answered: dict[int, Outcome] = {}
    for position, job in enumerate(batch):
        if job.glance is None:
            continue
        try:
            seen = job.glance(connection)
        except BaseException as error:
            if primary_code(error) in BUSY + BROKEN:
                raise
            answered[position] = (job, None, error)
        else:
            if seen is not None:
                answered[position] = (job, seen, None)
    return answered


def _finish(outcomes: Iterable[Outcome]) -> None:
    """Tell each caller, with one hop to each event loop."""
    loops: dict[asyncio.AbstractEventLoop, list[Outcome]] = {}
    for outcome in outcomes:
        for future in outcome[0].futures[:1]:
            loops.setdefault(future.get_loop(), []).append(outcome)
    for loop, group in loops.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_resolve, group)


def _resolve(outcomes: Iterable[Outcome]) -> None:
    for job, result, error in outcomes:
        for future in job.futures:
            if future.done():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
