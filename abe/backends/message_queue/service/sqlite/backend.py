"""The durable embedded backend: one file, shared by processes."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import ClassVar, TypeVar

from abe.backends.message_queue.base import (
    COMPLETE,
    BaseBackend,
    KeyFilter,
    Message,
    Outgoing,
    Setting,
    check_settings,
)
from abe.backends.message_queue.service.sqlite import admin, store
from abe.backends.message_queue.service.sqlite.receiver import SQLiteReceiver
from abe.backends.message_queue.service.sqlite.schema import QueueConnection
from abe.backends.message_queue.service.sqlite.worker import (
    Job,
    Mode,
    Worker,
    may_pass,
    what_to_permit,
)
from abe.errors import ConfigurationError, PublishError
from abe.types import ConsumerGroup, QueueStats

__all__ = ["SQLiteBackend"]

Call = tuple[asyncio.Future[None], Sequence[Outgoing]]
"""A call of publish, and what it publishes."""

DEFAULT_PATH = ".abe/queue.sqlite3"

T = TypeVar("T")


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
    settings = (
        Setting(
            "ABE_SQLITE_PATH",
            default=DEFAULT_PATH,
            help="the file; it and its folder are made when first used; `~` is your home",
            sample="/var/lib/shop/queue.sqlite3",
        ),
        Setting(
            "ABE_SQLITE_LEASE",
            float,
            30.0,
            "s",
            "how long a message may be neither settled nor extended, else it is redelivered",
            minimum=0.001,
            sample="120",
        ),
        Setting(
            "ABE_SQLITE_SYNCHRONOUS",
            ("FULL", "NORMAL"),
            "FULL",
            help="`FULL` survives a power cut, `NORMAL` a crash of the process",
            sample="NORMAL",
        ),
        Setting(
            "ABE_SQLITE_BUSY_TIMEOUT",
            float,
            30.0,
            "s",
            "how long to wait while another process writes",
            sample="5",
        ),
    )

    def __init__(
        self,
        path: str | Path = DEFAULT_PATH,
        *,
        lease: float = 30.0,
        synchronous: str = "FULL",
        busy_timeout: float = 30.0,
    ) -> None:
        super().__init__()
        given = {"lease": lease, "synchronous": synchronous, "busy_timeout": busy_timeout}
        check_settings(self.settings, **given)
        if str(path).startswith((":memory:", "file:")) or not str(path):
            raise ConfigurationError(
                f"path is {str(path)!r}; it must be the path of a file. The backend 'memory' is"
                " the one that keeps messages in memory"
            )
        try:
            self.path = Path(path).expanduser().absolute()
        except RuntimeError:
            raise ConfigurationError(
                f"path is {str(path)!r}; there is no such home directory"
            ) from None
        self.capabilities = replace(COMPLETE, durable=True, lease=lease)
        self._lease = lease
        self._clock_offset = 0.0
        self._waiting: dict[asyncio.AbstractEventLoop, list[Call]] = {}
        """Of each event loop with a job at the writer's thread, the calls for the next one."""
        self._worker = Worker(self.path, synchronous=synchronous, busy_timeout=busy_timeout)

    def __repr__(self) -> str:
        return f"SQLiteBackend({str(self.path)!r})"

    async def _send(self, items: Sequence[Outgoing]) -> None:
        """Store ``items`` in one commit, shared with concurrent calls.

        Without a `Batcher`: what is asked for while a commit is on its way is handed over together,
        and the writer's thread groups whatever waits for it, settlements included.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        if (waiting := self._waiting.get(loop)) is not None:
            waiting.append((future, items))
        else:
            self._hand_over(loop, [(future, items)])
        try:
            await future
        except (sqlite3.Error, OSError) as error:
            what = f"cannot write to {self.path}: {error}; nothing was stored"
            raise PublishError(
                ". ".join(filter(None, [what, what_to_permit(error)])),
                retryable=may_pass(error),
                failed=dict.fromkeys(range(len(items)), "nothing was stored"),
            ) from error

    def _hand_over(self, loop: asyncio.AbstractEventLoop, calls: Sequence[Call]) -> None:
        waiting = self._waiting[loop] = []

        def go_on(_: object) -> None:
            if len(calls) == 1 and not waiting:
                del self._waiting[loop]
            else:  # after the callers of this job, who go on first and perhaps publish again
                loop.call_soon(self._hand_over_next, loop)

        calls[0][0].add_done_callback(go_on)
        self._worker.post(self._publishing(calls))

    def _hand_over_next(self, loop: asyncio.AbstractEventLoop) -> None:
        if calls := [call for call in self._waiting.pop(loop) if not call[0].cancelled()]:
            self._hand_over(loop, calls)

    def _publishing(self, calls: Sequence[Call]) -> Job:
        items = list(chain.from_iterable(items for _, items in calls))
        return Job(
            lambda c: store.publish(c, items, self._now(c)),
            [future for future, _ in calls],
            Mode.DURABLE,
            parts=(lambda: [self._publishing([call]) for call in calls]) if calls[1:] else None,
        )

    def _receiver(self, group: ConsumerGroup, keys: KeyFilter) -> SQLiteReceiver:
        return SQLiteReceiver(self._worker, group, keys, self._lease, self._now)

    def _survives_fork(self) -> bool:
        return self._worker.survives_fork()

    async def _disconnect(self) -> None:
        await self._worker.aclose()

    def _now(self, connection: QueueConnection) -> float:
        return connection.now() + self._clock_offset

    def advance_time(self, seconds: float) -> None:
        """Let ``seconds`` pass for the delays and leases of this backend, for tests."""
        self._clock_offset += seconds
        self._worker.tell()

    async def _peek(self, keys: KeyFilter, group: ConsumerGroup, limit: int) -> list[Message]:
        return await self._read(lambda c: admin.peek(c, group, keys, limit, self._now(c)))

    async def _stats(self) -> QueueStats:
        return await self._read(lambda c: admin.stats(c, self._now(c)))

    async def _dead_letters(self, group: ConsumerGroup, limit: int) -> list[Message]:
        return await self._read(lambda c: admin.dead_letters(c, group, limit))

    async def _replay(self, group: ConsumerGroup, ids: Set[str] | None, limit: int) -> int:
        return await self._in_slices(
            lambda position, c: admin.replay(c, group, ids, limit, position), news=True
        )

    async def _groups(self) -> list[ConsumerGroup]:
        return await self._read(admin.group_names)

    async def _delete_group(self, name: ConsumerGroup) -> None:
        await self._in_slices(
            lambda position, c: admin.delete_group(c, name, self._now(c), position), news=True
        )

    async def _purge(self, keys: KeyFilter, group: ConsumerGroup) -> int:
        return await self._in_slices(
            lambda position, c: admin.purge(c, group, keys, self._now(c), position)
        )

    async def _ping(self) -> None:
        await self._read(admin.group_names)

    async def _read(self, query: Callable[[QueueConnection], T]) -> T:
        return await self._worker.run(query, mode=Mode.READ)

    async def _in_slices(
        self,
        step: Callable[[admin.Position | None, QueueConnection], tuple[int, admin.Position | None]],
        *,
        news: bool = False,
    ) -> int:
        """Run ``step`` in one transaction after another until it is done; returns the sum."""
        total = 0
        position: admin.Position | None = None
        while True:
            number, position = await self._worker.run(partial(step, position), news=news)
            total += number
            if position is None:
                return total
