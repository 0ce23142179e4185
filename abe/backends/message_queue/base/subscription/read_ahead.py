"""The one buffer between the broker and the readers: pop anywhere, wait on the loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import islice

from abe.backends.message_queue.base.receiver import Delivery
from abe.backends.message_queue.base.subscription.prefetch import PrefetchController, size_of

__all__ = ["SUSPECT_ATTEMPT", "ReadAhead"]

SUSPECT_ATTEMPT = 3
"""From this attempt on a message may be the one that kills its consumers: it is received singly."""


SAMPLES = 8
"""Messages whose size is looked at, of those that arrive together."""


class ReadAhead:
    """Received messages that no reader has yet, and the readers that wait for some.

    Whoever pops a delivery owns it: no result has to survive the way to another thread. Only the
    loop adds at the right and takes from the right; only readers take from the left.

    Attributes:
        buffer: The messages, oldest first.
        wanted: How many the readers wait for.
        approved: A message that may be handed over although `prefetch` is careful.
    """

    def __init__(self, most: int) -> None:
        self.buffer: deque[Delivery] = deque()
        self.prefetch = PrefetchController(most)
        self.wanted = 0
        self.approved: Delivery | None = None
        self._waiters: deque[asyncio.Future[None]] = deque()

    # -- any thread ------------------------------------------------------------------------

    def pop(self, hand: list[Delivery], now: float) -> bool:
        """Move the oldest message into ``hand``; False if only the loop can tell whether it may.

        The move is one call into C, so that a signal finds the message on one side or the other.
        """
        buffer = self.buffer
        try:
            head = buffer[0]
            if head.deadline < now or (self.prefetch.careful and head is not self.approved):
                return False
            hand.extend(islice(iter(buffer.popleft, None), 1))
        except IndexError:  # empty, maybe since this moment
            return False
        return True

    def put_back(self, deliveries: Sequence[Delivery]) -> None:
        if any(delivery.message.attempt >= SUSPECT_ATTEMPT for delivery in deliveries):
            self.approved = None
            self.prefetch.be_careful(True)
        self.buffer.extendleft(reversed(deliveries))
        self.prefetch.yielded -= len(deliveries)

    # -- the loop --------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        return bool(self._waiters)

    def add(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            if delivery.message.attempt >= SUSPECT_ATTEMPT:
                self.prefetch.be_careful(True)
        self.buffer.extend(deliveries)
        some = deliveries[:: len(deliveries) // SAMPLES | 1]  # odd: two kinds may alternate
        self.prefetch.measured(max(size_of(delivery.message) for delivery in some))

    def remove_after(self, keep: int) -> list[Delivery]:
        removed: deque[Delivery] = deque()
        while len(self.buffer) > keep:
            try:
                removed.appendleft(self.buffer.pop())
            except IndexError:
                break
        return list(removed)

    def remove_key(self, key: str | None) -> list[Delivery]:
        rest = self.remove_after(0)
        removed = [delivery for delivery in rest if delivery.message.key == key]
        self.buffer.extend(delivery for delivery in rest if delivery.message.key != key)
        return removed

    def remove_lapsed(self, now: float) -> list[Delivery]:
        if not self.buffer or self.buffer[0].deadline >= now:
            return []
        rest = self.remove_after(0)
        self.buffer.extend(delivery for delivery in rest if delivery.deadline >= now)
        return [delivery for delivery in rest if delivery.deadline < now]

    def discard(self, delivery: Delivery) -> None:
        if delivery in self.buffer:
            rest = self.remove_after(0)
            self.buffer.extend(other for other in rest if other is not delivery)

    @property
    def suspect(self) -> bool:
        """Whether the oldest message must be isolated before it is handed over."""
        return bool(
            self.prefetch.careful
            and self.buffer
            and self.buffer[0] is not self.approved
            and self.buffer[0].message.attempt >= SUSPECT_ATTEMPT
        )

    def ready(self) -> bool:
        """Whether the oldest message may be handed over; approves one that need not be isolated."""
        if not self.buffer:
            return False
        if self.prefetch.careful:
            if self.suspect:
                return False
            self.approved = self.buffer[0]
        return True

    def calm(self) -> None:
        """Stop being careful once no message is left that asks for it."""
        if self.prefetch.careful and not any(
            delivery.message.attempt >= SUSPECT_ATTEMPT
            for delivery in tuple(self.buffer)  # a reader's thread may pop meanwhile
        ):
            self.prefetch.be_careful(False)

    async def wait(self, wanted: int, timeout: float | None) -> None:
        """Wait until `wake` is called for this reader, at most ``timeout`` seconds."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters.append(waiter)
        self.wanted += wanted
        timer = None if timeout is None else loop.call_later(timeout, _set, waiter)
        started = loop.time()
        cancelled = True
        try:
            await waiter
            cancelled = False
        finally:
            self._waiters.remove(waiter)
            self.wanted -= wanted
            self.prefetch.waited(loop.time() - started)
            if timer is not None:
                timer.cancel()
            if cancelled:  # perhaps woken before that, for a message that it will not pop
                self.wake()

    def wake(self) -> None:
        """Wake the readers that waited longest, one for each message."""
        for waiter in islice(self._waiters, len(self.buffer)):
            _set(waiter)

    def wake_all(self) -> None:
        for waiter in self._waiters:
            _set(waiter)


def _set(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
