"""What ``consume`` and ``batch`` of the synchronous facade return."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from abe.backends.message_queue.base import Message, MessageStream, SyncMessage
from abe.errors import BackendClosedError
from abe.sync.feed import BATCH, Feed

if TYPE_CHECKING:
    from abe.sync.backend import SyncBackend
    from abe.sync.home import Home, Place

__all__ = ["SyncBatch", "SyncStream"]


class SyncStream(Iterator[SyncMessage]):
    """A plain iterator over the messages of a group, settling on resume.

    Asking for the next message acks the previous one; so does reaching ``limit`` or waiting
    longer than ``timeout``, which end the loop. Leaving the loop by ``break`` or an exception
    does not: the message in hand comes back. After an interrupt the iterator can be used again.

    For one thread at a time. The ``with`` statement opens it at once (the group then exists) and
    closes it; without, it is closed when the loop is over or the iterator is collected.
    """

    def __init__(
        self, owner: SyncBackend, feed: Feed, limit: int | None, timeout: float | None
    ) -> None:
        self._owner = owner  # keeps the connection open
        self._feed = feed
        self._limit = limit
        self._timeout = timeout
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
            AbeError: What ended the stream, if the broker refused it for good.
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
            # Nobody may come back for what has arrived: let others have it meanwhile.
            self._feed.abandon()
            raise

    def _advance(self) -> SyncMessage:
        __tracebackhide__ = True
        feed = self._feed
        feed.resume()
        if self._ended or self._count == self._limit:
            self.close()
            raise StopIteration
        message = feed.hand_over()
        while message is None:
            most = BATCH if self._limit is None else min(BATCH, self._limit - self._count)
            if not feed.home.portal.call(feed.refill(most, self._timeout)):
                self.close()
                raise StopIteration
            message = feed.hand_over()
        self._count += 1
        return SyncMessage(message, feed.call)

    def close(self) -> None:
        """Give back the message in hand and what has arrived after it; closing twice is fine.

        Blocks until the broker knows.

        Raises:
            AbeError: If a settlement failed for good and no call has raised that yet.
        """
        __tracebackhide__ = True
        if self._ended:
            return
        try:
            with suppress(BackendClosedError):  # the interpreter is exiting: that closes it too
                self._feed.home.portal.call(self._feed.close())
            self._ended = True
        except BaseException:
            self._feed.abandon()
            raise

    def __enter__(self) -> Self:
        __tracebackhide__ = True
        self._feed.home.portal.call(self._feed.open())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        __tracebackhide__ = True
        self.close()

    def __del__(self) -> None:
        if not self._ended:
            self._feed.home.portal.post_from_finalizer(self._feed.begin_close)


class SyncBatch:
    """A context manager: takes messages, acks them on a clean exit, releases them otherwise.

    Messages settled one by one inside the block stay as they were settled.
    """

    def __init__(
        self, owner: SyncBackend, home: Home, place: Place, n: int, timeout: float | None
    ) -> None:
        self._owner = owner
        self._home = home
        self._place = place
        self._n = n
        self._timeout = timeout
        self._stream: MessageStream | None = None
        self._messages: list[Message] = []

    def __enter__(self) -> list[SyncMessage]:
        """Wait for ``n`` messages, at most ``timeout`` seconds; return those that came."""
        __tracebackhide__ = True
        if self._stream is not None:
            raise RuntimeError("this batch is already open; call batch() again")
        call = self._home.portal.call
        try:
            call(self._receive())
            return [SyncMessage(message, call) for message in self._messages]
        except BaseException:
            self._home.portal.post(self._release)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        __tracebackhide__ = True
        try:
            if kind is None:
                self._home.portal.call(self._ack())
        finally:
            self._home.portal.post(self._release)

    def __del__(self) -> None:
        if self._stream is not None:
            self._home.portal.post_from_finalizer(self._release)

    # The stream changes hands on the portal only, where no interrupt can fall in between.

    async def _receive(self) -> None:
        self._stream, self._messages = await self._home.receive(self._place, self._n, self._timeout)

    async def _ack(self) -> None:
        stream, self._stream = self._stream, None
        if stream is None:
            return
        try:
            await self._home.finish(stream, self._messages)
        finally:
            at_rest = len(self._messages) == self._n
            self._home.give_back(self._place, stream, at_rest=at_rest)

    def _release(self) -> None:
        """Give everything back, if that is still to be done; the next call waits for it."""
        stream, self._stream = self._stream, None
        if stream is None:
            return
        if self._home.retains:
            for message in reversed(self._messages):
                stream.unread(message)
        self._home.give_back(self._place, stream, at_rest=False)
