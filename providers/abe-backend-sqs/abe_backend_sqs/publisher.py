"""Publishing a batch, and the outcome of each of its messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from abe.backends.message_queue.base import transient
from abe.errors import ConnectionLostError, PublishError
from abe_backend_sqs.codec import Prepared
from abe_backend_sqs.failures import Refused, UnreachedError
from abe_backend_sqs.link import Link
from abe_backend_sqs.resolver import QueueResolver

__all__ = ["BATCH_BYTES", "OvertakenError", "Target", "may_retry"]

BATCH_BYTES = 1 << 18
"""What a batch may weigh everywhere: SNS's limit, and SQS's older one."""


class OvertakenError(PublishError):
    """Not accepted, and a later message of its key was: sending it again would break the order."""


def may_retry(error: Exception) -> bool:
    """Return whether to send a message again: with its id, by which FIFO queues drop a copy."""
    return transient(error) and not isinstance(error, OvertakenError)


@dataclass(frozen=True, slots=True)
class Target:
    """Where messages are published: a queue, or a topic and the queues subscribed to it."""

    link: Link
    address: str
    """URL of the queue, or ARN of the topic."""
    resolver: QueueResolver

    @property
    def fifo(self) -> bool:
        return self.address.endswith(".fifo")

    async def send(self, items: Sequence[Prepared]) -> Mapping[int, Exception]:
        """Send a batch; returns why messages, by position, were not accepted.

        Raises:
            PublishError: If all were refused, or may have been stored.
            AbeError: If nothing was sent.
        """
        if not await self.resolver.has_audience():
            text = f"no queue is subscribed to {self.address}, so nobody would receive this"
            raise PublishError(text)
        problems = await self._send(items)
        if not (self.fifo and problems):
            return problems
        accepted = {item.group: n for n, item in enumerate(items) if n not in problems}
        return {
            n: OvertakenError(
                f"{error}; not sent again, because a later message of its key was accepted",
                retryable=True,
            )
            if transient(error) and accepted.get(items[n].group, -1) > n
            else error
            for n, error in problems.items()
        }

    async def _send(self, items: Sequence[Prepared]) -> dict[int, Exception]:
        try:
            answer = await self._call(items)
        except UnreachedError:
            raise
        except ConnectionLostError as error:
            text = f"no answer, so it may or may not have been stored: {error}"
            raise PublishError(text, retryable=True) from error
        except Refused as error:
            if len(items) == 1:
                raise PublishError(str(error)) from error
            return await self._send_singly(items)
        return {
            int(row["Id"]): PublishError(
                f"{row.get('Code', '')}: {row.get('Message', '')}",
                retryable=not row.get("SenderFault"),
            )
            for row in answer.get("Failed") or ()
        }

    async def _send_singly(self, items: Sequence[Prepared]) -> dict[int, Exception]:
        """Find out which message of a batch was refused: the others may be of other callers."""
        problems: dict[int, Exception] = {}
        for n, item in enumerate(items):
            try:
                refused = await self._send([item])
                problems |= {n + position: error for position, error in refused.items()}
            except Exception as error:  # it concerns this message
                problems[n] = error
        return problems

    async def _call(self, items: Sequence[Prepared]) -> dict[str, Any]:
        topic = self.address.startswith("arn:")
        body = "Message" if topic else "MessageBody"
        entries: list[dict[str, Any]] = []
        for n, item in enumerate(items):
            entry: dict[str, Any] = {"Id": str(n), body: item.body}
            entry["MessageAttributes"] = item.attributes
            if item.delay:
                entry["DelaySeconds"] = item.delay
            if self.fifo:
                entry |= {"MessageGroupId": item.group, "MessageDeduplicationId": item.id}
            entries.append(entry)
        if topic:
            call = partial(self.link.call, "sns", "publish_batch", TopicArn=self.address)
            return await call(PublishBatchRequestEntries=entries)
        call = partial(self.link.call, "sqs", "send_message_batch", QueueUrl=self.address)
        return await call(Entries=entries)
