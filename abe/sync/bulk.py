"""Publishing many messages with a report on the way, and an exact count at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from abe.backends.message_queue.base import (
    Capabilities,
    encode_payload,
    transient,
    validate_key,
)
from abe.backends.message_queue.base.payload import split_pair
from abe.errors import AbeError, PublishError

__all__ = ["check_all", "first_chunk", "publish_in_chunks"]

T = TypeVar("T")
Send = Callable[[Sequence[Any]], Coroutine[Any, Any, int]]

CHUNK_SECONDS = 0.1
"""How long a chunk should take: reports come that often, and an interrupt waits that long."""
LARGEST = 5000
GRACE = 0.3
"""Seconds for which an interrupt lets the chunk on its way come to its end, so that it counts."""


def first_chunk(can: Capabilities) -> int:
    """Return the size of a first chunk that does not take long."""
    return 100 if can.publish_many else 1


def check_all(items: Sequence[Any], key: str | None) -> None:
    """Check what ``publish_many`` is given.

    Raises:
        InvalidKeyError: If a key is malformed.
        PayloadError: If a payload is not JSON, or an item is no pair where it must be.
    """
    if key is not None:
        validate_key(key)
    for position, item in enumerate(items):
        _check(position, item, key)


def publish_in_chunks(
    call: Callable[[Coroutine[Any, Any, None]], None],
    send: Send,
    items: Sequence[Any],
    progress: Callable[[int], object],
    *,
    first: int,
) -> int:
    """Publish ``items`` a chunk at a time, calling ``progress`` after each.

    An interrupt lets the chunk on its way finish and then reports, so the last number that
    ``progress`` was given is exact. If that takes too long, a note on the interrupt says how many
    more may have been published.

    Args:
        call: Runs a coroutine on the portal.
        send: Publishes a chunk, all or what its `PublishError` says.
        items: What to publish; valid.
        progress: Called with the number published so far.
        first: Size of the first chunk; the others depend on how long it takes.

    Raises:
        PublishError: If not all were accepted; its positions are those in ``items``.
    """
    tally = _Tally(send)
    start, size = 0, first
    try:
        while start < len(items):
            began = time.monotonic()
            chunk = items[start : start + size]
            call(tally.publish(chunk))
            start += len(chunk)
            progress(tally.published)
            speed = CHUNK_SECONDS / max(time.monotonic() - began, 0.001)
            size = max(1, min(int(size * min(speed, 4.0)), LARGEST))
    except AbeError as error:
        if len(items) == 1 or not (tally.published or isinstance(error, PublishError)):
            raise
        raise _shifted(error, start, len(items)) from error
    except Exception:
        raise  # from progress(), which knows the number
    except BaseException as error:  # an interrupt
        progress(tally.published)
        if tally.unknown:
            error.add_note(f"up to {tally.unknown:,} more may have been published")
        raise
    return tally.published


class _Tally:
    """Counts what was published; changes on the portal only, so no interrupt can falsify it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.published = 0
        self.unknown = 0

    async def publish(self, chunk: Sequence[Any]) -> None:
        self.unknown = len(chunk)
        sending = asyncio.ensure_future(self._send(chunk))
        sending.add_done_callback(self._count)
        try:
            await asyncio.shield(sending)
        except asyncio.CancelledError:
            await asyncio.wait([sending], timeout=GRACE)
            sending.cancel()
            await asyncio.wait([sending])
            raise

    def _count(self, sending: asyncio.Future[int]) -> None:
        if sending.cancelled():
            return
        error = sending.exception()
        if error is None:
            self.published += sending.result()
        elif isinstance(error, PublishError):
            self.published += len(error.published)
        else:
            return
        self.unknown = 0


def _check(position: int, item: Any, key: str | None) -> None:
    item_key, payload = split_pair(position, item) if key is None else (key, item)
    try:
        validate_key(item_key)
        encode_payload(payload)
    except ValueError as error:
        raise type(error)(f"item {position}: {error}") from None


def _shifted(error: AbeError, start: int, total: int) -> PublishError:
    """Speak of positions in the whole instead of in the chunk."""
    done = error.published if isinstance(error, PublishError) else ()
    why = error.failed if isinstance(error, PublishError) else {}
    published = [*range(start), *(start + position for position in done)]
    failed = {start + position: reason for position, reason in why.items()}
    failed = failed or {start: str(error)}
    first = next((p for p, reason in sorted(failed.items()) if reason != "not sent"), start)
    rest = dict.fromkeys(range(start, total), "not sent")
    for position in published[start:]:
        del rest[position]
    return PublishError(
        f"published {len(published):,} of {total:,}; item {first} failed: {failed[first]}",
        retryable=transient(error),
        published=published,
        failed={**rest, **failed},
    )
