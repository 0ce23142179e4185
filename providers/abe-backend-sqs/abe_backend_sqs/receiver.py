"""One consumer of a queue."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from abe.backends.message_queue.base import (
    Delivery,
    Outcome,
    Receiver,
    SettleFailure,
    Settlement,
)
from abe.errors import AbeError, ConnectionLostError, PayloadError
from abe_backend_sqs.codec import message_of
from abe_backend_sqs.failures import Refused
from abe_backend_sqs.letters import Letters
from abe_backend_sqs.link import Link
from abe_backend_sqs.places import Queue
from abe_backend_sqs.polls import BATCH, Poll, Polls

__all__ = ["Receipt", "SqsReceiver"]

logger = logging.getLogger(__name__)

DELETE, CHANGE = "delete_message_batch", "change_message_visibility_batch"
LOST = ("ReceiptHandleIsInvalid", "MessageNotInflight")
"""Ends of codes that say: this delivery is over. FIFO queues say it in the message."""


@dataclass(slots=True, eq=False)
class Receipt:
    """What is needed to settle a delivery.

    Attributes:
        handle: SQS's name for it.
        body: As it was sent.
        deadline: When the lease lapses. SQS would still accept a settlement after that, although
            the message may be somebody else's by then.
        buried: Whether it has been copied to the dead letters.
        done: Whether SQS has accepted the settlement.
    """

    handle: str
    body: str
    deadline: float
    buried: bool = False
    done: bool = False


class SqsReceiver(Receiver):
    """Takes messages from a queue.

    Args:
        link: Calls SQS.
        find: Returns the queue, the polls on it and its dead letters, if abe is to use them.
        lease: Seconds, whole ones.
        clock: Tells the time that leases are measured by.
    """

    def __init__(
        self,
        link: Link,
        find: Callable[[], Awaitable[tuple[Queue, Polls, Letters | None]]],
        *,
        lease: int,
        clock: Callable[[], float],
    ) -> None:
        self.lease: float | None = lease
        self._link = link
        self._find = find
        self._clock = clock
        self._woken = asyncio.Event()
        self._queue: Queue
        self._polls: Polls
        self._letters: Letters | None = None
        # An extension that overtakes a release would hide the message again.
        self._turn = asyncio.Lock()

    async def open(self) -> None:
        """Make sure that the queue is there."""
        self._queue, self._polls, self._letters = await self._find()

    async def receive(self, max_messages: int, timeout: float) -> Sequence[Delivery]:
        """Return messages as soon as there are any; nothing after ``timeout`` or `wake`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while not self._woken.is_set() and loop.time() < deadline:
            poll = self._polls.take(max_messages)
            raws = await self._wait_for(poll, deadline - loop.time())
            found = await self._accept(raws)
            if found:
                return found
        self._woken.clear()
        return ()

    async def _wait_for(self, poll: Poll, timeout: float) -> Sequence[Mapping[str, Any]]:
        """Return what ``poll`` brings; leave it behind once woken, and at the time-out."""
        assert poll.task is not None
        woken = asyncio.create_task(self._woken.wait(), name="abe-sqs-wake")
        try:
            await asyncio.wait(
                {poll.task, woken}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            woken.cancel()
            if not poll.task.done():
                self._polls.leave(poll)
        return await poll.task if poll.task.done() else ()

    async def _accept(self, raws: Sequence[Mapping[str, Any]]) -> list[Delivery]:
        deadline = self._clock() + (self.lease or 0.0)
        found = []
        for raw in raws:
            try:
                message = message_of(raw, self._queue.name)
            except PayloadError as error:
                await self._set_aside(raw, error)
                continue
            found.append(Delivery(message, Receipt(raw["ReceiptHandle"], raw["Body"], deadline)))
        return found

    async def _set_aside(self, raw: Mapping[str, Any], error: PayloadError) -> None:
        """Keep out of the way what others have sent and no handler could be given."""
        logger.error(
            "queue %s: message %s cannot be delivered and %s: %s",
            self._queue.name,
            raw["MessageId"],
            "goes to the dead letters" if self._letters else "stays until its lease lapses",
            error,
            extra={"backend": "sqs", "id": raw["MessageId"]},
        )
        if self._letters is None:
            return
        empty = message_of({**raw, "Body": "{}"}, self._queue.name)
        failure = await self._letters.bury(empty, raw["Body"], raw["ReceiptHandle"], str(error))
        if failure is None:
            with suppress(AbeError):  # else it comes again, and the others must not wait for that
                await self._link.sqs(
                    "delete_message", QueueUrl=self._queue.url, ReceiptHandle=raw["ReceiptHandle"]
                )

    def wake(self) -> None:
        """End a waiting `receive`, and the next one if none waits."""
        self._woken.set()

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleFailure]:
        """Tell SQS; deliveries whose lease has lapsed are reported lost."""
        async with self._turn:
            return await self._settle(settlements)

    async def _settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleFailure]:
        now = self._clock()
        failures: list[SettleFailure] = []
        deletes: list[Settlement] = []
        changes: list[Settlement] = []
        rejects: list[Settlement] = []
        for settlement in settlements:
            receipt: Receipt = settlement.delivery.receipt
            if receipt.done:
                continue  # accepted by a call of which another part had to be repeated
            if receipt.deadline <= now:
                failures.append(SettleFailure(settlement))
            elif settlement.outcome is Outcome.ACK:
                deletes.append(settlement)
            elif settlement.outcome is Outcome.REJECT:
                rejects.append(settlement)
            else:
                changes.append(settlement)
        for settlement in rejects:
            failure = await self._bury(settlement)
            if failure is None:
                deletes.append(settlement)
            else:
                failures.append(SettleFailure(settlement, failure))
        failures += await self._in_batches(DELETE, deletes, _handle)
        failures += await self._in_batches(CHANGE, changes, _visibility)
        return failures

    async def _bury(self, settlement: Settlement) -> Exception | None:
        assert self._letters is not None  # else rejecting is not offered
        message, receipt = settlement.delivery.message, settlement.delivery.receipt
        if receipt.buried:
            return None
        failure = await self._letters.bury(message, receipt.body, receipt.handle, settlement.reason)
        receipt.buried = failure is None
        return failure

    async def _in_batches(
        self,
        operation: str,
        settlements: Sequence[Settlement],
        entry: Callable[[Settlement], dict[str, Any]],
        *,
        final: bool = True,
    ) -> list[SettleFailure]:
        batches = [settlements[n : n + BATCH] for n in range(0, len(settlements), BATCH)]
        calls = (self._call(operation, batch, entry, final) for batch in batches)
        results = await asyncio.gather(*calls, return_exceptions=True)
        failures = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            failures += result
        return failures

    async def _call(
        self,
        operation: str,
        batch: Sequence[Settlement],
        entry: Callable[[Settlement], dict[str, Any]],
        final: bool,
    ) -> list[SettleFailure]:
        entries = [{"Id": str(n), **entry(settlement)} for n, settlement in enumerate(batch)]
        answer = await self._link.sqs(operation, QueueUrl=self._queue.url, Entries=entries)
        failed = {int(row["Id"]): row for row in answer.get("Failed", ())}
        failures = []
        for n, settlement in enumerate(batch):
            if n in failed:
                failures.append(SettleFailure(settlement, _error(operation, failed[n])))
            elif final:
                settlement.delivery.receipt.done = True
        return failures

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Delivery]:
        """Let the leases of ``deliveries`` end ``seconds`` from now; return those already lost."""
        async with self._turn:
            now = self._clock()
            ours = [
                Settlement(delivery, Outcome.NACK, seconds)
                for delivery in deliveries
                if _lasts(delivery, now) and not delivery.receipt.done
            ]
            failures = await self._in_batches(CHANGE, ours, _visibility, final=False)
        lost = {failure.settlement.delivery for failure in failures if failure.error is None}
        for delivery, *_ in ours:
            if delivery not in lost:
                delivery.receipt.deadline = now + seconds
        return [d for d in deliveries if d in lost or not _lasts(d, now)]

    async def aclose(self) -> None:
        """Stop waiting; a poll on its way ends by itself and gives back what it brings."""
        self._woken.set()


def _lasts(delivery: Delivery, now: float) -> bool:
    return bool(delivery.receipt.deadline > now)


def _handle(settlement: Settlement) -> dict[str, Any]:
    return {"ReceiptHandle": settlement.delivery.receipt.handle}


def _visibility(settlement: Settlement) -> dict[str, Any]:
    seconds = int(settlement.delay + 0.999)  # a delay is a lower bound
    return {**_handle(settlement), "VisibilityTimeout": seconds}


def _error(operation: str, row: Mapping[str, Any]) -> Exception | None:
    """Return why an entry failed, ``None`` if its delivery is over."""
    code = str(row.get("Code", ""))
    text = f"{operation}: {code}: {row.get('Message', '')}"
    if not row.get("SenderFault"):
        return ConnectionLostError(text)
    over = code.rpartition(".")[2] in LOST or "receipt handle" in text.lower()
    return None if over else Refused(text)
