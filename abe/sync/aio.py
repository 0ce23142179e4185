"""`SyncBackend.aio`: the async client over the portal, for any event loop."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from abe.backends.message_queue.base import Keys, MessageStream
from abe.sync.pool import Loan, SubscriptionPool
from abe.types import ConsumerGroup

__all__ = ["PortalHost"]

T = TypeVar("T")


class PortalHost:
    """Runs the calls of an `AsyncBackend` on the portal, where the backend lives.

    Cancelling an await cancels the call there and waits for its outcome.

    Args:
        pool: Whose backend it is.
        owner: Kept from being collected, which would close the connection.
    """

    def __init__(self, pool: SubscriptionPool, owner: object) -> None:
        self._pool = pool
        self._owner = owner

    @property
    def closed(self) -> bool:
        """Whether the backend was closed."""
        return self._pool.closed

    def check_open(self) -> None:
        """Raise if the backend was closed."""
        self._pool.check_open()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """Return an awaitable of any loop that runs ``coroutine`` on the portal."""
        return self._pool.portal.bridge(coroutine)

    def look(self, method: Callable[[], Coroutine[Any, Any, T]]) -> Coroutine[Any, Any, T]:
        """Run ``method`` on the portal once pending releases have reached the broker."""
        return self.run(self._pool.look(method))

    def consume(self, keys: Keys, group: ConsumerGroup, prefetch: int | None) -> MessageStream:
        """Return a stream of any loop over a subscription on the portal."""
        loan = Loan(self._pool, self._pool.select(keys, group), prefetch, self._owner)
        return MessageStream.hosted(loan, self._pool.backend.capabilities)

    async def aclose(self) -> None:
        """Close the backend, for the synchronous side too; closing twice is fine."""
        if not self._pool.closed:
            await self.run(self._pool.aclose())
