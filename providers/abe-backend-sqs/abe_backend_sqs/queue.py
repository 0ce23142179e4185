"""One SQS queue, and the calls that concern it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from abe.errors import ConnectionLostError
from abe_backend_sqs.failures import LapsedError, Refused
from abe_backend_sqs.link import Link

__all__ = ["BATCH", "Queue", "Raw", "name_of"]

BATCH = 10
"""Entries of a call, at most."""
LAPSED = ("ReceiptHandleIsInvalid", "MessageNotInflight")
"""Ends of codes of deliveries that are over; FIFO queues say it in the message."""

Raw = Mapping[str, Any]
"""A message as SQS hands it out."""


def name_of(address: str) -> str:
    return re.split("[/:]", address)[-1]


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue as SQS describes it."""

    link: Link = field(repr=False)
    url: str
    arn: str
    limit: int
    """Largest message, in bytes."""
    dead_arn: str
    """The queue that its redrive policy names; ``""`` if there is none."""

    @property
    def name(self) -> str:
        """Its name, without account and region."""
        return name_of(self.url)

    async def call(self, operation: str, *, wait: float = 0.0, **parameters: Any) -> dict[str, Any]:
        return await self.link.call("sqs", operation, wait=wait, QueueUrl=self.url, **parameters)

    async def count(self, *kinds: str) -> list[int]:
        """Return the numbers of messages: ``""`` is ready, ``"NotVisible"``, ``"Delayed"``."""
        names = [f"ApproximateNumberOfMessages{kind}" for kind in kinds]
        answer = await self.call("get_queue_attributes", AttributeNames=names)
        return [int(answer["Attributes"][name]) for name in names]

    async def receive(self, count: int, *, wait: int, hide: int) -> dict[str, Any]:
        """Return SQS's answer to a call for up to ``count`` messages, at most ten.

        SQS may hold it back for ``wait`` seconds, and hides the messages from others for ``hide``.
        """
        return await self.call(
            "receive_message",
            wait=wait,
            MaxNumberOfMessages=count,
            WaitTimeSeconds=wait,
            VisibilityTimeout=hide,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["ApproximateReceiveCount", "SentTimestamp"],
        )

    async def send(
        self, body: str, attributes: Mapping[str, Any], origin: str, group: str = ""
    ) -> None:
        """Send one message: where the queue is FIFO once for each ``origin``, a receipt handle."""
        order: dict[str, Any] = {}
        if self.url.endswith(".fifo"):
            unique = sha256(origin.encode()).hexdigest()
            order = {"MessageGroupId": group or unique, "MessageDeduplicationId": unique}
        await self.call("send_message", MessageBody=body, MessageAttributes=attributes, **order)

    async def delete(self, handles: Sequence[str]) -> list[Exception | None]:
        """Delete deliveries; see `hide`."""
        entries = [{"ReceiptHandle": handle} for handle in handles]
        return await self._in_batches("delete_message_batch", entries)

    async def hide(self, times: Sequence[tuple[str, float]]) -> list[Exception | None]:
        """Let deliveries be hidden for so many seconds from now, rounded up; 0 gives them back.

        Returns:
            For each the error, or ``None`` once it is done.
        """
        entries = [
            {"ReceiptHandle": handle, "VisibilityTimeout": int(seconds + 0.999)}
            for handle, seconds in times
        ]
        return await self._in_batches("change_message_visibility_batch", entries)

    async def _in_batches(
        self, operation: str, entries: Sequence[Mapping[str, Any]]
    ) -> list[Exception | None]:
        batches = [entries[n : n + BATCH] for n in range(0, len(entries), BATCH)]
        numbered = [[{"Id": str(n), **e} for n, e in enumerate(batch)] for batch in batches]
        calls = (self.call(operation, Entries=batch) for batch in numbered)
        answers = await asyncio.gather(*calls, return_exceptions=True)
        results: list[Exception | None] = []
        for batch, answer in zip(batches, answers, strict=True):
            if isinstance(answer, Exception):
                results += [answer] * len(batch)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                failed = {int(row["Id"]): row for row in answer.get("Failed", ())}
                results += [
                    _failure(operation, failed[n]) if n in failed else None
                    for n in range(len(batch))
                ]
        return results


def _failure(operation: str, row: Mapping[str, Any]) -> Exception:
    code = str(row.get("Code", ""))
    text = f"{operation}: {code}: {row.get('Message', '')}"
    if not row.get("SenderFault"):
        return ConnectionLostError(text)
    lapsed = code.rpartition(".")[2] in LAPSED or "receipt handle" in text.lower()
    return LapsedError(text) if lapsed else Refused(text)
