"""The dead-letter key, for backends that have no dead letters of their own."""

from __future__ import annotations

from collections.abc import Sequence

from abe.backends.message_queue.base.capabilities import capabilities_of
from abe.backends.message_queue.base.dead_letters import PREFIX, dead_headers
from abe.backends.message_queue.base.keys import KeyFilter
from abe.backends.message_queue.base.message import Message
from abe.errors import ConfigurationError
from abe.types import ConsumerGroup, MessageQueueBackendProtocol, MessageQueueKey

__all__ = ["DeadLetterKey"]

MARK = f"{PREFIX}published-to"
"""The header of a copy that a consumer published under its dead-letter key.

A plain backend may carry nothing but the payload: there it is a field of the payload.
"""


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
        mark = {MARK: self.key} if self._plain else {}
        await self._backend.publish(self.key, {**message, **mark}, **extras)
