"""One consumer of a group in a queue file."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from abe.backends.message_queue.base import Delivery, KeyFilter, Outcome, SettleFailure, Settlement
from abe.backends.message_queue.base.log_records import log_message
from abe.backends.message_queue.service.sqlite import settling, store
from abe.backends.message_queue.service.sqlite.content import Batch, message_of, shown
from abe.backends.message_queue.service.sqlite.schema import QueueConnection
from abe.backends.message_queue.service.sqlite.worker import Job, Mode, Worker
from abe.errors import ConfigurationError, ConnectionLostError, PayloadError
from abe.types import ConsumerGroup

__all__ = ["SQLiteReceiver"]

logger = logging.getLogger(__name__)

LONGEST_WAIT = 1.0
"""Seconds until the clock is read again while something is due later: the machine may sleep."""


class SQLiteReceiver:
    """Leases messages and settles them, and waits without a lock while there are none.

    ``now`` is the clock of leases and delays, read when a transaction runs, not when it is queued.
    """

    def __init__(
        self,
        worker: Worker,
        group: ConsumerGroup,
        keys: KeyFilter,
        lease: float,
        now: Callable[[QueueConnection], float],
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
        self._gid = await self._worker.run(
            lambda c: store.open_group(c, self._group),
            glance=lambda c: store.opened(c, self._group),
        )
        self._generation = self._worker.generation

    async def receive(self, max_messages: int, timeout: float) -> Sequence[Delivery]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while not self._woken:
            self._news.clear()
            found = await self._claim(max_messages)
            if not isinstance(found, store.Nothing):
                if found:
                    return found
            elif loop.time() >= deadline:
                break
            else:
                await self._idle(found.pause, deadline)
        self._woken = False
        return ()

    async def _decoded(self, batch: Batch) -> list[Delivery]:
        """Return deliveries of what can be decoded, and put the rest with the dead letters."""
        begun = batch.begun
        try:
            messages = batch.messages()
        except PayloadError:
            return await self._decoded_singly(batch)
        return [
            Delivery(message, claim, begun=begun.get(claim.seq, 0))
            for message, claim in zip(messages, batch.claims, strict=True)
        ]

    async def _decoded_singly(self, batch: Batch) -> list[Delivery]:
        deliveries: list[Delivery] = []
        rows = await self._worker.run(lambda c: store.singly(c, batch.claims), mode=Mode.READ)
        for claim, row in rows:
            try:
                message = message_of(row, claim.attempt)
            except PayloadError as error:
                self._set_aside(Delivery(shown(row, claim.attempt), claim), str(error))
            else:
                deliveries.append(Delivery(message, claim, begun=batch.begun.get(claim.seq, 0)))
        return deliveries

    def _set_aside(self, delivery: Delivery, reason: str) -> None:
        rejected = [Settlement(delivery, Outcome.REJECT, reason=reason)]
        gid = self._gid
        self._worker.post(Job(lambda c: settling.settle(c, gid, rejected, self._now(c))))
        text = "cannot be decoded and was put with the dead letters: " + reason
        log_message(
            logger, logging.ERROR, text, delivery.message, backend="sqlite", group=self._group
        )

    async def _claim(self, limit: int) -> list[Delivery] | store.Nothing:
        gid, token = self._gid, secrets.randbits(62)
        began = math.inf

        def claim(c: QueueConnection) -> Batch | store.Nothing:
            nonlocal began
            began = time.monotonic()
            return store.claim(c, gid, self._keys, limit, self._now(c), self._seconds, token)

        try:
            found = await self._worker.run(
                claim,
                mode=Mode.WRITE,
                glance=lambda c: store.glance(c, gid, self._keys, self._now(c)),
            )
            if isinstance(found, store.Nothing):
                return found
            # While the event loop stood still, these leases may have lapsed.
            return [] if time.monotonic() - began > self._seconds else await self._decoded(found)
        except asyncio.CancelledError:
            self._worker.post(Job(lambda c: store.give_back(c, gid, token)))
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
        """Wait until something may have changed, or is due in so many seconds."""
        pause = deadline - asyncio.get_running_loop().time()
        if due is not None:
            pause = min(pause, due, LONGEST_WAIT)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._news.wait()

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleFailure]:
        lost = await self._worker.run(
            lambda c: settling.settle(c, self._gid, settlements, self._now(c)),
            news=any(s.outcome in (Outcome.NACK, Outcome.RELEASE) for s in settlements),
        )
        return [SettleFailure(settlements[n]) for n in lost]

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Delivery]:
        claims = [d.receipt for d in deliveries]
        lost = await self._worker.run(
            lambda c: settling.extend(c, self._gid, claims, self._now(c), seconds), mode=Mode.WRITE
        )
        return [deliveries[n] for n in lost]

    async def begin(self, deliveries: Sequence[Delivery]) -> None:
        claims = [d.receipt for d in deliveries]
        await self._worker.run(lambda c: settling.begin(c, self._gid, claims))

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
