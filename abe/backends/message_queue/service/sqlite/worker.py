"""Sharing a SQLite connection: callers of any event loop, and who is told of news."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from abe.backends.message_queue.service.sqlite.schema import primary_code
from abe.backends.message_queue.service.sqlite.thread import (
    Job,
    Listener,
    Listeners,
    Mode,
    WriterThread,
)
from abe.errors import AbeError, ConfigurationError, ConnectionLostError

__all__ = ["Listener", "Mode", "Worker", "may_pass"]

T = TypeVar("T")

REFUSED = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH)
PASSING = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PROTOCOL,
)

_workers: weakref.WeakSet[Worker] = weakref.WeakSet()
_workers_lock = threading.Lock()


class Worker:
    """Runs functions on one connection, each inside a transaction, many to a commit.

    Loop-agnostic and thread-safe; the thread starts when first needed. A function that fails is
    left out of the shared transaction and the others run again, so functions must not have other
    effects than on the file.

    Args:
        path: The file.
        synchronous: ``"FULL"`` or ``"NORMAL"``.
        busy_timeout: Seconds to wait while another process writes.
    """

    def __init__(self, path: Path, *, synchronous: str, busy_timeout: float) -> None:
        self.path = path
        self._durable = synchronous == "FULL"
        self._busy_timeout = busy_timeout
        self._listeners = Listeners()
        self._lock = threading.Lock()
        self._thread: WriterThread | None = None
        self._closed = False
        with _workers_lock:
            _workers.add(self)

    @property
    def generation(self) -> object:
        """Changes when the file has been replaced by another."""
        return self._thread and self._thread.generation

    async def run(
        self,
        function: Callable[[sqlite3.Connection], T],
        *,
        mode: Mode = Mode.DURABLE,
        news: bool = False,
        glance: Callable[[sqlite3.Connection], T | None] | None = None,
    ) -> T:
        """Run ``function(connection)`` and return its result once it is committed.

        A cancelled caller does not know whether it was run.

        Args:
            function: What to do.
            mode: Whether it writes, which takes a lock that other processes wait for.
            news: Whether listeners are to be told once it is committed.
            glance: Reads, before any lock is taken; unless it returns ``None``, its result is
                the job's, and ``function`` is not run.

        Raises:
            sqlite3.Error: If it failed; then nothing of it was stored.
            OSError: If the file cannot be created.
            ConfigurationError: If the file is not to be used.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._put(Job(function, future, mode, news, glance))
        return await future

    async def transact(
        self,
        function: Callable[[sqlite3.Connection], T],
        *,
        mode: Mode = Mode.DURABLE,
        news: bool = False,
        glance: Callable[[sqlite3.Connection], T | None] | None = None,
    ) -> T:
        """Do what `run` does, with errors that streams understand.

        Raises:
            ConnectionLostError: If the file cannot be read or written now.
            ConfigurationError: If it is damaged, or not a queue file.
        """
        try:
            return await self.run(function, mode=mode, news=news, glance=glance)
        except (sqlite3.Error, OSError) as error:
            raise self._translated(error) from error

    def _translated(self, error: sqlite3.Error | OSError) -> AbeError:
        if isinstance(error, OSError) or primary_code(error) in REFUSED + PASSING:
            return ConnectionLostError(f"cannot use {self.path}: {error}")
        return ConfigurationError(
            f"{self.path} is damaged ({error}). Restore a copy, or move it away to start anew"
        )

    def post(self, function: Callable[[sqlite3.Connection], object], *, news: bool = False) -> None:
        """Run ``function(connection)`` after what is queued, without waiting for it."""
        self._put(Job(function, None, Mode.WRITE, news, None))

    def listen(self, listener: Listener) -> None:
        """Tell ``listener``, referred to weakly, when the file may have changed, from next run."""
        self._listeners.add(listener)

    def unlisten(self, listener: Listener) -> None:
        """Tell ``listener`` no more."""
        self._listeners.discard(listener)

    def tell(self) -> None:
        """Tell every listener."""
        self._listeners.tell()

    async def aclose(self) -> None:
        """Finish what is queued, close the connection and wait for the thread.

        What is asked for later, by streams that another event loop has yet to close, is still
        done: on a connection that is closed at once.
        """
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None:
            thread.stop()
            await asyncio.shield(asyncio.wrap_future(thread.ended))
            thread.join()

    def before_fork(self) -> None:
        if self._thread is not None:
            self._thread.before_fork()

    def after_fork(self) -> None:
        if self._thread is not None:
            self._thread.after_fork()

    def after_fork_in_child(self) -> None:
        if self._thread is not None:
            self._thread.after_fork_in_child()
        self._thread = None
        self._lock = threading.Lock()
        self._listeners = Listeners()

    def _put(self, job: Job) -> None:
        thread = self._thread
        while thread is None or not thread.put(job):
            thread = self._started()
        if self._closed:
            thread.stop()

    def _started(self) -> WriterThread:
        with self._lock:
            thread = self._thread
            if thread is None or thread.stopping:
                thread = WriterThread(
                    self.path, self._durable, self._busy_timeout, self._listeners, announce, thread
                )
                self._thread = thread
                thread.start()
                # The thread does not refer to the worker: one that is forgotten ends it.
                weakref.finalize(self, thread.stop).atexit = False
            return thread


def may_pass(error: sqlite3.Error | OSError) -> bool:
    """Whether the same may succeed later without anybody giving permission or repairing."""
    if isinstance(error, OSError):
        return error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS)
    return primary_code(error) in PASSING


def announce(path: Path) -> None:
    """Tell the listeners of every worker of this process that uses ``path``."""
    with _workers_lock:
        workers = [worker for worker in _workers if worker.path == path]
    for worker in workers:
        worker.tell()


_forking: list[Worker] = []


def _before_fork() -> None:
    with _workers_lock:
        _forking[:] = _workers
    for worker in _forking:
        worker.before_fork()


def _after_fork() -> None:
    for worker in _forking:
        worker.after_fork()
    _forking.clear()


def _after_fork_in_child() -> None:
    global _workers_lock
    _workers_lock = threading.Lock()
    for worker in _forking:
        worker.after_fork_in_child()
    _forking.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork,
        after_in_child=_after_fork_in_child,
    )
