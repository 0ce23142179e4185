"""Long polls: never cancelled, because SQS may be handing out a message at that moment."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from abe.errors import AbeError
from abe_backend_sqs.link import Link

__all__ = ["Poll", "Polls"]

logger = logging.getLogger(__name__)

BATCH = 10
FIRST_WAIT = 1

Raw = dict[str, Any]


class Poll:
    """One call for messages, on its way.

    Attributes:
        owned: Whether a receiver waits for it; otherwise what it brings is given back.
        count: Most messages it may bring.
        task: Ends with the messages.
    """

    def __init__(self, count: int) -> None:
        self.owned = True
        self.count = count
        self.task: asyncio.Task[Sequence[Raw]] | None = None


class Polls:
    """The polls of one queue.

    A receiver that is told to stop waiting leaves its poll here, where the next one finds it.
    What a poll brings that nobody waits for goes back to the queue at once.

    Args:
        link: Calls SQS.
        url: The queue.
        lease: Seconds for which SQS hides what it hands out.
        longest: Seconds for which SQS may hold back an answer.
    """

    def __init__(self, link: Link, url: str, lease: int, longest: int) -> None:
        self._link = link
        self._url = url
        self._lease = lease
        self._longest = longest
        self._wait = FIRST_WAIT
        self._left: set[Poll] = set()
        self._running: set[asyncio.Task[Sequence[Raw]]] = set()

    def take(self, count: int) -> Poll:
        """Return a poll for up to ``count`` messages: one that was left, or a new one."""
        count = min(count, BATCH)
        for poll in self._left:
            if poll.count <= count:
                self._left.discard(poll)
                poll.owned = True
                return poll
        poll = Poll(count)
        poll.task = asyncio.create_task(self._run(poll), name="abe-sqs-poll")
        self._running.add(poll.task)
        poll.task.add_done_callback(self._running.discard)
        return poll

    def leave(self, poll: Poll) -> None:
        """Wait for ``poll`` no longer; it must not have ended yet."""
        poll.owned = False
        self._left.add(poll)

    async def aclose(self) -> None:
        """Return once every poll has ended and what nobody waited for is given back."""
        if self._running:
            await asyncio.wait(self._running)

    async def _run(self, poll: Poll) -> Sequence[Raw]:
        try:
            messages = await self._receive(poll.count)
        except AbeError as error:
            if poll.owned:
                raise
            self._left.discard(poll)
            logger.debug("a poll that nobody waits for failed: %s", error)
            return ()
        if poll.owned:
            return messages
        self._left.discard(poll)  # first: from here on no receiver may take it over
        try:
            await self._give_back(messages)
        except AbeError as error:
            logger.debug("messages stay hidden until their lease lapses: %s", error)
        return ()

    async def _receive(self, count: int) -> Sequence[Raw]:
        wait = self._wait
        answer = await self._link.sqs(
            "receive_message",
            wait=wait,
            QueueUrl=self._url,
            MaxNumberOfMessages=count,
            WaitTimeSeconds=wait,
            VisibilityTimeout=self._lease,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["ApproximateReceiveCount", "SentTimestamp"],
        )
        messages: Sequence[Raw] = answer.get("Messages", ())
        # Short at first: what is closed soon after need not wait long for its poll.
        self._wait = FIRST_WAIT if messages else min(2 * wait, self._longest)
        return messages

    async def _give_back(self, messages: Sequence[Raw]) -> None:
        if messages:
            entries = [
                {"Id": str(n), "ReceiptHandle": raw["ReceiptHandle"], "VisibilityTimeout": 0}
                for n, raw in enumerate(messages)
            ]
            await self._link.sqs(
                "change_message_visibility_batch", QueueUrl=self._url, Entries=entries
            )
