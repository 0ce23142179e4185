"""Publishing many messages with a report on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from abe.backends.message_queue.base import encode_payload, validate_key
from abe.errors import PayloadError, PublishError

__all__ = ["publish_in_chunks"]

CHUNK = 500


def publish_in_chunks(
    publish: Callable[[Sequence[Any]], int],
    items: Sequence[Any],
    key: str | None,
    progress: Callable[[int], object],
) -> int:
    """Publish ``items`` a chunk at a time, calling ``progress`` after each.

    Raises:
        InvalidKeyError: If a key is malformed; then nothing was sent.
        PayloadError: If a payload is not JSON; then nothing was sent.
        PublishError: If not all were accepted; its positions are those in ``items``.
    """
    for position, item in enumerate(items):
        _check(position, item, key)
    for start in range(0, len(items), CHUNK):
        try:
            publish(items[start : start + CHUNK])
        except PublishError as error:
            raise _shifted(error, start, len(items)) from error
        progress(min(start + CHUNK, len(items)))
    return len(items)


def _check(position: int, item: Any, key: str | None) -> None:
    if key is None:
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise PayloadError(
                f"item {position} is not a (key, payload) pair; "
                "pass key=… to publish plain payloads under one key"
            )
        item_key, payload = item
    else:
        item_key, payload = key, item
    try:
        validate_key(item_key)
        encode_payload(payload)
    except ValueError as error:
        raise type(error)(f"item {position}: {error}") from None


def _shifted(error: PublishError, start: int, total: int) -> PublishError:
    """Speak of positions in the whole instead of in the chunk."""
    published = [*range(start), *(start + position for position in error.published)]
    failed = dict.fromkeys(range(start + CHUNK, total), "not sent")
    failed.update({start + position: reason for position, reason in error.failed.items()})
    return PublishError(
        f"published {len(published)} of {total}: {error}",
        retryable=error.retryable,
        published=published,
        failed=dict(sorted(failed.items())),
    )
