"""Publishing: at once while there is room, otherwise together with whatever else waits."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from abe.errors import AbeError, ConfigurationError, ConnectionLostError, PublishError
from abe_backend_sqs.codec import Prepared
from abe_backend_sqs.failures import Refused, UnreachedError
from abe_backend_sqs.link import Link
from abe_backend_sqs.queue import BATCH, Queue

__all__ = ["Publisher", "QueueTarget", "Target", "TopicTarget"]

BATCH_BYTES = 1 << 18
"""What a batch may weigh everywhere: SNS's limit, and SQS's older one."""
PARALLEL = 8
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0


class Refusal(NamedTuple):
    """An entry of a batch that was not accepted.

    Attributes:
        text: Why.
        final: Whether it would be refused again.
    """

    text: str
    final: bool


class Target(Protocol):
    """Where messages are sent.

    Attributes:
        limit: Largest message, in bytes.
        fifo: Whether it keeps order.
    """

    limit: int
    fifo: bool

    async def send(self, items: Mapping[int, Prepared]) -> dict[int, Refusal]:
        """Send a batch; returns what was not accepted."""
        ...


class QueueTarget(Target):
    """A queue."""

    def __init__(self, link: Link, queue: Queue) -> None:
        self._link = link
        self._url = queue.url
        self.limit = queue.limit
        self.fifo = queue.fifo

    async def send(self, items: Mapping[int, Prepared]) -> dict[int, Refusal]:
        """Send a batch; returns what was not accepted."""
        entries = [
            {
                "Id": str(n),
                "MessageBody": item.body,
                "MessageAttributes": item.attributes,
                **({"DelaySeconds": item.delay} if item.delay else {}),
                **(_order(item) if self.fifo else {}),
            }
            for n, item in items.items()
        ]
        return _refusals(
            await self._link.sqs("send_message_batch", QueueUrl=self._url, Entries=entries)
        )


class TopicTarget(Target):
    """A topic, and whatever queues are subscribed to it."""

    limit = BATCH_BYTES

    def __init__(self, link: Link, topic: str) -> None:
        self._link = link
        self._topic = topic
        self.fifo = topic.endswith(".fifo")

    async def send(self, items: Mapping[int, Prepared]) -> dict[int, Refusal]:
        """Send a batch; returns what was not accepted."""
        entries = [
            {
                "Id": str(n),
                "Message": item.body,
                "MessageAttributes": item.attributes,
                **(_order(item) if self.fifo else {}),
            }
            for n, item in items.items()
        ]
        return _refusals(
            await self._link.call(
                "sns",
                "publish_batch",
                TopicArn=self._topic,
                PublishBatchRequestEntries=entries,
            )
        )


def _order(item: Prepared) -> dict[str, str]:
    return {"MessageGroupId": item.group, "MessageDeduplicationId": item.id}


def _refusals(answer: Mapping[str, list[dict[str, str]]]) -> dict[int, Refusal]:
    return {
        int(row["Id"]): Refusal(
            f"{row.get('Code', '')}: {row.get('Message', '')}", bool(row.get("SenderFault"))
        )
        for row in answer.get("Failed") or ()
    }


class _Failure(NamedTuple):
    """Why an item was not published."""

    text: str
    retryable: bool
    error: AbeError | None = None


class _Call:
    """One ``publish`` or ``publish_many``, and what has become of its items."""

    def __init__(self, items: Sequence[Prepared]) -> None:
        self.items = items
        self.next = 0
        """First item that no batch has taken yet."""
        self.out = 0
        """Items in batches on their way."""
        self.failed: dict[int, _Failure] = {}
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def stopped(self) -> bool:
        """Whether no more of it is sent: something failed, or nobody waits any more."""
        return bool(self.failed) or self.done.cancelled()

    def finish(self) -> None:
        """Tell who waits, once nothing is on its way."""
        if self.out or self.done.done() or not (self.stopped or self.next == len(self.items)):
            return
        if not self.failed:
            self.done.set_result(None)
            return
        retryable = all(failure.retryable for failure in self.failed.values())
        for position in range(self.next, len(self.items)):
            self.failed[position] = _Failure("not sent, because an earlier one failed", True)
        self.done.set_exception(self._error(retryable))

    def _error(self, retryable: bool) -> Exception:
        first = self.failed[min(self.failed)]
        total, count = len(self.items), len(self.failed)
        if count == total and isinstance(first.error, UnreachedError):
            error: AbeError = ConnectionLostError(str(first.error))
        elif count == total and type(first.error) is ConfigurationError:
            error = ConfigurationError(str(first.error))
        else:
            what = f"{count} of {total} messages were not published: " if total > 1 else ""
            error = PublishError(
                f"{what}{first.text}",
                retryable=retryable,
                published=[n for n in range(total) if n not in self.failed],
                failed={n: self.failed[n].text for n in sorted(self.failed)},
            )
        error.__cause__ = first.error
        return error


class Publisher:
    """Sends messages in batches; in order, and one batch at a time, where the target keeps order.

    Args:
        target: Where to.
        timeout: Seconds for which is tried again what failed for the moment.
    """

    def __init__(self, target: Target, timeout: float) -> None:
        self._target = target
        self._timeout = timeout
        self._parallel = 1 if target.fifo else PARALLEL
        self._calls: deque[_Call] = deque()
        self._workers: set[asyncio.Task[None]] = set()
        self._closing = False
        self._active = 0
        """Workers that will look for more; the tasks of others may not have ended yet."""

    async def send(self, items: Sequence[Prepared]) -> None:
        """Return once all of ``items`` are accepted.

        Raises:
            PublishError: If some were not, or may not have been.
            ConnectionLostError: If the target cannot be reached; nothing was sent.
            ConfigurationError: If the credentials are refused; nothing was sent.
        """
        call = _Call(items)
        self._calls.append(call)
        wanted = min(self._parallel, -(-len(items) // BATCH) + self._active)
        while self._active < wanted:
            self._active += 1
            worker = asyncio.create_task(self._work(), name="abe-sqs-publish")
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        await call.done

    async def aclose(self) -> None:
        """Return once everything is sent, or has failed; nothing is tried again any more."""
        self._closing = True
        if self._workers:
            await asyncio.wait(self._workers)

    async def _work(self) -> None:
        try:
            while batch := self._next_batch():
                await self._send_batch(batch)
        finally:
            self._active -= 1

    async def _send_batch(self, batch: Sequence[tuple[_Call, int]]) -> None:
        try:
            items = [call.items[n] for call, n in batch]
            deadline = asyncio.get_running_loop().time() + self._timeout
            failures = await self._deliver(dict(enumerate(items)), deadline)
        except BaseException:
            for call, _ in batch:
                call.done.cancel()
            raise
        for position, (call, n) in enumerate(batch):
            call.out -= 1
            if position in failures:
                call.failed[n] = failures[position]
        for call, _ in batch:
            call.finish()

    def _next_batch(self) -> list[tuple[_Call, int]]:
        batch: list[tuple[_Call, int]] = []
        size = 0
        while self._calls and len(batch) < BATCH:
            call = self._calls[0]
            if call.stopped or call.next == len(call.items):
                self._calls.popleft()
                call.finish()
                continue
            size += call.items[call.next].size
            if batch and size > BATCH_BYTES:
                break
            batch.append((call, call.next))
            call.next += 1
            call.out += 1
        return batch

    async def _deliver(self, left: Mapping[int, Prepared], deadline: float) -> dict[int, _Failure]:
        """Send a batch, again and again while that may help; returns what failed in the end.

        What is sent again has the id it had: a FIFO queue knows it, and so may a consumer.
        """
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE
        failures: dict[int, _Failure] = {}
        doubt: AbeError | None = None
        while True:
            try:
                refusals = await self._target.send(left)
            except ConnectionLostError as error:
                if not isinstance(error, UnreachedError):
                    doubt = error
                passing = dict.fromkeys(left, _of_silence(doubt or error))
            except AbeError as error:
                if len(left) > 1 and isinstance(error, Refused):
                    return failures | await self._deliver_singly(left, deadline)
                final = _Failure(str(error), retryable=False, error=error)
                return failures | dict.fromkeys(left, final)
            else:
                passing = self._sort(left, refusals, failures)
            left = {n: left[n] for n in passing}
            if not left or self._closing or loop.time() + pause > deadline:
                return failures | passing
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _deliver_singly(
        self, left: Mapping[int, Prepared], deadline: float
    ) -> dict[int, _Failure]:
        """Find out which item of a batch was refused: the others may be somebody else's."""
        failures: dict[int, _Failure] = {}
        for n, item in left.items():
            failures |= await self._deliver({n: item}, deadline)
        return failures

    def _sort(
        self,
        sent: Mapping[int, Prepared],
        refusals: Mapping[int, Refusal],
        failures: dict[int, _Failure],
    ) -> dict[int, _Failure]:
        """Add to ``failures`` what was refused for good; return what may be sent again."""
        passing = {}
        overtaken = {item.group: n for n, item in sent.items() if n not in refusals}
        for n, refusal in refusals.items():
            text = refusal.text
            if refusal.final:
                failures[n] = _Failure(text, retryable=False)
            elif self._target.fifo and overtaken.get(sent[n].group, -1) > n:
                text += "; not sent again, because a later message of its key was accepted"
                failures[n] = _Failure(text, retryable=True)
            else:
                passing[n] = _Failure(text, retryable=True)
        return passing


def _of_silence(error: AbeError) -> _Failure:
    if isinstance(error, UnreachedError):
        return _Failure(str(error), retryable=True, error=error)
    text = f"no answer, so it may or may not have been stored: {error}"
    return _Failure(text, retryable=True, error=error)
