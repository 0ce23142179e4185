"""`Batcher`: what is handed over one by one, sent together."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from itertools import chain, islice
from typing import Generic, TypeVar

from abe.backends.message_queue.base.backoff import Backoff

__all__ = ["Batcher"]

T = TypeVar("T")

RETRY = Backoff(first=0.2, maximum=2.0)


class Batcher(Generic[T]):
    """Sends items in batches, in the order in which they were added.

    An item that was added is sent whatever becomes of the task that added it: batches are sent by
    tasks of the batcher's own. All methods belong to one event loop; the tasks end when there is
    nothing left to send.

    Args:
        send: Sends a batch and returns the items that have to be sent again; those come before
            all others. It raises nothing: what became of the rest is its own to tell.
        max_items: Items in a batch; as many do not wait for others to join them.
        max_bytes: Size of a batch; an item above that is sent alone.
        size: Returns the size of an item; needed with ``max_bytes``.
        max_wait: Seconds for which an item may wait for others to join it. With 0 those are
            joined that are added in the same turn of the event loop, or while no handler is free.
        max_handlers: Batches on their way at a time; with more than one they overtake each other.
        backoff: How long to wait before items are sent again.
        name: Of the tasks.
    """

    def __init__(
        self,
        send: Callable[[list[T]], Awaitable[Iterable[T]]],
        *,
        max_items: int,
        max_bytes: float = math.inf,
        size: Callable[[T], int] | None = None,
        max_wait: float = 0.0,
        max_handlers: int = 1,
        backoff: Backoff = RETRY,
        name: str = "abe-batch",
    ) -> None:
        self._send = send
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._size = size
        self._max_wait = max_wait
        self._max_handlers = max_handlers
        self._backoff = backoff
        self._name = name
        self._pending: deque[T] = deque()
        self._taken = 0
        """Items that were pending once and are no longer."""
        self._active: dict[asyncio.Task[None], list[T]] = {}
        """Batches on their way; of each what is not answered for."""
        self._timer: asyncio.TimerHandle | None = None

    def add(self, *items: T) -> None:
        """Hand over ``items``; they are sent with the next batch."""
        self._pending.extend(items)
        if len(self._pending) >= self._max_items:
            self.send()
        elif self._timer is None and len(self._active) < self._max_handlers:
            self._timer = asyncio.get_running_loop().call_later(self._max_wait, self.send)

    def send(self) -> None:
        """Start sending what was added, without waiting for more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._pending and len(self._active) < self._max_handlers:
            batch = self._next()
            loop = asyncio.get_running_loop()
            task = loop.create_task(self._deliver(batch), name=self._name)
            self._active[task] = batch
            task.add_done_callback(self._finished)

    async def flush(self) -> None:
        """Return once everything added so far is answered for.

        What is added meanwhile is not waited for: steady traffic would never let it return.
        """
        target = self._taken + len(self._pending)
        while True:
            self.send()
            batches = set(self._active)
            if not batches:
                return
            last = self._taken >= target
            await asyncio.wait(
                batches,
                return_when=asyncio.ALL_COMPLETED if last else asyncio.FIRST_COMPLETED,
            )
            if last and not any(batch.cancelled() for batch in batches):
                return

    async def close(self, timeout: float | None) -> list[T]:
        """Send everything, within ``timeout`` seconds; returns what is not answered for by then.

        With ``None`` that takes as long as it takes. May be called again after a cancellation.
        """
        try:
            async with asyncio.timeout(timeout):
                while self._pending or self._active:
                    await self.flush()
        except TimeoutError:
            batches = set(self._active)
            for batch in batches:
                batch.cancel()
            if batches:
                await asyncio.wait(batches)
        return self.withdraw()

    def has(self, test: Callable[[T], bool]) -> bool:
        """Return whether ``test`` holds for any item that is not answered for."""
        return any(map(test, chain(self._pending, *self._active.values())))

    def withdraw(self) -> list[T]:
        """Take back what no batch has taken yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        items = list(self._pending)
        self._taken += len(items)
        self._pending.clear()
        return items

    def _next(self) -> list[T]:
        count = min(len(self._pending), self._max_items)
        if self._size is not None:
            total = 0
            for n, item in enumerate(islice(self._pending, count)):
                total += self._size(item)
                if n and total > self._max_bytes:
                    count = n
                    break
        self._taken += count
        return [self._pending.popleft() for _ in range(count)]

    async def _deliver(self, batch: list[T]) -> None:
        failures = 0
        while True:
            batch[:] = await self._send(batch)
            if not batch:
                return
            failures += 1
            await asyncio.sleep(self._backoff.delay(failures))

    def _finished(self, task: asyncio.Task[None]) -> None:
        batch = self._active.pop(task)
        if not task.cancelled():
            self.send()
            return
        # The event loop is closing, or `close` ran out of time: what is unanswered is kept.
        self._pending.extendleft(reversed(batch))
        self._taken -= len(batch)
