"""The subscriptions of one `SyncBackend`: borrowed by readers, kept for the next one, closed."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeVar

from abe.backends.message_queue.base import (
    Delivery,
    KeyFilter,
    Keys,
    Message,
    MessageStream,
    Outcome,
    Subscription,
    validate_group,
)
from abe.backends.message_queue.base.capabilities import unsupported
from abe.backends.message_queue.base.closing import raise_failures
from abe.backends.message_queue.base.log_records import log
from abe.backends.message_queue.client import AsyncBackend
from abe.errors import BackendClosedError
from abe.sync.portal.protocol import Portal
from abe.types import ConsumerGroup

__all__ = ["Loan", "Selector", "SubscriptionPool"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

Selector = tuple[str | None, tuple[str, ...] | None]
"""A group and a key filter."""

SHORTEST_WAIT = 0.1
"""Seconds that even a timeout of 0 allows, so that messages the broker has ready can arrive."""
KEEP_OPEN = 1.0
"""Seconds for which a stream that no reader waits on stays open for the next call."""
BARRIER = 1.0
"""Longest time, in seconds, that a call waits for streams that are being given up."""


class Drainable(Protocol):
    """A background consumer, as the pool knows it."""

    @property
    def is_caller(self) -> bool:
        """Whether this is called by its own handler, which nothing may wait for there."""

    async def drain(self) -> None:
        """Shut down and return once it has ended."""


class SubscriptionPool:
    """The portal's side of a `SyncBackend`; all coroutines run on the portal.

    Attributes:
        workers: The running ones; they keep their `SyncBackend` from being collected.
        undelivered: Messages that were acked for a `take` that an interrupt then ended.
        retains: Whether streams are kept rather than closed, because the backend never redelivers
            the messages that a closed stream had received.
    """

    def __init__(self, portal: Portal, backend: AsyncBackend) -> None:
        self.portal = portal
        self.backend = backend
        self.loans: set[Loan] = set()
        self.workers: set[Drainable] = set()
        self.undelivered: dict[Selector, list[Message]] = {}
        self.retains = backend.capabilities.redelivery == "none"
        self.closed = False
        self._idle: dict[Selector, list[MessageStream]] = {}
        self._closing: set[asyncio.Task[Any]] = set()
        self._closer: asyncio.Task[Any] | None = None
        portal.closers.add(self.aclose)

    # -- streams ---------------------------------------------------------------------------

    def select(self, keys: Keys, group: ConsumerGroup) -> Selector:
        """Check the arguments of ``consume`` and ``take``, before anything is opened."""
        self.check_open()
        validate_group(group)
        if keys is None:
            return group, None
        if self.backend.capabilities.keys == "none":
            raise unsupported(self.backend.name, "consume(keys=…)", "keys")
        return group, KeyFilter(keys).patterns

    def borrow(self, selector: Selector, prefetch: int | None) -> MessageStream:
        """Return a stream that nobody else uses, one at rest if possible."""
        self.check_open()
        idle = self._idle.get(selector, [])
        # Those of `take` receive nothing ahead, which would hold up a loop.
        while idle and (prefetch == 1 or self.retains):
            stream = idle.pop()
            if not stream.closed:
                return stream
            self.in_background(stream.aclose())
        group, keys = selector
        return self.backend.consume(keys, group=group, prefetch=prefetch)

    def give_back(self, selector: Selector, stream: MessageStream, *, idle: bool) -> None:
        """Take back a stream with nothing in hand; keep it if it is idle, else close it.

        A backend that never delivers again gets neither: its stream may hold what was put back,
        which only the next call for this selector can have.
        """
        if self.closed or stream.closed or not (idle or self.retains):
            self.in_background(stream.aclose())
            return
        self._idle.setdefault(selector, []).append(stream)
        if not (idle and self.retains):
            asyncio.get_running_loop().call_later(KEEP_OPEN, self._expire, selector, stream)

    def _expire(self, selector: Selector, stream: MessageStream) -> None:
        idle = self._idle.get(selector, [])
        if stream in idle:
            idle.remove(stream)
            self.in_background(self._close_unless_holding(selector, stream))

    async def _close_unless_holding(self, selector: Selector, stream: MessageStream) -> None:
        if self.retains and await stream.subscription.wait(1, 0.0):
            self._idle.setdefault(selector, []).append(stream)
        else:
            await stream.aclose()

    async def take(
        self,
        selector: Selector,
        n: int,
        timeout: float | None,
        quiet: float | None = None,
    ) -> list[Message]:
        """Wait for up to ``n`` messages and ack them; cancelled before that, it takes none."""
        self.check_open()
        kept = self.claim_kept(selector, n)
        if len(kept) == n:
            return kept
        try:
            stream, taken = await self.receive(selector, n - len(kept), timeout, quiet)
        except BaseException:
            self.keep(selector, kept)
            raise
        try:
            await self.finish(stream, taken)
        except BaseException:
            self.keep(selector, kept)
            raise
        finally:
            self.give_back(selector, stream, idle=len(kept) + len(taken) == n)
        return kept + taken

    async def receive(
        self,
        selector: Selector,
        n: int,
        timeout: float | None,
        quiet: float | None = None,
    ) -> tuple[MessageStream, list[Message]]:
        """Borrow a stream and wait for up to ``n`` messages, which are not acked."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        await self.barrier(timeout)
        stream = self.borrow(selector, 1)
        try:
            left = None if deadline is None else max(deadline - loop.time(), SHORTEST_WAIT)
            return stream, await stream.take(n, left, quiet=quiet)
        except BaseException:
            self.give_back(selector, stream, idle=False)
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
            self._closing.add(flush)
            flush.add_done_callback(self._left)
            return
        flush.result()

    def keep(self, selector: Selector, messages: Sequence[Message]) -> None:
        """Keep acked messages that did not reach the caller; the next `take` returns them first."""
        if messages:
            self.undelivered[selector] = [*messages, *self.undelivered.get(selector, [])]

    def claim_kept(self, selector: Selector, n: int | None) -> list[Message]:
        kept = self.undelivered.pop(selector, [])
        if n is not None and len(kept) > n:
            self.undelivered[selector] = kept[n:]
        return kept[:n]

    async def look(self, method: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Call a method that shows or changes the backlog, after what was given up is back."""
        self.check_open()
        await self.barrier()
        return await method()

    # -- life ------------------------------------------------------------------------------

    def check_open(self) -> None:
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
        self._closing.add(task)
        task.add_done_callback(self._left)

    def _left(self, task: asyncio.Task[Any]) -> None:
        self._closing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            text = "giving up a stream of backend %s failed: %s"
            name = self.backend.name
            log(logger, logging.WARNING, text, name, error, extra={"backend": name})

    async def barrier(self, timeout: float | None = None) -> None:
        """Wait until what was given up before is back with the broker, within reason."""
        if self._closing:
            patience = BARRIER if timeout is None else min(BARRIER, timeout)
            await asyncio.wait(list(self._closing), timeout=patience)

    def begin_close(self) -> None:
        if self._closer is None:
            self._closer = asyncio.get_running_loop().create_task(self._close())
            self._closer.add_done_callback(self._left)

    async def aclose(self) -> None:
        """Close; called from the handler of a worker, only begin to: the handler is waited for."""
        self.begin_close()
        assert self._closer is not None
        if any(worker.is_caller for worker in self.workers):
            return
        await asyncio.shield(self._closer)

    async def _close(self) -> None:
        while self.workers:  # their handlers may use this connection to the end
            await asyncio.gather(*(worker.drain() for worker in self.workers))
        self.closed = True
        idle = [stream for streams in self._idle.values() for stream in streams]
        self._idle.clear()
        ends: list[Coroutine[Any, Any, object]] = [loan.leave([]) for loan in list(self.loans)]
        ends += [stream.aclose() for stream in idle]
        results = await asyncio.gather(*ends, return_exceptions=True)
        while self._closing:
            await asyncio.wait(list(self._closing))
        try:
            results += await asyncio.gather(self.backend.aclose(), return_exceptions=True)
        finally:
            self.portal.closers.discard(self.aclose)
        raise_failures(results)


class Loan:
    """A reader's hold on a subscription of the pool, opened when it is first needed.

    The host of a `MessageStream` on another loop, and of the readers of the synchronous facade;
    ``owner`` is kept from being collected, which would close the connection.
    """

    pop: Callable[[list[Delivery]], bool]

    def __init__(
        self,
        pool: SubscriptionPool,
        selector: Selector,
        prefetch: int | None = None,
        owner: object = None,
    ) -> None:
        self.subscription: Subscription | None = None
        self.pop = _nothing
        self._pool = pool
        self._selector = selector
        self._prefetch = prefetch
        self._owner = owner
        self._stream: MessageStream | None = None
        self._kept: deque[Delivery] = deque()
        self._asking = False
        self._opened = False

    # -- the reader ------------------------------------------------------------------------

    @property
    def backend(self) -> str:
        return self._pool.backend.name

    def run(self, coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        return self._pool.portal.bridge(coroutine)

    def enter(self) -> None:
        """Accept a reader on any loop."""

    def renew(self, hand: list[Delivery]) -> Loan:
        """Let go of the subscription and the hand at once; return a loan for the next call."""
        self._pool.portal.post(self.begin_leave, hand)
        return Loan(self._pool, self._selector, self._prefetch, self._owner)

    def forget(self, hand: list[Delivery], stream: object) -> None:
        self._pool.portal.post_from_finalizer(partial(self.begin_leave, hand))

    def _pop_kept(self, hand: list[Delivery]) -> bool:
        if self._kept:
            hand.extend(islice(iter(self._kept.popleft, None), 1))
            return True
        assert self.subscription is not None
        self.pop = self.subscription.pop
        return self.pop(hand)

    # -- the portal ------------------------------------------------------------------------

    async def open(self) -> None:
        if self._stream is not None or (self._opened and self._pool.closed):
            return
        self._opened = True
        self._stream = self._pool.borrow(self._selector, self._prefetch)
        self.subscription = self._stream.subscription
        self.subscription.start()
        self._pool.loans.add(self)
        for message in self._pool.claim_kept(self._selector, None):
            delivery = Delivery(message, None)
            delivery.claims.append(Outcome.ACK.code)
            self._kept.append(delivery)
        self.pop = self._pop_kept if self._kept else self.subscription.pop

    async def connect(self) -> None:
        await self.open()
        assert self.subscription is not None
        await self.subscription.open()

    async def wait(self, timeout: float | None) -> bool:
        """Wait until `pop` has something; False at the end, or after ``timeout`` seconds."""
        await self.open()
        if self._kept:
            return True
        if self.subscription is None:  # the backend was closed
            return False
        self._asking = True  # and so it stays if nothing comes, or this is cancelled
        patience = None if timeout is None else max(timeout, SHORTEST_WAIT)
        arrived = await self.subscription.wait(1, patience)
        self._asking = not arrived
        return arrived

    def begin_leave(self, hand: list[Delivery]) -> None:
        self._pool.in_background(self.leave(hand))

    async def leave(self, hand: list[Delivery]) -> None:
        stream, subscription = self._stream, self.subscription
        self._stream = self.subscription = None
        self.pop = _nothing
        self._pool.loans.discard(self)
        self._pool.keep(self._selector, [delivery.message for delivery in self._kept])
        self._kept.clear()
        if stream is None or subscription is None:
            return
        if self._pool.retains:
            subscription.give_back(hand)
            self._pool.give_back(self._selector, stream, idle=not self._asking)
        else:
            await stream.aclose()


def _nothing(hand: list[Delivery]) -> bool:
    return False
