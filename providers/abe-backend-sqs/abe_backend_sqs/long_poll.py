"""Long polls: never cancelled, because SQS may be handing out a message at that moment."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from abe.errors import AbeError
from abe_backend_sqs.queue import BATCH, Queue, Raw

__all__ = ["LongPoller", "Poll"]

logger = logging.getLogger(__name__)

FIRST_WAIT = 1


class Poll:
    """One call for messages, on its way.

    Attributes:
        owned: Whether a receiver waits for it; otherwise its messages are released.
        count: Maximum number of messages it may bring.
        task: Ends with the messages.
    """

    def __init__(self, count: int) -> None:
        self.owned = True
        self.count = count
        self.task: asyncio.Task[Sequence[Raw]] | None = None


class LongPoller:
    """The polls of one queue.

    A receiver that is told to stop waiting leaves its poll here, where the next one finds it.
    The messages of a poll without a receiver are released at once.

    Args:
        queue: Where to receive.
        lease: Seconds for which SQS hides what it hands out.
        longest: Seconds for which SQS may hold back an answer.
    """

    def __init__(self, queue: Queue, lease: int, longest: int) -> None:
        self._queue = queue
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
        """Return once every poll has ended and its messages are released."""
        if self._running:
            await asyncio.wait(self._running)

    async def _run(self, poll: Poll) -> Sequence[Raw]:
        try:
            wait = self._wait
            answer = await self._queue.receive(poll.count, wait=wait, hide=self._lease)
            raws: Sequence[Raw] = answer.get("Messages", ())
            # Short at first: what is closed soon after need not wait long for its poll.
            self._wait = FIRST_WAIT if raws else min(2 * wait, self._longest)
            if poll.owned:
                return raws
            self._left.discard(poll)  # first: from here on no receiver may take it over
            await self._queue.hide([(raw["ReceiptHandle"], 0) for raw in raws])
        except AbeError as error:
            if poll.owned:
                raise
            self._left.discard(poll)
            logger.debug("an abandoned poll failed: %s", error)
        return ()
