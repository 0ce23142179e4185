"""The durable embedded backend: one file, shared by processes."""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import ClassVar, Self, TypeVar

from abe.backends.message_queue.base import (
    BaseBackend,
    Capabilities,
    Delivery,
    KeyFilter,
    Message,
    Outgoing,
    SettleFailure,
    Settlement,
    validate_group,
)
from abe.backends.message_queue.base.env import env_number
from abe.backends.message_queue.service import _sqlite_store as store
from abe.backends.message_queue.service._sqlite_schema import connect
from abe.backends.message_queue.service._sqlite_worker import Worker
from abe.errors import ConfigurationError, ConnectionLostError, PublishError
from abe.types import ConsumerGroup, QueueStats

__all__ = ["SQLiteBackend"]

T = TypeVar("T")

DEFAULT_PATH = ".abe/queue.sqlite3"
YEAR = 365 * 86_400.0
POLL_INTERVAL = 0.05
"""Seconds between two looks for what other processes have published."""

_receivers: weakref.WeakSet[SQLiteReceiver] = weakref.WeakSet()
"""Every waiting consumer of this process, to be told at once of what this process publishes."""
_receivers_lock = threading.Lock()


class SQLiteBackend(BaseBackend):
    """A durable queue in one file, for notebooks and single machines.

    Several processes may share the file. What ``publish`` has returned for survives ``kill -9`` at
    any moment, and with ``synchronous="FULL"`` a power cut. Concurrent publishes share a commit.
    Loop-agnostic: one thread owns the connection, any event loop may use the backend.

    Args:
        path: The file; it and its folder are created when first used.
        lease: Seconds after which a message that is neither settled nor extended comes back.
        synchronous: ``"FULL"`` syncs every commit to disk; ``"NORMAL"`` is faster and may lose
            the last commits in a power cut, though not when a process dies.
        busy_timeout: Seconds to wait while another process writes.

    Raises:
        ConfigurationError: If an argument is out of range.
    """

    name: ClassVar[str] = "sqlite"
    loop_bound: ClassVar[bool] = False

    def __init__(
        self,
        path: str | Path = DEFAULT_PATH,
        *,
        lease: float = 30.0,
        synchronous: str = "FULL",
        busy_timeout: float = 30.0,
    ) -> None:
        super().__init__()
        if synchronous not in ("FULL", "NORMAL"):
            raise ConfigurationError(
                f"ABE_SQLITE_SYNCHRONOUS is {synchronous!r}; it must be FULL or NORMAL"
            )
        self.path = Path(path).absolute()
        self.capabilities = Capabilities(
            durable=True,
            groups=True,
            backlog=True,
            keys="consumer",
            ordering="consumer",
            redelivery="message",
            release=True,
            reject=True,
            attempts="exact",
            lease=lease,
            delay=YEAR,
            nack_delay=YEAR,
            headers=True,
            publish_many=True,
            peek=True,
            stats=True,
            dead_letters=True,
            admin=True,
        )
        self._lease = lease
        self._clock_offset = 0.0
        opening = partial(connect, self.path, synchronous=synchronous, busy_timeout=busy_timeout)
        self._worker = Worker(opening, "abe-sqlite")

    @classmethod
    def from_env(cls) -> Self:
        """Create a backend from the environment, without opening the file.

        Reads ``ABE_SQLITE_PATH`` (default ``.abe/queue.sqlite3``), ``ABE_SQLITE_LEASE`` (seconds;
        default 30), ``ABE_SQLITE_SYNCHRONOUS`` (``FULL``, the default, or ``NORMAL``) and
        ``ABE_SQLITE_BUSY_TIMEOUT`` (seconds; default 30).

        Raises:
            ConfigurationError: If a variable is malformed.
        """
        return cls(
            os.environ.get("ABE_SQLITE_PATH") or DEFAULT_PATH,
            lease=env_number("ABE_SQLITE_LEASE", 30.0, minimum=0.001),
            synchronous=(os.environ.get("ABE_SQLITE_SYNCHRONOUS") or "FULL").upper(),
            busy_timeout=env_number("ABE_SQLITE_BUSY_TIMEOUT", 30.0, minimum=0.0),
        )

    def __repr__(self) -> str:
        return f"SQLiteBackend({str(self.path)!r})"

    async def _send(self, items: Sequence[Outgoing]) -> None:
        now = self.now()
        try:
            await self._worker.run(lambda c: store.publish(c, items, now))
        except (sqlite3.Error, OSError) as error:
            failed = dict.fromkeys(range(len(items)), "nothing was stored")
            raise PublishError(
                f"cannot write to {self.path}: {error}; nothing was stored",
                retryable=True,
                failed=failed,
            ) from error
        _tell_others(self.path)

    def _receiver(self, group: ConsumerGroup, keys: KeyFilter) -> SQLiteReceiver:
        return SQLiteReceiver(self, group, keys, self._lease)

    async def _disconnect(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._worker.close)

    def now(self) -> float:
        """Return the time that leases and delays are measured in: seconds since the epoch."""
        return time.time() + self._clock_offset

    async def transact(
        self, function: Callable[[sqlite3.Connection], T], *, writes: bool = True
    ) -> T:
        """Run ``function`` on the backend's connection, in a transaction if it writes.

        Raises:
            ConnectionLostError: If the file cannot be read or written.
        """
        try:
            return await self._worker.run(function, writes=writes)
        except (sqlite3.Error, OSError) as error:
            raise ConnectionLostError(f"cannot use {self.path}: {error}") from error

    async def peek(
        self,
        keys: Sequence[str] | str | None = None,
        *,
        group: ConsumerGroup = None,
        limit: int = 10,
    ) -> list[Message]:
        """Return up to ``limit`` messages that ``group`` could take now, oldest first.

        For a group that does not exist: what it would see.
        """
        self._check_open()
        validate_group(group)
        chosen, now = KeyFilter(keys), self.now()
        found = await self.transact(lambda c: store.peek(c, group, chosen, limit, now))
        return [store.message_of(row, attempt) for row, attempt in found]

    async def stats(self) -> QueueStats:
        """Return the exact backlog of every key and group; retained ones under ``None``."""
        self._check_open()
        now = self.now()
        return await self.transact(lambda c: store.stats(c, now))

    async def dead_letters(self, *, group: ConsumerGroup = None, limit: int = 100) -> list[Message]:
        """Return up to ``limit`` dead letters of ``group``, oldest first.

        Their headers ``abe-dead-…`` say why: see `dead_headers`.
        """
        self._check_open()
        validate_group(group)
        found = await self.transact(lambda c: store.dead_letters(c, group, limit))
        return [store.message_of(row, attempts, headers) for row, attempts, headers in found]

    async def replay(
        self,
        *,
        group: ConsumerGroup = None,
        ids: Iterable[str] | None = None,
        limit: int | None = None,
    ) -> int:
        """Put dead letters back for ``group`` alone, counted as never delivered.

        Returns:
            How many were put back.
        """
        self._check_open()
        validate_group(group)
        wanted = None if ids is None else {ids} if isinstance(ids, str) else set(ids)
        count = await self.transact(lambda c: store.replay(c, group, wanted, limit))
        _tell_others(self.path)
        return count

    async def groups(self) -> list[ConsumerGroup]:
        """Return the groups that exist; ``None`` stands for the default group."""
        self._check_open()
        return await self.transact(store.group_names)

    async def delete_group(self, name: ConsumerGroup) -> None:
        """Forget a group, its backlog and its dead letters; its open streams fail.

        Raises:
            ConfigurationError: If there is no such group.
        """
        self._check_open()
        validate_group(name)
        await self.transact(lambda c: store.delete_group(c, name))
        _tell_others(self.path)

    async def purge(
        self, keys: Sequence[str] | str | None = None, *, group: ConsumerGroup = None
    ) -> int:
        """Drop what waits for ``group``, delayed messages included, not what is in flight.

        While no group exists, retained messages are dropped. Dead letters stay.

        Returns:
            How many messages were dropped.
        """
        self._check_open()
        validate_group(group)
        chosen = KeyFilter(keys)
        return await self.transact(lambda c: store.purge(c, group, chosen.matches))

    async def ping(self, timeout: float = 5.0) -> None:
        """Return once the file has answered.

        Raises:
            ConnectionLostError: If it cannot be read, or not within ``timeout`` seconds.
            ConfigurationError: If it is not a queue file.
        """
        self._check_open()
        try:
            async with asyncio.timeout(timeout):
                await self.transact(store.group_names)
        except TimeoutError:
            raise ConnectionLostError(f"{self.path} did not answer in {timeout:g} s") from None


