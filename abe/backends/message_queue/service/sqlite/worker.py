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

from abe.backends.message_queue.base.process import PerProcess, fork_error
from abe.backends.message_queue.service.sqlite.schema import QueueConnection, primary_code
from abe.backends.message_queue.service.sqlite.thread import (
    ConnectionThread,
    Job,
    Listener,
    Members,
    Mode,
)
from abe.errors import AbeError, ConfigurationError, ConnectionLostError

__all__ = ["Job", "Listener", "Mode", "Worker", "may_pass", "what_to_permit"]

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


class Worker:
    """Runs functions on a connection, each inside a transaction, many to a commit.

    What only reads has a connection of its own, so that it never keeps anybody from writing.
    Loop-agnostic and thread-safe; the thread starts when first needed. A function that fails is
    left out of the shared transaction and the others run again, so functions must not have other
    effects than on the file.
    """

    def __init__(self, path: Path, *, synchronous: str, busy_timeout: float) -> None:
        self.path = path
        self._durable = synchronous == "FULL"
        self._busy_timeout = busy_timeout
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        """Have nothing yet, in a new process."""
        self._process = os.getpid()
        self._listeners: Members[Listener] = Members()
        self._lock = threading.Lock()
        self._writer: ConnectionThread | None = None
        self._reader: ConnectionThread | None = None
        _workers.get().add(self)

    @property
    def threads(self) -> list[ConnectionThread]:
        return [thread for thread in (self._writer, self._reader) if thread is not None]

    @property
    def generation(self) -> object:
        """Changes when the file has been replaced by another."""
        return self._writer and self._writer.generation

    async def run(
        self,
        function: Callable[[QueueConnection], T],
        *,
        mode: Mode = Mode.DURABLE,
        news: bool = False,
        glance: Callable[[QueueConnection], T | None] | None = None,
    ) -> T:
        """Run ``function(connection)`` and return its result once it is committed.

        A cancelled caller does not know whether it was run. With ``news`` listeners are told then.
        ``glance`` reads before any lock is taken; unless it returns ``None``, that is the result.

        Raises:
            ConnectionLostError: If the file cannot be read or written now.
            ConfigurationError: If it is not to be used, or this user may not read and write it.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._put(Job(function, (future,), mode, news, glance))
        try:
            return await future
        except (sqlite3.Error, OSError) as error:
            raise self._translated(error) from error

    def _translated(self, error: sqlite3.Error | OSError) -> AbeError:
        if may_pass(error):
            return ConnectionLostError(f"cannot use {self.path}: {error}")
        if advice := what_to_permit(error):
            return ConfigurationError(f"cannot use {self.path}: {error}. {advice}")
        return ConfigurationError(
            f"{self.path} is damaged ({error}). Restore a copy, or move it away to start anew"
        )

    def post(self, job: Job) -> None:
        """Run ``job`` after what is queued; its futures, if any, get its errors as they are."""
        try:
            self._put(job)
        except AbeError as error:
            for future in job.futures:
                future.set_exception(error)

    def listen(self, listener: Listener) -> None:
        """Tell ``listener``, referred to weakly, when the file may have changed, from next run."""
        self._listeners.add(listener)

    def unlisten(self, listener: Listener) -> None:
        self._listeners.discard(listener)

    def tell(self) -> None:
        for listener in self._listeners.list():
            listener.tell()

    async def aclose(self) -> None:
        """Finish what is queued, close the connection and wait for the thread.

        What streams of another event loop ask for later is done on a connection closed at once.
        """
        with self._lock:
            self._closed = True
            threads = self.threads
        for thread in threads:
            thread.stop()
        for thread in threads:
            await asyncio.shield(asyncio.wrap_future(thread.ended))
            thread.join()

    def survives_fork(self) -> bool:
        """Whether this process may use the worker: it, or its parent's hook, has begun anew."""
        if self._process != os.getpid() and not self.threads:
            self._begin()
        return self._process == os.getpid()

    def after_fork_in_child(self) -> None:
        """Begin anew in a child; `ConnectionThread.before_fork` has closed the connections."""
        for thread in self.threads:
            thread.after_fork_in_child()
        self._begin()

    def _put(self, job: Job) -> None:
        if not self.survives_fork():
            raise fork_error(str(self.path), self._process)
        thread = self._reader if job.mode is Mode.READ else self._writer
        while thread is None or not thread.put(job):
            thread = self._started(reader=job.mode is Mode.READ)
        if self._closed:
            thread.stop()

    def _started(self, *, reader: bool) -> ConnectionThread:
        with self._lock:
            thread = self._reader if reader else self._writer
            if thread is None or thread.stopping:
                _close_inherited()
                listeners = Members() if reader else self._listeners
                thread = ConnectionThread(
                    self.path, self._durable, self._busy_timeout, listeners, announce, thread
                )
                thread.start()
                if reader:
                    self._reader = thread
                else:
                    self._writer = thread
                # The thread does not refer to the worker: one that is forgotten ends it.
                weakref.finalize(self, thread.stop).atexit = False
            return thread


_workers: PerProcess[Members[Worker]] = PerProcess(Members)
"""The workers of a process."""


def _close_inherited() -> None:
    """Close the connections of a parent whose fork ran no hooks, before SQLite is used here."""
    for workers in _workers.inherited():
        for worker in workers.list():
            for thread in worker.threads:
                thread.close_inherited()


def may_pass(error: sqlite3.Error | OSError) -> bool:
    """Whether the same may succeed later without anybody giving permission or repairing."""
    if isinstance(error, OSError):
        return error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS)
    moved = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_READONLY_DBMOVED
    return moved or primary_code(error) in PASSING


def what_to_permit(error: sqlite3.Error | OSError) -> str:
    """Return what to do about a lack of permission; empty if that is not what is wrong."""
    if may_pass(error) or not (isinstance(error, OSError) or primary_code(error) in REFUSED):
        return ""
    return (
        "Let this user read and write the file and its folder, where SQLite keeps its log, or "
        "give ABE_SQLITE_PATH another file"
    )


def announce(path: Path) -> None:
    """Tell the listeners of every worker of this process that uses ``path``."""
    for worker in _workers.get().list():
        if worker.path == path:
            worker.tell()


_forking: list[tuple[Worker, list[ConnectionThread]]] = []


def _before_fork() -> None:
    _forking[:] = [(worker, worker.threads) for worker in _workers.get().list()]
    for _, threads in _forking:
        for thread in threads:
            thread.before_fork()


def _after_fork() -> None:
    for _, threads in _forking:
        for thread in threads:
            thread.after_fork()
    _forking.clear()


def _after_fork_in_child() -> None:
    for worker, _ in _forking:
        worker.after_fork_in_child()
    _forking.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork,
        after_in_child=_after_fork_in_child,
    )
