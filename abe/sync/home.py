"""What lives on the portal for one `SyncBackend`: the backend, its streams and its workers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from abe.backends.message_queue.base import KeyFilter, Message, MessageStream, validate_group
from abe.backends.message_queue.base.capabilities import unsupported
from abe.errors import BackendClosedError
from abe.types import ConsumerGroup

if TYPE_CHECKING:
    from abe.backends.message_queue.client import AsyncBackend
    from abe.sync.feed import Feed
    from abe.sync.portal import Portal
    from abe.sync.worker import Worker

__all__ = ["Home", "Place", "place_of"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

Place = tuple[str | None, tuple[str, ...] | None]
"""A group and a key filter."""

SHORTEST_WAIT = 0.1
"""Seconds that even a timeout of 0 allows, so that what the broker has ready can arrive."""
KEEP_OPEN = 1.0
"""Seconds for which a stream that nobody waits on stays open for the next call."""
BARRIER = 1.0
"""Longest time, in seconds, that a call waits for streams that are being given up."""


def place_of(
    backend: AsyncBackend, keys: Sequence[str] | str | None, group: ConsumerGroup
) -> Place:
    """Check what ``consume`` and ``take`` are asked for, before anything is opened.

    Raises:
        InvalidKeyError: If ``group`` or a filter is malformed.
        UnsupportedError: If ``keys`` is given and the backend cannot filter.
    """
    validate_group(group)
    if keys is None:
        return group, None
    if backend.capabilities.keys == "none":
        raise unsupported(backend.name, "consume(keys=…)", "keys")
    return group, KeyFilter(keys).patterns


class Home:
    """The portal's side of a `SyncBackend`; all coroutines run on the portal.

    Args:
        portal: The event loop.
        backend: The backend that it owns from now on.

    Attributes:
        feeds: The open ones.
        workers: The running ones; they keep their `SyncBackend` from being collected.
        stash: Messages that were acked for a `take` that an interrupt then ended.
        retains: Whether streams are kept rather than closed, because the backend never delivers
            again what a closed stream had received.
    """

    def __init__(self, portal: Portal, backend: AsyncBackend) -> None:
        self.portal = portal
        self.backend = backend
        self.feeds: set[Feed] = set()
        self.workers: set[Worker] = set()
        self.stash: dict[Place, list[Message]] = {}
        self.retains = backend.capabilities.redelivery == "none"
        self.closed = False
        self._at_rest: dict[Place, list[MessageStream]] = {}
        self._leaving: set[asyncio.Task[Any]] = set()
        self._closer: asyncio.Task[Any] | None = None
        portal.closers.add(self.aclose)

    # -- streams ---------------------------------------------------------------------------

    def borrow(self, place: Place, prefetch: int | None) -> MessageStream:
        """Return a stream that nobody else uses, one at rest if possible."""
        self.check_open()
        resting = self._at_rest.get(place, [])
        while resting:
            stream = resting.pop()
            if not stream.closed:
                return stream
            self.in_background(stream.aclose())
        group, keys = place
        return self.backend.consume(keys, group=group, prefetch=prefetch)

    def give_back(self, place: Place, stream: MessageStream, *, at_rest: bool) -> None:
        """Take a stream back; keep it if it is at rest, else close it.

        A backend that never delivers again gets neither: its stream may hold what was put back,
        which only the next call for this place can have.

        Args:
            place: What it was borrowed for.
            stream: The stream, with nothing in hand.
            at_rest: Whether it waits for nothing and holds nothing that others could have.
        """
        if self.closed or stream.closed or not (at_rest or self.retains):
            self.in_background(stream.aclose())
            return
        self._at_rest.setdefault(place, []).append(stream)
        if not (at_rest and self.retains):
            asyncio.get_running_loop().call_later(KEEP_OPEN, self._expire, place, stream)

    def _expire(self, place: Place, stream: MessageStream) -> None:
        resting = self._at_rest.get(place, [])
        if stream in resting:
            resting.remove(stream)
            self.in_background(self._close_unless_holding(place, stream))

    async def _close_unless_holding(self, place: Place, stream: MessageStream) -> None:
        held = await stream.take(1, 0.0) if self.retains else []
        if held and stream.unread(held[0]):
            self._at_rest.setdefault(place, []).append(stream)
        else:
            await stream.aclose()

    async def take(
        self,
        place: Place,
        n: int,
        timeout: float | None,
        quiet: float | None = None,
    ) -> list[Message]:
        """Wait for up to ``n`` messages and ack them; cancelled before that, it takes none."""
        self.check_open()
        kept = self.unstash(place, n)
        if len(kept) == n:
            return kept
        try:
            stream, taken = await self.receive(place, n - len(kept), timeout, quiet)
        except BaseException:
            self.stash_away(place, kept)
            raise
        try:
            await self.finish(stream, taken)
        finally:
            self.give_back(place, stream, at_rest=len(kept) + len(taken) == n)
        return kept + taken

    async def receive(
        self,
        place: Place,
        n: int,
        timeout: float | None,
        quiet: float | None = None,
    ) -> tuple[MessageStream, list[Message]]:
        """Borrow a stream and wait for up to ``n`` messages, which are not acked."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        await self.barrier(timeout)
        stream = self.borrow(place, 1)
        try:
            left = None if deadline is None else max(deadline - loop.time(), SHORTEST_WAIT)
            return stream, await stream.take(n, left, quiet=quiet)
        except BaseException:
            self.give_back(place, stream, at_rest=False)
            raise

    async def finish(self, stream: MessageStream, messages: Sequence[Message]) -> None:
        """Ack what is not settled and wait until the broker knows; a cancellation ends the wait."""
        for message in messages:
            if message.outcome is None:
                await message.ack()
        flush = asyncio.ensure_future(stream.flush())
        try:
            await asyncio.wait([flush])
        except asyncio.CancelledError:
            # The acks are recorded, so the messages must reach somebody: no second thoughts.
            self._leaving.add(flush)
            flush.add_done_callback(self._left)
            return
        flush.result()

    def stash_away(self, place: Place, messages: Sequence[Message]) -> None:
        """Keep acked messages that did not reach the caller; the next `take` returns them first."""
        if messages:
            self.stash[place] = [*messages, *self.stash.get(place, [])]

    def unstash(self, place: Place, n: int) -> list[Message]:
        """Return up to ``n`` messages that were acked and then not handed over."""
        kept = self.stash.pop(place, [])
        if len(kept) > n:
            self.stash[place] = kept[n:]
        return kept[:n]

    async def look(self, method: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Call a method that shows or changes the backlog, after what was given up is back."""
        self.check_open()
        await self.barrier()
        return await method()

    # -- life ------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Raise if the backend was closed.

        Raises:
            BackendClosedError: If it was.
        """
        if self.closed:
            if self.portal.exiting:
                raise self.portal.refusal()
            raise BackendClosedError(
                f"this connection to backend {self.backend.name!r} is closed; "
                "call abe.connect() again"
            )

    def in_background(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Run ``coroutine``; the next `barrier` waits for it, and its error goes to the log."""
        if self.portal.refuses:  # all is closed, and the loop may stop any moment
            coroutine.close()
            return
        task = asyncio.get_running_loop().create_task(coroutine)
        self._leaving.add(task)
        task.add_done_callback(self._left)

    def _left(self, task: asyncio.Task[Any]) -> None:
        self._leaving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning(
                "giving up a stream of backend %s failed: %s",
                self.backend.name,
                error,
                extra={"backend": self.backend.name},
            )

    async def barrier(self, timeout: float | None = None) -> None:
        """Wait until what was given up before is back with the broker, within reason."""
        if self._leaving:
            patience = BARRIER if timeout is None else min(BARRIER, timeout)
            await asyncio.wait(list(self._leaving), timeout=patience)

    def begin_close(self) -> None:
        """Start closing, if that was not done before."""
        if self._closer is None:
            self._closer = asyncio.get_running_loop().create_task(self._close())
            self._closer.add_done_callback(self._left)

    async def aclose(self) -> None:
        """Stop the workers, give back what is not settled, disconnect; idempotent.

        Called from the handler of a worker, it only begins that: the handler is waited for.
        """
        self.begin_close()
        assert self._closer is not None
        if any(worker.is_caller for worker in self.workers):
            return
        await asyncio.shield(self._closer)

    async def _close(self) -> None:
        while self.workers:  # their handlers may use this connection to the end
            await asyncio.gather(*(worker.drain() for worker in self.workers))
        self.closed = True
        resting = [stream for streams in self._at_rest.values() for stream in streams]
        self._at_rest.clear()
        ends: list[Coroutine[Any, Any, object]] = [feed.close() for feed in self.feeds]
        ends += [stream.aclose() for stream in resting]
        results = await asyncio.gather(*ends, return_exceptions=True)
        while self._leaving:
            await asyncio.wait(list(self._leaving))
        try:
            await self.backend.aclose()
        finally:
            self.portal.closers.discard(self.aclose)
        for result in results:
            if isinstance(result, BaseException):
                raise result