class SQLiteReceiver:
    """One consumer of a group in a queue file."""

    def __init__(
        self, backend: SQLiteBackend, group: ConsumerGroup, keys: KeyFilter, lease: float
    ) -> None:
        self.lease: float | None = lease
        self.path = backend.path
        self._seconds = lease
        self._backend = backend
        self._group = group
        self._keys = keys
        self._gid = 0
        self._woken = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._gid = await self._backend.transact(lambda c: store.open_group(c, self._group))
        with _receivers_lock:
            _receivers.add(self)

    async def receive(self, max_messages: int, timeout: float) -> Sequence[Delivery]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        seen = -1
        while not self._woken and loop.time() < deadline:
            self._news.clear()
            claims = await self._claim(max_messages)
            if claims:
                return [
                    Delivery(store.message_of(claim.row, claim.attempt), claim) for claim in claims
                ]
            seen = await self._idle(seen, deadline)
        self._woken = False
        return ()

    async def _claim(self, limit: int) -> list[store.Claim]:
        now = self._backend.now()
        token = secrets.randbits(62)
        return await self._backend.transact(
            lambda c: store.claim(c, self._gid, self._keys, limit, now, self._seconds, token)
        )

    async def _idle(self, seen: int, deadline: float) -> int:
        """Wait until something may have changed; returns the file's version seen last."""
        loop = asyncio.get_running_loop()
        due = await self._backend.transact(lambda c: store.next_due(c, self._gid), writes=False)
        while not self._woken and not self._news.is_set() and loop.time() < deadline:
            version = await self._backend.transact(_data_version, writes=False)
            if version != seen or (due is not None and due <= self._backend.now()):
                return version
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_INTERVAL):
                    await self._news.wait()
        return seen

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleFailure]:
        settled = [
            store.Settled(s.delivery.receipt, s.outcome, s.delay, s.reason) for s in settlements
        ]
        now = self._backend.now()
        lost = await self._backend.transact(lambda c: store.settle(c, self._gid, settled, now))
        if any(s.outcome in ("nack", "release") for s in settlements):
            _tell_others(self.path)
        return [SettleFailure(settlements[n]) for n in lost]

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Delivery]:
        claims = [d.receipt for d in deliveries]
        now = self._backend.now()
        lost = await self._backend.transact(
            lambda c: store.extend(c, self._gid, claims, now, seconds)
        )
        return [deliveries[n] for n in lost]

    def wake(self) -> None:
        self._woken = True
        self._news.set()

    def tell(self) -> None:
        """Something was published; called from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._news.set)

    async def aclose(self) -> None:
        with _receivers_lock:
            _receivers.discard(self)


def _data_version(c: sqlite3.Connection) -> int:
    return int(c.execute("PRAGMA data_version").fetchone()[0])


def _tell_others(path: Path) -> None:
    if _receivers:
        with _receivers_lock:
            waiting = [receiver for receiver in _receivers if receiver.path == path]
        for receiver in waiting:
            receiver.tell()
