"""The dead-letter key, for backends that have no dead letters of their own."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from abe.backends.message_queue.base.capabilities import capabilities_of
from abe.backends.message_queue.base.dead_letters import dead_headers
from abe.backends.message_queue.base.message import Message
from abe.errors import PublishError
from abe.types import MessageQueueBackendProtocol, MessageQueueKey

__all__ = ["DeadLetterKey"]


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
