"""Long polls: never cancelled, because SQS may be handing out a message at that moment."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from abe.backends.message_queue.base import log
from abe.errors import AbeError
from abe_backend_sqs.queue import BATCH, Queue, Raw

__all__ = ["LongPoller"]

logger = logging.getLogger(__name__)

FIRST_WAIT = 1


class LongPoller:
    """The polls of one queue: tasks that end with messages.

    A receiver that is told to stop waiting leaves its poll here, where the next one finds it.
    The messages of a poll without a receiver are released at once.
    """

    def __init__(self, queue: Queue, lease: int, longest: int) -> None:
        self.queue = queue
        self._lease = lease
        self._longest = longest
        self._wait = FIRST_WAIT
        self._running: dict[asyncio.Task[Sequence[Raw]], int] = {}
        """Polls on their way, and how many messages each may bring."""
        self._left: set[asyncio.Task[Sequence[Raw]]] = set()

    def take(self, count: int) -> asyncio.Task[Sequence[Raw]]:
        """Return a poll for up to ``count`` messages: one that was left, or a new one."""
        count = min(count, BATCH)
        for poll in self._left:
            if self._running[poll] <= count:
                self._left.discard(poll)
                return poll
        poll = asyncio.create_task(self._run(count), name="abe-sqs-poll")
        self._running[poll] = count
        poll.add_done_callback(self._running.pop)
        return poll

    def leave(self, poll: asyncio.Task[Sequence[Raw]]) -> None:
        """Wait for ``poll`` no longer; it must not have ended yet."""
        self._left.add(poll)

    async def aclose(self) -> None:
        """Return once every poll has ended and its messages are released."""
        if self._running:
            await asyncio.wait(self._running)

    async def _run(self, count: int) -> Sequence[Raw]:
        poll = asyncio.current_task()
        assert poll is not None
        try:
            wait = self._wait
            answer = await self.queue.receive(count, wait=wait, hide=self._lease)
            raws: Sequence[Raw] = answer.get("Messages", ())
            # Short at first: what is closed soon after need not wait long for its poll.
            self._wait = FIRST_WAIT if raws else min(2 * wait, self._longest)
            if poll not in self._left:
                return raws
            self._left.remove(poll)  # first: from here on no receiver may take it over
            await self.queue.hide([(raw["ReceiptHandle"], 0) for raw in raws])
        except AbeError as error:
            if poll not in self._left:
                raise
            self._left.remove(poll)
            log(logger, logging.DEBUG, "an abandoned poll failed: %s", error)
        return ()
