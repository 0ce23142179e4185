"""`SyncBackend.aio`: the async client over the portal, for any event loop."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from abe.backends.message_queue.base import Keys, MessageStream
from abe.backends.message_queue.client import AsyncBackend
from abe.sync.pool import Loan, SubscriptionPool
from abe.types import ConsumerGroup

__all__ = ["BridgedBackend"]

T = TypeVar("T")


class BridgedBackend(AsyncBackend):
    """An `AsyncBackend` whose calls run on the portal, where the backend lives.

    Cancelling an await cancels the call there and waits for its outcome. ``owner`` is kept from
    being collected, which would close the connection.
    """

    _bridged = True

    def __init__(self, pool: SubscriptionPool, owner: object) -> None:
        super().__init__(pool.backend.backend)
        self._pool = pool
        self._owner = owner

    def __repr__(self) -> str:
        return f"<AsyncBackend {self.name}{' closed' if self._pool.closed else ''}>"

    def consume(
        self, keys: Keys = None, *, group: ConsumerGroup = None, prefetch: int | None = None
    ) -> MessageStream:
        loan = Loan(self._pool, self._pool.select(keys, group), prefetch, self._owner)
        return MessageStream.hosted(loan, self.capabilities)

    async def aclose(self) -> None:
        if not self._pool.closed:
            await self._run(self._pool.aclose())

    def _bind(self) -> None:
        self._pool.check_open()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        return self._pool.portal.bridge(coroutine)

    def _look(self, call: Callable[[], Coroutine[Any, Any, T]]) -> Coroutine[Any, Any, T]:
        return self._run(self._pool.look(call))
