"""What ``consume`` and ``batch`` of the synchronous facade return."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Self

from abe.backends.message_queue.base import Delivery, Message, MessageStream, SyncMessage
from abe.backends.message_queue.base.closing import ExitGuard
from abe.backends.message_queue.base.process import Unshareable
from abe.errors import BackendClosedError
from abe.sync.pool import Loan, Selector, SubscriptionPool
from abe.sync.portal import Portal

__all__ = ["SyncBatch", "SyncStream"]


class SyncStream(Unshareable, Iterator[SyncMessage]):
    """A plain iterator over the messages of a group, settling on resume.

    Asking for the next message acks the previous one; so does reaching ``limit`` or waiting
    longer than ``timeout``, which end the loop. Leaving the loop by ``break`` or an exception
    does not: the message in hand is released. After an interrupt the iterator can be used again.

    For one thread at a time. The ``with`` statement opens it at once (the group then exists) and
    closes it; without, it is closed when the loop is over or the iterator is collected.

    Attributes:
        timeout: Longest wait for the next message, in seconds; may be changed.
    """

    def __init__(
        self, portal: Portal, loan: Loan, limit: int | None, timeout: float | None
    ) -> None:
        self._portal = portal
        self._loan = loan
        self._hand: list[Delivery] = []
        self._limit = limit
        self.timeout = timeout
        self._count = 0
        self._ended = False
        self._turn = threading.Lock()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> SyncMessage:
        """Ack the message in hand and return the next one, blocking until there is one.

        Raises:
            StopIteration: After ``limit`` messages, or none within ``timeout``, or when closed.
            RuntimeError: If another thread is waiting on this iterator.
            AbeError: What ended the stream, if the broker refused it permanently.
        """
        __tracebackhide__ = True
        if self._turn.locked():
            raise RuntimeError(
                "another thread is waiting on this iterator; call consume() in each thread"
            )
        try:
            with self._turn:
                return self._advance()
        except StopIteration:
            raise
        except BaseException:
            self._let_go()
            raise

    def _advance(self) -> SyncMessage:
        __tracebackhide__ = True
        loan, hand = self._loan, self._hand
        if hand:
            if loan.subscription is not None:
                loan.subscription.finish(hand)
            hand.clear()
        if self._ended or self._count == self._limit:
            self.close()
            raise StopIteration
        while not loan.pop(hand):
            if not self._portal.call(loan.wait(self.timeout)):
                self.close()
                raise StopIteration
        self._count += 1
        return SyncMessage(hand[-1].message)

    def _let_go(self) -> None:
        """Let others have the messages, in case this reader does not come back.

        This thread lets go before its next step: it must not pop from a stream that is closing.
        """
        hand, self._hand = self._hand, []
        self._loan = self._loan.renew(hand)

    def close(self) -> None:
        """Release the message in hand and those buffered after it; closing twice is fine.

        Blocks until the broker knows.

        Raises:
            AbeError: If a settlement failed permanently and no call has raised that yet.
        """
        __tracebackhide__ = True
        if self._ended:
            return
        try:
            with suppress(BackendClosedError):  # the interpreter is exiting: that closes it too
                self._portal.call(self._loan.leave(self._hand))
            self._ended = True
        except BaseException:
            self._let_go()
            raise

    def __enter__(self) -> Self:
        __tracebackhide__ = True
        self._portal.call(self._loan.connect())
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        __tracebackhide__ = True
        with ExitGuard(kind, "a stream of backend", self._loan.backend):
            self.close()

    def __del__(self) -> None:
        if not self._ended:
            self._loan.forget(self._hand, self)


class SyncBatch(Unshareable):
    """A context manager: takes messages, acks them on a clean exit, releases them otherwise.

    Messages settled one by one inside the block stay as they were settled.
    """

    def __init__(
        self,
        owner: object,
        pool: SubscriptionPool,
        selector: Selector,
        n: int,
        timeout: float | None,
    ) -> None:
        self._owner = owner
        self._pool = pool
        self._selector = selector
        self._n = n
        self._timeout = timeout
        self._stream: MessageStream | None = None
        self._messages: list[Message] = []

    def __enter__(self) -> list[SyncMessage]:
        """Wait for ``n`` messages, at most ``timeout`` seconds; return those that came."""
        __tracebackhide__ = True
        if self._stream is not None:
            raise RuntimeError("this batch is already open; call batch() again")
        call = self._pool.portal.call
        try:
            call(self._receive())
            return [SyncMessage(message) for message in self._messages]
        except BaseException:
            self._pool.portal.post(self._release)
            raise

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        __tracebackhide__ = True
        try:
            if kind is None:
                self._pool.portal.call(self._ack())
        finally:
            self._pool.portal.post(self._release)

    def __del__(self) -> None:
        if self._stream is not None:
            self._pool.portal.post_from_finalizer(self._release)

    # The stream changes hands on the portal only, where no interrupt can fall in between.

    async def _receive(self) -> None:
        self._stream, self._messages = await self._pool.receive(
            self._selector, self._n, self._timeout
        )

    async def _ack(self) -> None:
        stream, self._stream = self._stream, None
        if stream is None:
            return
        try:
            await self._pool.finish(stream, self._messages)
        finally:
            idle = len(self._messages) == self._n
            self._pool.give_back(self._selector, stream, idle=idle)

    def _release(self) -> None:
        """Give everything back, if that is still to be done; the next call waits for it."""
        stream, self._stream = self._stream, None
        if stream is None:
            return
        if self._pool.retains:
            for message in reversed(self._messages):
                stream.unread(message)
        self._pool.give_back(self._selector, stream, idle=False)
