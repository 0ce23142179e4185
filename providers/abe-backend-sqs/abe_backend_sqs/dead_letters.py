"""Dead letters, and whatever else takes messages out of a queue to look at them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence, Set
from email.utils import parsedate_to_datetime
from typing import Any, Self

from abe.backends.message_queue.base import (
    KeyFilter,
    Message,
    Mover,
    Settlement,
    dead_headers,
    log,
    raw_payload,
)
from abe.errors import PayloadError
from abe_backend_sqs.codec import attributes_of, message_of, order_group, size_of
from abe_backend_sqs.failures import LapsedError
from abe_backend_sqs.queue import BATCH, Queue, Raw

__all__ = ["DeadLetterQueue", "purge"]

logger = logging.getLogger(__name__)

DEAD = "abe-dead-"
HOLD = 300
"""Seconds for which what is being looked at is hidden from others, at most."""
BRIEF = 100
"""Characters of a reason that are kept where there is no room for more."""
SECOND = 1000
"""Milliseconds; SQS says what time it is in whole seconds."""


class Snapshot:
    """What was ready when it was taken, page by page; what was not removed goes back at the end.

    SQS cannot look without taking: meanwhile others do not see these messages, and each counts
    one more receipt.
    """

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._held: set[str] = set()
        self._seen: set[str] = set()
        self._began = 0

    async def page(self) -> list[Raw]:
        """Return up to ten messages not seen yet, oldest first; none if there are no more."""
        # A wait asks all servers of the queue, where 0 asks some.
        answer = await self._queue.receive(BATCH, wait=1, hide=HOLD)
        self._began = self._began or _time_of(answer)
        raws = answer.get("Messages", ())
        self._held.update(raw["ReceiptHandle"] for raw in raws)
        fresh = [raw for raw in raws if raw["MessageId"] not in self._seen]
        self._seen.update(raw["MessageId"] for raw in fresh)
        return sorted((raw for raw in fresh if _sent(raw) < self._began + SECOND), key=_sent)

    def is_certain(self, raw: Raw) -> bool:
        """Whether a message was there for certain: the clock shows no more than seconds."""
        return _sent(raw) < self._began

    async def remove(self, raws: Sequence[Raw]) -> int:
        """Delete messages of a page; returns how many that were."""
        handles = [raw["ReceiptHandle"] for raw in raws]
        for handle, error in zip(handles, await self._queue.delete(handles), strict=True):
            if error is not None:
                raise error
            self._held.discard(handle)
        return len(handles)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        errors = [e for e in await self._queue.hide([(h, 0) for h in self._held]) if e]
        if errors:
            log(
                logger,
                logging.WARNING,
                "queue %s: %d messages stay hidden for up to %d s: %s",
                *(self._queue.name, len(errors), HOLD, errors[0]),
                extra={"backend": "sqs"},
            )


def _sent(raw: Raw) -> int:
    return int(raw["Attributes"]["SentTimestamp"])


def _time_of(answer: Raw) -> int:
    """Return the time on SQS's clock, by which messages are stamped, in milliseconds."""
    date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    return int((parsedate_to_datetime(date).timestamp() if date else time.time()) * 1000)


async def purge(queue: Queue, keys: KeyFilter) -> int:
    """Drop what is ready and matches; returns how many messages that were."""
    count = 0
    async with Snapshot(queue) as snapshot:
        while page := await snapshot.page():
            found = [(raw, str(message_of(raw, queue.name, {}).key)) for raw in page]
            count += await snapshot.remove([r for r, key in found if not keys or keys.matches(key)])
    return count


class DeadLetterQueue:
    """The dead letters of one queue, ``source``, to which they go when they are replayed."""

    def __init__(self, source: Queue, queue: Queue) -> None:
        self._source = source
        self._queue = queue
        self.mover = Mover(self._copy, self._delete)
        """Moves rejected messages here."""

    async def _copy(self, settlement: Settlement) -> None:
        receipt = settlement.delivery.receipt
        attributes = self._attributes(settlement.delivery.message, receipt.body, settlement.reason)
        await self._queue.send(receipt.body, attributes, receipt.handle)

    async def _delete(
        self, settlements: Sequence[Settlement]
    ) -> list[tuple[Settlement, Exception | None]]:
        errors = await self._source.delete([s.delivery.receipt.handle for s in settlements])
        return [
            (settlement, None if isinstance(error, LapsedError) else error)
            for settlement, error in zip(settlements, errors, strict=True)
            if error is not None
        ]

    def _attributes(self, message: Message, body: str, reason: str) -> dict[str, Any]:
        """Return a dead letter's attributes, with as much of the reason as there is room for."""
        id, key = str(message.id), str(message.key)
        summary = reason.partition("\n")[0]
        for text in (reason, summary, summary[:BRIEF]):
            headers = dead_headers(
                message.headers, reason=text, attempts=message.attempt, id=id, key=key
            )
            attributes = attributes_of(id, key, headers)
            if size_of(body, attributes) <= self._queue.limit:
                return attributes
        return attributes_of(id, key, message.headers)

    async def list(self, limit: int) -> list[Message]:
        """Return up to ``limit`` dead letters, oldest first of those that SQS hands out."""
        found: list[Raw] = []
        async with Snapshot(self._queue) as snapshot:
            while len(found) < limit and (page := await snapshot.page()):
                found += page
        return [self._read(raw) for raw in sorted(found, key=_sent)[:limit]]

    def _read(self, raw: Raw) -> Message:
        try:
            letter = message_of(raw, self._source.name)
        except PayloadError:
            letter = message_of(raw, self._source.name, raw_payload(raw["Body"].encode()))
        attempts = letter.headers.get(f"{DEAD}attempts", "")
        letter.attempt = int(attempts) if attempts.isdecimal() else letter.attempt
        return letter

    async def replay(self, ids: Set[str] | None, limit: int) -> int:
        """Send the dead letters of this moment to their queue again, as new messages."""
        replayed: set[str | None] = set()
        count = 0
        async with Snapshot(self._queue) as snapshot:
            while count < limit and (page := await snapshot.page()):
                for raw in page:
                    letter = self._read(raw)
                    if count == limit or not (ids is None or letter.id in ids):
                        continue
                    if letter.id in replayed and not snapshot.is_certain(raw):
                        continue  # rejected again since
                    replayed.add(letter.id)
                    await self._revive(raw, letter)
                    count += await snapshot.remove([raw])
        return count

    async def _revive(self, raw: Raw, letter: Message) -> None:
        own = {name: v for name, v in letter.headers.items() if not name.startswith(DEAD)}
        id, key = str(letter.id), str(letter.key)
        await self._source.send(
            raw["Body"], attributes_of(id, key, own), raw["ReceiptHandle"], order_group(key)
        )
