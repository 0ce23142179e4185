"""One consumer of a queue."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from abe.backends.message_queue.base import (
    Delivery,
    Message,
    Outcome,
    Receiver,
    SettleFailure,
    Settlement,
    log,
    transient,
)
from abe.errors import AbeError, ConnectionLostError, PayloadError
from abe_backend_sqs.codec import message_of
from abe_backend_sqs.dead_letters import DeadLetterQueue
from abe_backend_sqs.failures import LapsedError
from abe_backend_sqs.long_poll import LongPoller
from abe_backend_sqs.queue import Raw

__all__ = ["Receipt", "SqsReceiver"]

logger = logging.getLogger(__name__)

ASIDE = 900.0
"""Seconds for which a message is hidden that can neither be handled nor given up."""


@dataclass(slots=True, eq=False)
class Receipt:
    """What is needed to settle a delivery."""

    handle: str
    body: str
    deadline: float
    """When the lease lapses. SQS would still accept a settlement after that, although another
    consumer may hold the message by then."""
    done: bool = False
    """Whether SQS has accepted the settlement."""


class SqsReceiver(Receiver):
    """Takes messages from a queue.

    Args:
        find: Finds the queue, by its poller, and its dead letters if abe is to use them.
        lease: Seconds, whole ones.
        clock: Tells the time that leases are measured by.
    """

    def __init__(
        self,
        find: Callable[[], Awaitable[tuple[LongPoller, DeadLetterQueue | None]]],
        *,
        lease: int,
        clock: Callable[[], float],
    ) -> None:
        self.lease: float | None = lease
        self._find = find
        self._clock = clock
        self._woken = asyncio.Event()
        self._poller: LongPoller
        self._dead: DeadLetterQueue | None = None
        # An extension that overtakes a release would hide the message again.
        self._turn = asyncio.Lock()

    async def open(self) -> None:
        self._poller, self._dead = await self._find()
        self._queue = self._poller.queue

    async def receive(self, max_messages: int, timeout: float) -> Sequence[Delivery]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while not self._woken.is_set() and loop.time() < deadline:
            poll = self._poller.take(max_messages)
            raws = await self._wait_for(poll, deadline - loop.time())
            lapses = self._clock() + (self.lease or 0.0)
            found = [await self._accept(raw, lapses) for raw in raws]
            if deliveries := [delivery for delivery in found if delivery is not None]:
                return deliveries
        self._woken.clear()
        return ()

    async def _wait_for(self, poll: asyncio.Task[Sequence[Raw]], timeout: float) -> Sequence[Raw]:
        """Return what ``poll`` brings; leave it behind once woken, and at the time-out."""
        woken = asyncio.create_task(self._woken.wait(), name="abe-sqs-wake")
        try:
            await asyncio.wait({poll, woken}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()
            if not poll.done():
                self._poller.leave(poll)
        return await poll if poll.done() else ()

    async def _accept(self, raw: Raw, lapses: float) -> Delivery | None:
        """Return a delivery; set aside what others have sent and no handler could be given."""
        receipt = Receipt(raw["ReceiptHandle"], raw["Body"], lapses)
        try:
            return Delivery(message_of(raw, self._queue.name), receipt)
        except PayloadError as error:
            reason = str(error)
        blank = message_of(raw, self._queue.name, {})
        outcome = Outcome.REJECT if self._dead else Outcome.NACK
        where = "goes to the dead letters" if self._dead else f"stays, hidden for {ASIDE:g} s"
        self._log(f"cannot be delivered and {where}", blank, reason)
        with suppress(AbeError):  # else it comes again, and the others must not wait for that
            await self.settle([Settlement(Delivery(blank, receipt), outcome, ASIDE, reason)])
        return None

    def wake(self) -> None:
        self._woken.set()

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleFailure]:
        async with self._turn:
            return await self._settle(settlements)

    async def _settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleFailure]:
        now = self._clock()
        failures: list[SettleFailure] = []
        rejects: list[Settlement] = []
        deletes: list[Settlement] = []
        hides: list[Settlement] = []
        for settlement in settlements:
            receipt: Receipt = settlement.delivery.receipt
            if receipt.done:
                continue  # accepted by a call of which another part had to be repeated
            if receipt.deadline <= now:
                failures.append(SettleFailure(settlement))
            elif settlement.outcome is Outcome.ACK:
                deletes.append(settlement)
            else:
                (rejects if settlement.outcome is Outcome.REJECT else hides).append(settlement)
        if rejects:
            failures += await self._reject(rejects, hides)
        deleted, hidden = await asyncio.gather(
            self._queue.delete([settlement.delivery.receipt.handle for settlement in deletes]),
            self._queue.hide([(s.delivery.receipt.handle, s.delay) for s in hides]),
        )
        results = [*deleted, *hidden]
        _raise_outage(results)
        for settlement, error in zip([*deletes, *hides], results, strict=True):
            settlement.delivery.receipt.done = error is None
            if error is not None:
                lost = isinstance(error, LapsedError)
                failures.append(SettleFailure(settlement, None if lost else error))
        return failures

    async def _reject(
        self, settlements: Sequence[Settlement], hides: list[Settlement]
    ) -> list[SettleFailure]:
        """Move messages to the dead letters; those that are refused there are to be hidden."""
        assert self._dead is not None  # else rejecting is not offered
        failures = dict(await self._dead.mover.move(settlements))
        passing = []
        for settlement in settlements:
            error = failures.get(settlement)
            if settlement not in failures:
                settlement.delivery.receipt.done = True
            elif error is None or transient(error):
                passing.append(SettleFailure(settlement, error))
            else:
                hides.append(settlement._replace(outcome=Outcome.NACK, delay=ASIDE))
                what = f"is refused by its dead-letter queue and stays, hidden for {ASIDE:g} s"
                self._log(what, settlement.delivery.message, str(error))
        return passing

    def _log(self, what: str, message: Message, reason: str) -> None:
        queue, id = self._queue.name, message.id
        log(
            logger,
            logging.ERROR,
            "queue %s: message %s %s: %s",
            *(queue, id, what, reason),
            extra={"backend": "sqs", "id": id},
        )

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Delivery]:
        async with self._turn:
            now = self._clock()
            receipts = [d.receipt for d in deliveries if d.receipt.deadline > now]
            ours = [receipt for receipt in receipts if not receipt.done]
            results = await self._queue.hide([(r.handle, seconds) for r in ours])
        _raise_outage(results)
        for receipt, error in zip(ours, results, strict=True):
            if error is None:
                receipt.deadline = now + seconds
            elif isinstance(error, LapsedError):
                receipt.deadline = now
        return [d for d in deliveries if d.receipt.deadline <= now]

    async def aclose(self) -> None:
        self._woken.set()


def _raise_outage(results: Sequence[Exception | None]) -> None:
    """Raise the error of an outage: nothing was accepted."""
    errors = [error for error in results if isinstance(error, ConnectionLostError)]
    if errors and len(errors) == len(results):
        raise errors[0]
