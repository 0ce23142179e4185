"""Publishing what is known to be valid, with progress, and an exact count after an interrupt."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from abe.errors import AbeError, PublishError
from abe.ipython.progress import Progress
from abe.ipython.session import say
from abe.sync.bulk import first_chunk, publish_in_chunks
from abe.sync.portal import get_portal

if TYPE_CHECKING:
    from abe.sync import SyncBackend

__all__ = ["send"]


def send(
    backend: SyncBackend,
    key: str,
    payloads: Sequence[dict[str, Any]],
    extras: dict[str, Any],
    *,
    live: bool,
) -> None:
    """Publish ``payloads`` under ``key``.

    Args:
        backend: Where to.
        key: The key of all.
        payloads: Valid payloads.
        extras: Headers and delay, for each.
        live: Whether what was displayed can be updated.

    Raises:
        PublishError: If not all were accepted; ``published`` and ``failed`` say which.
    """
    total = len(payloads)
    if extras or total == 1:
        first = 1
        publish: Callable[[Sequence[Any]], Coroutine[Any, Any, int]] = partial(
            _one_by_one, partial(backend.aio.publish, key, **extras)
        )
    else:
        first = first_chunk(backend.capabilities)
        publish = partial(backend.aio.publish_many, key=key)
    with Progress(total, "published", live=live) as progress:
        try:
            publish_in_chunks(get_portal().call, publish, payloads, progress, first=first)
        except KeyboardInterrupt as error:
            notes = "; ".join(["", *getattr(error, "__notes__", [])])
            say(f"interrupted: {progress.count:,} of {total:,} are published{notes}")
            raise


async def _one_by_one(
    publish: Callable[[dict[str, Any]], Coroutine[Any, Any, None]], payloads: Sequence[Any]
) -> int:
    total = len(payloads)
    for done, payload in enumerate(payloads):
        try:
            await publish(payload)
        except AbeError as error:
            if not done:
                raise
            raise PublishError(
                f"item {done} failed: {error}",
                retryable=error.retryable,
                published=range(done),
                failed={done: str(error), **dict.fromkeys(range(done + 1, total), "not sent")},
            ) from error
    return total
