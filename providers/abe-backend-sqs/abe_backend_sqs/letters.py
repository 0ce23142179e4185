"""Dead letters, and whatever else takes messages out of a queue to look at them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256
from types import TracebackType
from typing import Any, Self

from abe.backends.message_queue.base import KeyFilter, Message, dead_headers
from abe.errors import AbeError, PayloadError
from abe_backend_sqs.codec import attributes_of, message_of, order_group, size_of
from abe_backend_sqs.link import Link
from abe_backend_sqs.places import Queue
from abe_backend_sqs.polls import BATCH

__all__ = ["Letters", "purge"]

logger = logging.getLogger(__name__)

DEAD = "abe-dead-"
HOLD = 300
"""Seconds for which what is being looked at is hidden from others, at most."""
BRIEF = 100
"""Characters of a reason that are kept where there is no room for more."""

Raw = Mapping[str, Any]


class Sweep:
    """Takes what is ready, page by page; what was not removed goes back at the end.

    SQS cannot look without taking: meanwhile others do not see these messages, and each counts
    one more receipt.

    Args:
        link: Calls SQS.
        queue: Where to take from.
    """

    def __init__(self, link: Link, queue: Queue) -> None:
        self._link = link
        self._queue = queue
        self._held: dict[str, Raw] = {}
        self._seen: set[str] = set()

    async def page(self) -> list[Raw]:
        """Return up to ten messages not seen yet; none if there are no more."""
        answer = await self._link.sqs(
            "receive_message",
            wait=1,
            QueueUrl=self._queue.url,
            MaxNumberOfMessages=BATCH,
            WaitTimeSeconds=1,  # asks all servers of the queue, where 0 asks some
            VisibilityTimeout=HOLD,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["ApproximateReceiveCount", "SentTimestamp"],
        )
        page = answer.get("Messages", ())
        self._held.update((raw["ReceiptHandle"], raw) for raw in page)
        fresh = [raw for raw in page if raw["MessageId"] not in self._seen]
        self._seen.update(raw["MessageId"] for raw in fresh)
        return fresh

    async def remove(self, raws: Sequence[Raw]) -> int:
        """Delete messages of a page; returns how many were."""
        if not raws:
            return 0
        entries = [
            {"Id": str(n), "ReceiptHandle": raw["ReceiptHandle"]} for n, raw in enumerate(raws)
        ]
        answer = await self._link.sqs(
            "delete_message_batch", QueueUrl=self._queue.url, Entries=entries
        )
        gone = [raws[int(row["Id"])] for row in answer.get("Successful", ())]
        for raw in gone:
            del self._held[raw["ReceiptHandle"]]
        return len(gone)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        entries = [
            {"Id": str(n), "ReceiptHandle": handle, "VisibilityTimeout": 0}
            for n, handle in enumerate(self._held)
        ]
        calls = [
            self._link.sqs(
                "change_message_visibility_batch",
                QueueUrl=self._queue.url,
                Entries=entries[n : n + BATCH],
            )
            for n in range(0, len(entries), BATCH)
        ]
        for result in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(result, BaseException):
                logger.warning(
                    "queue %s: up to 10 messages stay hidden for up to %d s: %s",
                    self._queue.name,
                    HOLD,
                    result,
                    extra={"backend": "sqs"},
                )


async def purge(link: Link, queue: Queue, keys: KeyFilter) -> int:
    """Drop what is ready and matches; returns how many messages that were."""
    count = 0
    async with Sweep(link, queue) as sweep:
        while page := await sweep.page():
            count += await sweep.remove([raw for raw in page if _matches(raw, queue, keys)])
    return count


def _matches(raw: Raw, queue: Queue, keys: KeyFilter) -> bool:
    if not keys:
        return True
    return keys.matches(str(message_of({**raw, "Body": "{}"}, queue.name).key))


class Letters:
    """The dead letters of one queue.

    Args:
        link: Calls SQS.
        queue: Where they come from, and go when they are replayed.
        dead: Where they are.
    """

    def __init__(self, link: Link, queue: Queue, dead: Queue) -> None:
        self._link = link
        self._queue = queue
        self._dead = dead

    async def bury(self, message: Message, body: str, handle: str, reason: str) -> Exception | None:
        """Copy a message to the dead letters; the original is not deleted yet.

        Args:
            message: What it was delivered as.
            body: Its body, as it was sent.
            handle: Of its delivery: a repeated call leaves one copy, where the queue is FIFO.
            reason: Why.

        Returns:
            Why that failed, ``None`` if it did not.
        """
        unique = sha256(handle.encode()).hexdigest()
        try:
            await self._send(
                self._dead, body, self._attributes(message, body, reason), unique, unique
            )
        except AbeError as error:
            return error
        return None

    def _attributes(self, message: Message, body: str, reason: str) -> dict[str, Any]:
        id, key = str(message.id), str(message.key)
        summary = reason.partition("\n")[0]
        for text in (reason, summary, summary[:BRIEF]):
            headers = dead_headers(
                message.headers, reason=text, attempts=message.attempt, id=id, key=key
            )
            attributes = attributes_of(id, key, headers)
            if size_of(body, attributes) <= self._dead.limit:
                return attributes
        return attributes_of(id, key, message.headers)

    async def _send(
        self, queue: Queue, body: str, attributes: Mapping[str, Any], group: str, unique: str
    ) -> None:
        order: dict[str, Any] = {}
        if queue.fifo:
            order = {"MessageGroupId": group, "MessageDeduplicationId": unique}
        await self._link.sqs(
            "send_message",
            QueueUrl=queue.url,
            MessageBody=body,
            MessageAttributes=attributes,
            **order,
        )

    async def list(self, limit: int) -> list[Message]:
        """Return up to ``limit`` dead letters, oldest first of those that SQS hands out."""
        found: list[Message] = []
        async with Sweep(self._link, self._dead) as sweep:
            while len(found) < limit and (page := await sweep.page()):
                found += [letter for raw in page if (letter := self._read(raw)) is not None]
        return sorted(found, key=_died)[:limit]

    def _read(self, raw: Raw) -> Message | None:
        try:
            letter = message_of(raw, self._queue.name)
        except PayloadError as error:
            logger.warning(
                "dead letter %s of queue %s is not shown: %s",
                raw["MessageId"],
                self._dead.name,
                error,
                extra={"backend": "sqs", "id": raw["MessageId"]},
            )
            return None
        attempts = letter.headers.get(f"{DEAD}attempts", "")
        letter.attempt = int(attempts) if attempts.isdecimal() else letter.attempt
        return letter

    async def replay(self, ids: Collection[str] | None, limit: int | None) -> int:
        """Send dead letters to their queue again, as new messages."""
        count = 0
        async with Sweep(self._link, self._dead) as sweep:
            while (limit is None or count < limit) and (page := await sweep.page()):
                chosen = [
                    (raw, letter)
                    for raw in page
                    if (letter := self._read(raw)) is not None and (ids is None or letter.id in ids)
                ]
                for raw, letter in chosen[: None if limit is None else limit - count]:
                    await self._revive(raw, letter)
                    count += await sweep.remove([raw])
        return count

    async def _revive(self, raw: Raw, letter: Message) -> None:
        own = {name: v for name, v in letter.headers.items() if not name.startswith(DEAD)}
        id, key = str(letter.id), str(letter.key)
        unique = sha256(raw["ReceiptHandle"].encode()).hexdigest()
        await self._send(
            self._queue, raw["Body"], attributes_of(id, key, own), order_group(key), unique
        )


def _died(letter: Message) -> float:
    text = letter.headers.get(f"{DEAD}time", "")
    try:
        return float(text)
    except ValueError:
        return letter.timestamp.timestamp() if letter.timestamp is not None else 0.0
