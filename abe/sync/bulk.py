"""Publishing many messages with a report on the way, and an exact count at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from abe.backends.message_queue.base import Outgoing, not_published
from abe.backends.message_queue.base.publisher import NOT_SENT
from abe.errors import AbeError, PublishError

__all__ = ["send_in_chunks"]

Send = Callable[[Sequence[Outgoing]], Coroutine[Any, Any, None]]

CHUNK_SECONDS = 0.1
"""How long a chunk should take: reports come that often, and an interrupt waits that long."""
LARGEST = 5000
GRACE = 0.3
"""Seconds for which an interrupt lets the chunk on its way come to its end, so that it counts."""


def send_in_chunks(
    call: Callable[[Coroutine[Any, Any, None]], None],
    send: Send,
    prepared: Sequence[Outgoing],
    progress: Callable[[int], object],
    *,
    first: int,
) -> None:
    """Publish ``prepared`` a chunk at a time, calling ``progress`` after each.

    An interrupt lets the chunk on its way finish and then reports, so the last number that
    ``progress`` was given is exact. If that takes too long, a note on the interrupt says how many
    more may have been published. The positions of a `PublishError` are those in ``prepared``.
    """
    tally = _Tally(send)
    start, size = 0, first
    try:
        while start < len(prepared):
            began = time.monotonic()
            chunk = prepared[start : start + size]
            call(tally.send(chunk))
            start += len(chunk)
            progress(start)
            speed = CHUNK_SECONDS / max(time.monotonic() - began, 0.001)
            size = max(1, min(int(size * min(speed, 4.0)), LARGEST))
    except AbeError as error:
        if not start and (size >= len(prepared) or not isinstance(error, PublishError)):
            raise
        raise _shifted(error, start, len(prepared)) from error
    except Exception:
        raise  # from progress(), which knows the number
    except BaseException as error:  # an interrupt
        progress(tally.published)
        if tally.unknown:
            error.add_note(f"up to {tally.unknown:,} more may have been published")
        raise


class _Tally:
    """Counts what was published; changes on the portal only, so no interrupt can falsify it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.published = 0
        self.unknown = 0

    async def send(self, chunk: Sequence[Outgoing]) -> None:
        self.unknown = len(chunk)
        sending = asyncio.ensure_future(self._count(chunk))
        try:
            await asyncio.shield(sending)
        except asyncio.CancelledError:
            await asyncio.wait([sending], timeout=GRACE)
            sending.cancel()
            await asyncio.wait([sending])
            raise

    async def _count(self, chunk: Sequence[Outgoing]) -> None:
        try:
            await self._send(chunk)
        except PublishError as error:
            self.published += len(error.published)
            self.unknown = 0
            raise
        self.published += len(chunk)
        self.unknown = 0


def _shifted(error: AbeError, start: int, total: int) -> PublishError:
    """Speak of positions in the whole instead of in the chunk."""
    failed: dict[int, Exception] = dict.fromkeys(range(start, total), NOT_SENT)
    if not isinstance(error, PublishError):
        failed[start] = error
    else:
        for position in error.published:
            del failed[start + position]
        for position, reason in error.failed.items():
            failed[start + position] = PublishError(reason, retryable=error.retryable)
    return not_published(failed, total)
