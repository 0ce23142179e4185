"""The dead-letter key, for backends that have no dead letters of their own."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence

from abe.backends.message_queue.base.capabilities import capabilities_of
from abe.backends.message_queue.base.dead_letters import PREFIX, dead_headers
from abe.backends.message_queue.base.keys import KeyFilter
from abe.backends.message_queue.base.message import BaseMessage, Message
from abe.errors import ConfigurationError
from abe.types import ConsumerGroup, MessageQueueBackendProtocol, MessageQueueKey

__all__ = ["DeadLetterKey"]

MARK = f"{PREFIX}published-to"
"""The header of a copy that a consumer published under its dead-letter key.

A plain backend may carry nothing but the payload. What is given up there a second time may be such
a copy, so this is a field of the second one's payload.
"""
KNOWN = 1000
"""Payloads given up last that are remembered."""


class DeadLetterKey:
    """The key under which a consumer publishes the messages it gives up.

    A dead letter must outlive its consumer, so the consumer's group must not receive the key.
    Copies are recognised by a mark, never by their content.
    """

    def __init__(self, backend: MessageQueueBackendProtocol, key: MessageQueueKey) -> None:
        self.key = key
        self._backend = backend
        self._can = capabilities_of(backend)
        self._plain = self._can == type(self._can)()
        self._given_up: deque[str] = deque(maxlen=KNOWN)

    def check(self, group: ConsumerGroup, keys: Sequence[str] | str | None) -> None:
        """Refuse a key that the consumer's own group receives, where the backend tells."""
        if self._can.reject or self._plain:
            return  # it is not used, or a plain backend tells nothing
        if self._can.keys == "none" or KeyFilter(keys).matches(self.key):
            raise self._refusal(group)

    def refuse_own(self, message: Message) -> None:
        """Refuse a dead letter of ours that this consumer has received; it stays unsettled."""
        if self.key in (message.headers.get(MARK), self._plain and message.get(MARK)):
            raise self._refusal(None)

    def _refusal(self, group: ConsumerGroup) -> ConfigurationError:
        return ConfigurationError(
            f"dead_letter_key {self.key!r} is received by this consumer's own group"
            f"{'' if group is None else f' {group!r}'}: choose a key that it does not receive, or"
            " give keys= that leave it out"
        )

    async def publish(self, message: Message, reason: str) -> None:
        headers = dead_headers(
            message.headers,
            reason=reason,
            attempts=message.attempt,
            id=message.id,
            key=message.key,
        )
        headers[MARK] = self.key
        extras = {"headers": headers} if self._can.headers else {}
        # A plain backend inside this process may hand over the very object, with its headers.
        payload = BaseMessage(message, headers=headers)
        if self._plain and self._was_given_up(message):
            payload[MARK] = self.key
        await self._backend.publish(self.key, payload, **extras)

    def _was_given_up(self, message: Message) -> bool:
        """Whether an equal payload was given up before; remembers this one."""
        try:
            text = json.dumps(message, sort_keys=True)
        except (TypeError, ValueError):  # not JSON, so that it never left the process
            return False
        known = text in self._given_up
        self._given_up.append(text)
        return known
