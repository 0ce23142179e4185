"""`Publisher`: messages of many callers in common batches, and the outcome of each for its own."""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

from abe.backends.message_queue.base.backoff import Backoff, transient
from abe.backends.message_queue.base.batcher import Batcher
from abe.errors import PublishError

__all__ = ["NOT_SENT", "Publisher", "not_published"]

T = TypeVar("T")

NOT_SENT = PublishError("not sent", retryable=True)
"""Of items that stand behind one that has failed."""
RETRY = Backoff(first=0.05, maximum=1.0)


class Publisher(Generic[T]):
    """Publishes through a `Batcher`, again while that may help, for a driver that sends batches.

    What was handed over is sent, also if its caller is cancelled. Of one call nothing more is sent
    once an item has failed for good. All methods belong to one event loop.

    Args:
        send: Sends a batch and returns why items of it, by position, were not accepted; what it
            raises is true of all. A `PublishError` says that an item was refused, or may have
            been stored; any other error, that it was not sent.
        max_items: Items in a batch.
        max_bytes: Size of a batch; an item above that is sent alone.
        size: Returns the size of an item; needed with ``max_bytes``.
        max_handlers: Batches on their way at a time; with more than one they overtake each other.
        timeout: Seconds for which an item is sent again, from its first try.
        retry: Whether to send an item again after this error. The default suits brokers that
            recognise a repeated message; others have to exclude those that may have been stored.
        backoff: How long to wait before.
    """

    def __init__(
        self,
        send: Callable[[list[T]], Awaitable[Mapping[int, Exception]]],
        *,
        max_items: int,
        max_bytes: float = math.inf,
        size: Callable[[T], int] | None = None,
        max_handlers: int = 1,
        timeout: float,
        retry: Callable[[Exception], bool] = transient,
        backoff: Backoff = RETRY,
    ) -> None:
        self._send = send
        self._timeout = timeout
        self._retry = retry
        self._closing = False
        self._batches: Batcher[tuple[_Call[T], int]] = Batcher(
            self._transmit,
            max_items=max_items,
            max_bytes=max_bytes,
            size=None if size is None else lambda entry: size(entry[0].items[entry[1]]),
            max_handlers=max_handlers,
            backoff=backoff,
            name="abe-publish",
        )

    async def send(self, items: Sequence[T]) -> None:
        """Return once all of ``items`` are accepted.

        Raises:
            PublishError: If not all were; ``published`` and ``failed`` say which.
            AbeError: Whatever else kept all of them from being sent.
        """
        if items:
            call = _Call(items)
            self._batches.add(*((call, n) for n in range(len(items))))
            await call.done

    async def aclose(self) -> None:
        """Return once everything is sent, or has failed; nothing is sent again."""
        self._closing = True
        await self._batches.close(None)

    async def _transmit(self, batch: list[tuple[_Call[T], int]]) -> list[tuple[_Call[T], int]]:
        loop = asyncio.get_running_loop()
        sent = [(call, n) for call, n in batch if call.begin(n, loop.time())]
        try:
            problems = await self._try([call.items[n] for call, n in sent]) if sent else {}
        except asyncio.CancelledError:
            for call, _ in [*batch, *self._batches.withdraw()]:
                call.abort()
            raise
        if not problems:
            for call, _ in sent:
                call.accepted()
            return []
        again = []
        for position, (call, n) in enumerate(sent):
            if position not in problems:
                call.accepted()
            elif call.patient(n, problems[position], loop.time() - self._timeout, self._may_retry):
                again.append((call, n))
        return again

    def _may_retry(self, error: Exception) -> bool:
        return not self._closing and self._retry(error)

    async def _try(self, items: list[T]) -> Mapping[int, Exception]:
        try:
            return await self._send(items)
        except Exception as error:  # whatever it is, those who wait have to learn it
            return dict.fromkeys(range(len(items)), error)


class _Call(Generic[T]):
    """One `Publisher.send`, and what has become of its items."""

    __slots__ = ("done", "failed", "items", "left", "passing", "since")

    def __init__(self, items: Sequence[T]) -> None:
        self.items = items
        self.left = len(items)
        """Items not answered for."""
        self.passing: dict[int, Exception] = {}
        """Why items are sent again."""
        self.failed: dict[int, Exception] = {}
        self.since = math.inf
        """When the first try began after which nothing was accepted."""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def begin(self, n: int, now: float) -> bool:
        """Return whether to send item ``n``; not if another has failed."""
        self.since = min(self.since, now)
        if self.failed:
            self._fail(n, self.passing.get(n, NOT_SENT))
        return not self.failed

    def accepted(self) -> None:
        self.since = math.inf
        self.left -= 1
        if not self.left:
            self._finish()

    def patient(
        self, n: int, error: Exception, earliest: float, may_retry: Callable[[Exception], bool]
    ) -> bool:
        """Return whether to send item ``n`` again; not if its first try was before ``earliest``."""
        again = not self.failed and self.since > earliest and may_retry(error)
        before = self.passing.get(n)
        if isinstance(before, PublishError) and not isinstance(error, PublishError):
            error = before  # it may have been stored in that try
        if again:
            self.passing[n] = error
        else:
            self._fail(n, error)
        return again

    def abort(self) -> None:
        self.failed[0] = PublishError("cancelled", retryable=True)
        self.done.cancel()

    def _fail(self, n: int, error: Exception) -> None:
        self.failed[n] = error
        self.left -= 1
        if not self.left:
            self._finish()

    def _finish(self) -> None:
        if self.done.done():
            return  # the caller was cancelled
        if not self.failed:
            self.done.set_result(None)
            return
        first = self.failed[min(self.failed)]
        refused = any(isinstance(error, PublishError) for error in self.failed.values())
        if len(self.failed) == len(self.items) and not refused:
            error = copy.copy(first)  # one for each caller: it gets a traceback
            error.__cause__ = first.__cause__
            self.done.set_exception(error)
        else:
            self.done.set_exception(not_published(self.failed, len(self.items)))


def not_published(failed: Mapping[int, Exception], total: int) -> PublishError:
    """Return the error for a call of ``total`` items of which those in ``failed`` failed."""
    first = next(n for n in sorted(failed) if failed[n] is not NOT_SENT)
    problem = failed[first]
    what = f"published {total - len(failed):,} of {total:,}; item {first} failed: "
    error = PublishError(
        f"{what if total > 1 else ''}{problem}",
        retryable=all(map(transient, failed.values())),
        published=[n for n in range(total) if n not in failed],
        failed={n: str(failed[n]) for n in sorted(failed)},
    )
    error.__cause__ = problem.__cause__ or problem
    return error
