"""A stream on the portal, read from another thread or event loop, many messages a hop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from abe.backends.message_queue.base import Message, MessageStream
from abe.sync.home import KEEP_OPEN, SHORTEST_WAIT

if TYPE_CHECKING:
    from abe.sync.home import Home, Place

__all__ = ["BATCH", "Feed"]

BATCH = 128
"""Most messages that cross to the reader in one hop."""
ACK_INTERVAL = 0.01
"""Seconds between two wake-ups of the portal for acks; the first of a burst goes at once."""
DEFAULT_LEASE = 30.0


class Feed:
    """What one reader shares with the portal.

    The portal fills `buffer`; the reader moves messages from there to `hand`, and from `hand` to
    the finished ones when it asks for more. Nothing is acked that did not go this way, whatever
    instruction an interrupt falls on: the buffer is filled on the portal, so no result has to
    survive the way back, and what is in nobody's hands is still unsettled with the stream.

    The first methods belong to the reader, the rest run on the portal.

    Args:
        home: Whose backend is read.
        place: Which group and keys.
        prefetch: Most messages to receive ahead; ``None`` adapts.

    Attributes:
        buffer: Received, not handed over.
        hand: Handed over last.
        detached: The `id` of messages whose new owner settles them.
        handed: How many were handed over one by one.
    """

    def __init__(self, home: Home, place: Place, prefetch: int | None = None) -> None:
        self.home = home
        self.place = place
        self.buffer: deque[Message] = deque()
        self.hand: list[Message] = []
        self.detached: set[int] = set()
        self.handed = 0
        self._prefetch = prefetch
        self._stream: MessageStream | None = None
        self._opened = False
        self._asked = 0
        self._waiting = False
        self._lock = threading.Lock()
        self._finished: deque[Message] = deque()
        self._acking = False
        self._watch: asyncio.TimerHandle | None = None
        self._seen = 0
        can = home.backend.capabilities
        self._ordered = can.ordering == "key"
        self._patience = (can.lease or DEFAULT_LEASE) / 8

    # -- the reader ------------------------------------------------------------------------

    def resume(self) -> None:
        """The reader asks for more: what it was given before is finished."""
        self._finished += self.hand
        self.hand = []
        if self._finished and not self._acking:
            self._acking = True
            self.home.portal.post(self._ack_soon)

    def hand_over(self) -> Message | None:
        """Return the next message of the buffer, if there is one."""
        with self._lock:
            if not self.buffer:
                return None
            message = self.buffer[0]
            self.hand = [message]  # first, so that an interrupt leaves it in one place at least
            self.buffer.popleft()
        self.handed += 1
        return message

    def unread(self, message: Message) -> bool:
        """Take a message in hand back, to be handed over again; False if it is settled."""
        with self._lock:
            others = [m for m in self.hand if m is not message]
            if len(others) == len(self.hand) or message.outcome is not None:
                return False
            self.hand = others
            self.buffer.appendleft(message)
        return True

    def call(self, settling: Coroutine[Any, Any, bool]) -> bool:
        """Run a settlement of a message of this feed and block until it is recorded."""
        __tracebackhide__ = True
        try:
            return self.home.portal.call(self.settle(settling))
        except RuntimeError:
            settling.close()
            raise

    def abandon(self) -> None:
        """The reader is gone, or was interrupted: give back what it did not finish."""
        self.home.portal.post(self.begin_close)

    def pause(self) -> None:
        """The reader was cancelled; unless it comes back soon, let others have what arrives."""
        self.home.portal.post(self._close_unless_resumed, self._asked)

    # -- the portal ------------------------------------------------------------------------

    async def open(self) -> None:
        """Return once the group exists."""
        await self._source().__aenter__()

    async def refill(self, most: int, timeout: float | None) -> bool:
        """Wait for a message, then move up to ``most`` to the buffer; False if there is none."""
        self._asked += 1
        await self._record()
        if self.buffer:
            return True
        if self._opened and self.home.closed:
            return False
        arrived = self.home.unstash(self.place, most)
        if not arrived:
            stream = self._source()
            patience = None if timeout is None else max(timeout, SHORTEST_WAIT)
            self._waiting = True  # and so it stays if nothing comes, or this is cancelled
            arrived = await stream.take(1, patience)
            # Only what is there already may come along: waiting for a full batch would be slow.
            if most > 1 and arrived and stream.unread(arrived[0]):
                arrived = await stream.take(most, 0.0)
            self._waiting = not arrived
        with self._lock:
            self.buffer.extend(arrived)
        self._guard()
        return bool(arrived)

    async def take(
        self, n: int, timeout: float | None, quiet: float | None = None
    ) -> list[Message]:
        """Wait for ``n`` messages; they are in the reader's hands unless it was cancelled."""
        self._asked += 1
        await self._record()
        self.withdraw()
        taken = self.home.unstash(self.place, n)
        if len(taken) < n:
            self._waiting = True
            try:
                taken += await self._source().take(n - len(taken), timeout, quiet=quiet)
            except BaseException:
                self.put_back(taken)
                raise
            self._waiting = len(taken) < n
        self.hand = taken
        return taken

    def untake(self, messages: Sequence[Message]) -> None:
        """Undo a `take` whose result did not reach the reader."""
        self.hand = []
        self.put_back(messages)

    async def settle(self, settling: Coroutine[Any, Any, bool]) -> bool:
        """Run a settlement after all that came before it."""
        await self._record()
        if self._ordered and getattr(settling, "__name__", "") in ("nack", "release"):
            self.withdraw()  # the stream then gives back the successors of that key
        return await settling

    async def flush(self) -> None:
        """Return once the broker has accepted every settlement."""
        await self._record()
        if self._stream is not None:
            await self._stream.flush()

    def withdraw(self) -> None:
        """Put what was not handed over back into the stream."""
        with self._lock:
            messages = list(self.buffer)
            self.buffer.clear()
        self.put_back(messages)

    def put_back(self, messages: Sequence[Message]) -> None:
        """Put messages back to the front of the stream, as if never handed over."""
        for message in reversed(messages):
            if message.outcome is not None:
                self.home.stash_away(self.place, [message])
            elif self._stream is not None:
                self._stream.unread(message)

    async def close(self) -> None:
        """Give back what was not finished, and wait until the broker knows.

        Raises:
            AbeError: If it refused a settlement for good.
        """
        stream = await self._leave()
        if stream is not None:
            await stream.aclose()

    @property
    def ended(self) -> bool:
        """Whether the stream that was opened last has come to its end."""
        return self._stream is not None and self._stream.closed

    def _source(self) -> MessageStream:
        if self._stream is None:
            self._stream = self.home.borrow(self.place, self._prefetch)
            self.home.feeds.add(self)
            self._opened = True
        return self._stream

    def begin_close(self) -> None:
        """Start closing; the next call for the backlog waits for that."""
        self.home.in_background(self.close())

    def _close_unless_resumed(self, asked: int, *, now: bool = False) -> None:
        if not now:
            loop = asyncio.get_running_loop()
            loop.call_later(KEEP_OPEN, partial(self._close_unless_resumed, asked, now=True))
        elif self._asked == asked and self._stream is not None and not (self.hand or self.detached):
            self.begin_close()  # a later step opens a new stream

    async def _leave(self) -> MessageStream | None:
        """Let go of the stream; return it if it is to be closed."""
        await self._record()
        self._acking = False
        self.home.feeds.discard(self)
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        buffered = {id(message) for message in self.buffer}
        hand = [m for m in self.hand if id(m) not in buffered and m.outcome is None]
        self.hand = []
        self.withdraw()
        if self.home.retains:
            self.put_back(hand)
        stream, self._stream = self._stream, None
        if stream is not None and self.home.retains:
            self.home.give_back(self.place, stream, at_rest=not self._waiting)
            return None
        return stream

    # -- acks ------------------------------------------------------------------------------

    def _ack_soon(self) -> None:
        self.home.in_background(self._ack_in_intervals())

    async def _ack_in_intervals(self) -> None:
        while self._finished:
            await self._record()
            await asyncio.sleep(ACK_INTERVAL)
        self._acking = False
        if self._finished and not self._acking:  # the reader may have looked just before
            self._acking = True
            self._ack_soon()

    async def _record(self) -> None:
        while self._finished:
            message = self._finished.popleft()
            if id(message) in self.detached:
                self.detached.discard(id(message))
            elif message.outcome is None:
                await message.ack()

    # -- leases ----------------------------------------------------------------------------

    def _guard(self) -> None:
        """Withdraw what the reader does not ask for in an eighth of a lease.

        The stream gives it back to the group after as long again.
        """
        if self._watch is None and len(self.buffer) > 1:
            self._seen = self.handed
            loop = asyncio.get_running_loop()
            self._watch = loop.call_later(self._patience, self._check)

    def _check(self) -> None:
        self._watch = None
        if self.handed == self._seen:
            self.withdraw()
        self._guard()
