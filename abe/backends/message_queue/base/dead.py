"""Dead letters: the headers that say why, and the key where others have no place for them."""

from __future__ import annotations

import json
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from typing import Any

from abe.backends.message_queue.base.capabilities import capabilities_of
from abe.backends.message_queue.base.message import Message
from abe.errors import PublishError
from abe.types import MessageQueueBackendProtocol, MessageQueueKey

__all__ = ["PREFIX", "DeadLetterKey", "dead_headers", "reason_for"]

PREFIX = "abe-dead-"
"""Headers with this prefix are abe's; replaying removes them."""
MAX_LENGTH = 1000


def reason_for(error: BaseException) -> str:
    """Return an error as a reason: its summary, and on further lines where it was raised."""
    where = traceback.format_list(traceback.extract_tb(error.__traceback__)[-3:])
    return f"{type(error).__name__}: {error}\n{''.join(where)}".strip()


def dead_headers(
    headers: Mapping[str, str], *, reason: str, attempts: int, id: str | None, key: str | None
) -> dict[str, str]:
    """Return ``headers`` and those that say why a message was given up.

    ``abe-dead-reason`` (the first line of ``reason``), ``abe-dead-traceback`` (the others),
    ``abe-dead-attempts``, ``abe-dead-time`` (seconds since the epoch), ``abe-dead-id`` and
    ``abe-dead-key`` (the message's own).
    """
    summary, _, where = reason.partition("\n")
    texts = {
        "reason": summary[:MAX_LENGTH],
        "traceback": where[-MAX_LENGTH:],
        "attempts": str(attempts),
        "time": f"{time.time():.6f}",
        "id": id or "",
        "key": key or "",
    }
    clean = (text.encode(errors="replace").decode() for text in texts.values())
    return {**headers, **{PREFIX + name: text for name, text in zip(texts, clean, strict=True)}}


class DeadLetterKey:
    """The key under which a consumer publishes what it gives up, and which it never handles.

    Args:
        backend: Where to publish; one without dead letters of its own.
        key: The key.
    """

    def __init__(self, backend: MessageQueueBackendProtocol, key: MessageQueueKey) -> None:
        self.key = key
        self._backend = backend
        self._headers = capabilities_of(backend).headers
        self._published: Counter[str] = Counter()

    def holds(self, message: Message) -> bool:
        """Whether ``message`` was published under this key."""
        if message.key is not None:
            return message.key == self.key
        # A plain backend tells no key; what was published here is known by its text.
        text = _text(message) if self._published else ""
        if not self._published.get(text):
            return False
        self._published -= Counter([text])
        return True

    async def publish(self, message: Message, reason: str) -> None:
        """Publish ``message`` with the `dead_headers`, where the backend has headers.

        Raises:
            Exception: Whatever the backend raises.
        """
        extras: dict[str, Any] = {}
        if self._headers:
            extras["headers"] = dead_headers(
                message.headers,
                reason=reason,
                attempts=message.attempt,
                id=message.id,
                key=message.key,
            )
        # Noted first: another worker may receive it before publish() returns here.
        note = Counter([_text(message)] if message.key is None else [])
        self._published += note
        try:
            await self._backend.publish(self.key, dict(message), **extras)
        except (ConnectionError, TimeoutError, PublishError):
            self._published -= note
            raise


def _text(message: Message) -> str:
    return json.dumps(message, sort_keys=True, default=repr)
