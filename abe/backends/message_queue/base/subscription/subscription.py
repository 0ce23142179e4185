"""`Subscription`: one consumer's connection to a group; receives ahead, keeps leases, settles.

"Wait there, pop here": `Subscription.wait` runs on the subscription's loop and takes nothing, so
its result may be lost; `Subscription.pop` moves one message into the reader's hand in the reader's
own thread. It never acks by itself.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from abe.backends.message_queue.base.backoff import transient
from abe.backends.message_queue.base.log_records import log
from abe.backends.message_queue.base.receiver import Delivery
from abe.backends.message_queue.base.subscription.leases import clock_of
from abe.backends.message_queue.base.subscription.pump import Pump
from abe.backends.message_queue.base.subscription.reconnect import ask
from abe.errors import LoopError

__all__ = ["Subscription"]

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT = 10.0
OWNER_TIMEOUT = 1.0
"""Seconds that the end of the loop leaves to the owners of messages, to settle them."""

_live: set[Subscription] = set()
"""Event loops refer to tasks weakly; this keeps a dropped stream's subscription until it closed."""


class Subscription(Pump):
    """Receives ahead of its readers, keeps leases, records settlements, and closes in order.

    `pop`, `settle`, `finish`, `give_back` and `abandon` may be called in any thread, the others on
    the loop that first calls `start`.

    Args:
        factory: Makes the `Receiver`; called again after a lost connection.
        capabilities: What the backend declares.
        backend: The backend's name, for errors and the log.
        group: The consumer group, for the log.
        prefetch: Maximum number of messages to hold ahead of the readers; ``None`` = adaptive.
        max_hold: Longest time, in seconds, for which one message's lease is extended.
        on_opened: Called with this subscription when it first runs.
        on_closed: Called with it once everything is given back.

    Attributes:
        buffer: Received messages that no reader has yet.
        isolates: Whether a suspect waits until all received messages are settled, and nothing is
            handed over beside it.
        error: What ended it, if it failed permanently.
        stopping: Whether it takes no more.
    """

    surfaced = False
    _pump: asyncio.Task[None] | None = None
    _impatience: asyncio.TimerHandle | None = None
    _unattended = False

    # -- life -----------------------------------------------------------------------------

    def start(self) -> None:
        """Bind to the running loop and begin to connect; refuses another loop than before."""
        loop = asyncio.get_running_loop()
        if self.loop is loop:
            return
        if self.loop is not None:
            self._check_loop()
        if self.stopping:
            return
        self.loop = loop
        self.clock = clock_of(loop)
        self._ledger.start(loop)
        self._opened = loop.create_future()
        self._pump = loop.create_task(self._run(), name=f"abe-receive-{self.backend}")
        _live.add(self)
        if self._on_opened is not None:
            self._on_opened(self)

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self.loop:
            raise LoopError(
                f"this stream of backend {self.backend!r} runs on another event loop; "
                "call consume() on the loop that iterates"
            )

    async def open(self) -> None:
        """Return once the group exists."""
        self.start()
        if self._opened is not None:
            await asyncio.shield(self._opened)
            await self._raise_error()

    @property
    def here(self) -> bool:
        """Whether it still runs, in this process."""
        return self in _live and self._ledger.here

    @property
    def closing(self) -> bool:
        """Whether messages in a hand have been, or are being, given back."""
        return self._closing.is_set()

    async def close(self) -> None:
        """Release what is not settled, flush, disconnect. Safe to call twice, or at once."""
        if self.loop is None:
            self.stopping = True
        elif self in _live and not self.loop.is_closed():
            self._check_loop()
            self.begin_close()
            assert self._pump is not None
            await asyncio.wait([self._pump])

    async def aclose(self) -> None:
        """Close, and raise what ended the subscription if no call has raised it yet."""
        await self.close()
        if not self.surfaced:
            self.surface()

    def begin_close(self) -> None:
        """Start closing, from the subscription's loop."""
        if self in _live and not self.closing:
            assert self.loop is not None
            self._closing.set()
            self._ledger.drain()
            self._connection.give_up_after(0.9 * CLOSE_TIMEOUT if self._ledger.owes else 0.0)
            self._ledger.give_back(list(self._ledger.held))
            self.stop()
            self._impatience = self.loop.call_later(CLOSE_TIMEOUT, self._cancel_receive)

    def abandon(self) -> None:
        """Start closing, from any thread, when no reader refers to this any more."""
        if self in _live:
            assert self.loop is not None
            self._unattended = True
            try:
                self.loop.call_soon_threadsafe(self.begin_close)
            except RuntimeError:  # the loop is closed
                _live.discard(self)

    def _cancel_receive(self) -> None:
        text = "backend %s was still receiving %g s after wake(); cancelling it"
        self._log(logging.WARNING, text, CLOSE_TIMEOUT)
        assert self._pump is not None
        self._pump.cancel()

    async def _run(self) -> None:
        """The one task that calls ``receive``, and at last gives everything back."""
        try:
            await self._receive_all()
            await self._closing.wait()
            await self._wind_up()
        except asyncio.CancelledError:
            # asyncio.run() cancels every task before it closes the loop: the last chance to
            # give back what a forgotten stream holds.
            self._unattended = True
            self.stop()
            await self._await_owner()
            self.begin_close()
            await self._wind_up()
            raise

    async def _await_owner(self) -> None:
        """Give the owners of messages, which are being cancelled as well, time to settle them."""
        if any(delivery.owned for delivery in self._ledger.held):
            with suppress(TimeoutError):
                async with asyncio.timeout(OWNER_TIMEOUT):
                    await self._closing.wait()

    async def _wind_up(self) -> None:
        """Give everything back and disconnect; may be repeated after a cancellation."""
        for timer in (self._impatience, self._watch):
            if timer is not None:
                timer.cancel()
        await self._ledger.close(CLOSE_TIMEOUT)
        await self._leases.close()
        try:
            await self._connection.aclose()
        except Exception as error:  # a provider may raise anything, and it must not be swallowed
            self._fail(error)
        if self._unattended and not self.surfaced and self.error is not None:
            text = "a stream of backend %s failed, and no caller is left to see the error"
            self._log(logging.ERROR, text, error=self.error)
        _live.discard(self)
        if self._on_closed is not None:
            self._on_closed(self)

    def _log(
        self, level: int, text: str, *arguments: object, error: Exception | None = None
    ) -> None:
        fields = {"backend": self.backend}
        log(logger, level, text, self.backend, *arguments, extra=fields, error=error)

    async def _raise_error(self) -> None:
        if self.error is not None:
            await self.close()
            self.surface()

    def surface(self) -> None:
        """Raise what ended the subscription, if it failed permanently."""
        if self.error is not None:
            self.surfaced = True
            raise self.error

    # -- reading --------------------------------------------------------------------------

    def pop(self, hand: list[Delivery]) -> bool:
        """Move the next message into ``hand``, in any thread; False if there is none: `wait`."""
        if not self._ahead.pop(hand, self.clock()):
            return False
        if len(self.buffer) == self.prefetch.low:
            self._refill()
        self.prefetch.yielded += 1
        return True

    async def wait(
        self, wanted: int = 1, timeout: float | None = None, *, ask: bool = True
    ) -> bool:
        """Wait until `pop` has something; takes nothing itself, so it may be cancelled any time.

        Args:
            wanted: How many messages the reader wants soon.
            timeout: Seconds to wait; ``None`` waits without a limit.
            ask: Ask the broker even if ``timeout`` is 0, so that polling finds messages.

        Returns:
            False at the end of the stream, or after ``timeout``.

        Raises:
            Exception: What ended the subscription, if it failed permanently.
        """
        self.start()
        self._ledger.drain()
        self.prefetch.asked()
        deadline = None if timeout is None else self.clock() + timeout
        while not self._ready():
            if not self.closing:  # otherwise the error is for the one who closes
                await self._raise_error()
            if self.stopping:
                return False
            left = None if deadline is None else deadline - self.clock()
            if left is not None and left <= 0 and not ask:
                return False
            ask = False
            self._adapt()
            self._ledger.send()
            self._demand.set()
            if self._ahead.suspect:
                self._end_receive()
            try:
                await self._ahead.wait(wanted, left)
            finally:
                self._keep_watch()
        return True

    def _ready(self) -> bool:
        for delivery in self._ahead.remove_lapsed(self.clock()):
            self._ledger.lose(delivery)
            self._ledger.report_lost(delivery)
        if self._is_isolated():
            return False
        self._ahead.calm()
        return self._ahead.ready()

    def give_back(self, deliveries: list[Delivery]) -> None:
        """Put what was popped and is not settled back to the front, in any thread."""
        here = asyncio._get_running_loop() is self.loop
        if here:  # an interrupted reader may have recorded one and not have come to claim it
            self._ledger.drain()
        unsettled = [delivery for delivery in deliveries if not delivery.claims]
        for delivery in unsettled:
            delivery.owned = False
        self._ahead.put_back(unsettled)
        deliveries.clear()  # last: an interrupt must not lose them
        if not unsettled:
            return
        if here:
            self._look_again()
        elif self.loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(self._look_again)

    def _look_again(self) -> None:
        if self.stopping:
            self._release(self._ahead.remove_after(0))
        self._ahead.wake()
        self._keep_watch()

    async def begin(self, delivery: Delivery) -> int:
        """Record with the broker that handling begins; return how often it had begun before."""
        while not delivery.began:
            receiver = await self._connection.open()
            begin = getattr(receiver, "begin", None)
            if begin is None:
                return 0
            try:
                await ask(begin((delivery,)))
            except Exception as error:
                if not transient(error):
                    raise
                await self._connection.recover(receiver, error)
            else:
                delivery.began = True
        return delivery.begun

    async def flush(self) -> None:
        """Return once the broker has accepted everything recorded; raises what it refused."""
        if self in _live:
            self._check_loop()
            await self._ledger.flush()
        self.surface()
