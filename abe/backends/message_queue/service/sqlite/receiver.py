"""One consumer of a group in a queue file."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress

from abe.backends.message_queue.base import (
    Delivery,
    KeyFilter,
    Outcome,
    SettleFailure,
    Settlement,
)
from abe.backends.message_queue.service.sqlite import store
from abe.backends.message_queue.service.sqlite.worker import Mode, Worker
from abe.errors import ConfigurationError, ConnectionLostError
from abe.types import ConsumerGroup

__all__ = ["SQLiteReceiver"]

LONGEST_WAIT = 1.0
"""Seconds until the clock is read again while something is due later: it may have been set."""


class SQLiteReceiver:
    """Leases messages and settles them, and waits without a lock while there are none.

    Args:
        worker: The backend's connection.
        group: The consumer group.
        keys: Which messages to take.
        lease: Seconds that a lease lasts.
        now: The clock of leases and delays, read when a transaction runs, not when it is queued.
    """

    def __init__(
        self,
        worker: Worker,
        group: ConsumerGroup,
        keys: KeyFilter,
        lease: float,
        now: Callable[[], float],
    ) -> None:
        self.lease: float | None = lease
        self._seconds = lease
        self._worker = worker
        self._group = group
        self._keys = keys
        self._now = now
        self._gid = 0
        self._generation: object = None
        self._woken = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._worker.listen(self)
        self._gid = await self._worker.transact(
            lambda c: store.open_group(c, self._group),
            glance=lambda c: store.gid_of(c, self._group),
        )
        self._generation = self._worker.generation

    async def receive(self, max_messages: int, timeout: float) -> Sequence[Delivery]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while not self._woken:
            self._news.clear()
            found = await self._claim(max_messages)
            if isinstance(found, list):
                if found:
                    return [
                        Delivery(store.message_of(row, claim.attempt), claim)
                        for claim, row in found
                    ]
            elif loop.time() >= deadline:
                break
            else:
                await self._idle(found.due, deadline)
        self._woken = False
        return ()

    async def _claim(self, limit: int) -> list[tuple[store.Claim, store.Row]] | store.Nothing:
        gid, token = self._gid, secrets.randbits(62)
        try:
            return await self._worker.transact(
                lambda c: store.claim(c, gid, self._keys, limit, self._now(), self._seconds, token),
                mode=Mode.WRITE,
                glance=lambda c: store.glance(c, gid, self._keys, self._now()),
            )
        except asyncio.CancelledError:
            self._worker.post(lambda c: store.give_back(c, gid, token), news=True)
            raise
        except store.GroupGoneError:
            raise self._gone() from None

    def _gone(self) -> Exception:
        if self._worker.generation is not self._generation:
            return ConnectionLostError(f"{self._worker.path} was deleted or replaced while in use")
        return ConfigurationError(
            f"group {self._group!r} was deleted while this stream was open; open a new stream"
        )

    async def _idle(self, due: float | None, deadline: float) -> None:
        """Wait until something may have changed, or is due."""
        pause = deadline - asyncio.get_running_loop().time()
        if due is not None:
            pause = min(pause, max(0.0, due - self._now()), LONGEST_WAIT)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._news.wait()

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleFailure]:
        lost = await self._worker.transact(
            lambda c: store.settle(c, self._gid, settlements, self._now()),
            news=any(s.outcome in (Outcome.NACK, Outcome.RELEASE) for s in settlements),
        )
        return [SettleFailure(settlements[n]) for n in lost]

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Delivery]:
        claims = [d.receipt for d in deliveries]
        lost = await self._worker.transact(
            lambda c: store.extend(c, self._gid, claims, self._now(), seconds), mode=Mode.WRITE
        )
        return [deliveries[n] for n in lost]

    def wake(self) -> None:
        self._woken = True
        self._news.set()

    def tell(self) -> None:
        """There may be news; called from any thread."""
        if self._loop is not None and not self._news.is_set():
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._news.set)

    async def aclose(self) -> None:
        self._worker.unlisten(self)
