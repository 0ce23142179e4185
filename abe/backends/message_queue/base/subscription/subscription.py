"""`Subscription`: one consumer's connection to a group; receives ahead, keeps leases, settles.

"Wait there, pop here": `Subscription.wait` runs on the subscription's loop and takes nothing, so
its result may be lost; `Subscription.pop` moves one message into the reader's hand in the reader's
own thread. It never acks by itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from abe.backends.message_queue.base.backoff import transient
from abe.backends.message_queue.base.capabilities import Capabilities, check_settlement
from abe.backends.message_queue.base.log import log
from abe.backends.message_queue.base.outcome import Outcome
from abe.backends.message_queue.base.receiver import Delivery, EndOfStream, Receiver, Settlement
from abe.backends.message_queue.base.subscription.leases import LeaseExtender, clock_of
from abe.backends.message_queue.base.subscription.ledger import Ledger
from abe.backends.message_queue.base.subscription.prefetch import MAX_PREFETCH
from abe.backends.message_queue.base.subscription.read_ahead import ReadAhead
from abe.backends.message_queue.base.subscription.reconnect import ReconnectingReceiver, ask
from abe.errors import ConfigurationError, LoopError
from abe.types import ConsumerGroup

__all__ = ["Subscription"]

logger = logging.getLogger(__name__)

RECEIVE_TIMEOUT = 20.0
CLOSE_TIMEOUT = 10.0
OWNER_TIMEOUT = 1.0
"""Seconds that the end of the loop leaves to the owners of messages, to settle them."""
KEEP_OPEN = 1.0
"""Seconds after which a reader that neither waits nor took anything since is taken to be gone."""

_live: set[Subscription] = set()
"""Event loops refer to tasks weakly; this keeps a dropped stream's subscription until it closed."""


class Subscription:
    """Receives ahead of its readers, keeps leases, records settlements, and closes in order.

    `pop`, `settle`, `finish`, `give_back` and `abandon` may be called in any thread, the others on
    the loop that first calls `start`.

    Args:
        factory: Makes a receiver; called again after a lost connection.
        capabilities: What the backend declares.
        backend: The backend's name, for errors and the log.
        group: The consumer group, for the log.
        prefetch: Maximum number of messages to hold ahead of the readers; ``None`` = adaptive.
        max_hold: Seconds for which the lease of one message is extended.
        on_opened: Called with this subscription when it first runs.
        on_closed: Called with it once everything is given back.

    Attributes:
        buffer: Received messages that no reader has yet.
        error: What ended it, if it failed permanently.
        stopping: Whether it takes no more.
    """

    def __init__(
        self,
        factory: Callable[[], Receiver],
        *,
        capabilities: Capabilities,
        backend: str,
        group: ConsumerGroup,
        prefetch: int | None,
        max_hold: float,
        on_opened: Callable[[Subscription], None] | None,
        on_closed: Callable[[Subscription], None] | None,
    ) -> None:
        if prefetch is None:
            prefetch = 1 if capabilities.attempts == "upper" else MAX_PREFETCH
        elif prefetch < 1:
            raise ConfigurationError(f"prefetch is {prefetch}; it must be at least 1")
        self.capabilities = capabilities
        self.backend = backend
        self.group = group
        self.loop: asyncio.AbstractEventLoop | None = None
        self.clock: Callable[[], float] = float
        self.error: Exception | None = None
        self.surfaced = False
        self.stopping = False
        self._ahead = ReadAhead(prefetch)
        self.buffer = self._ahead.buffer
        self.pace = self._ahead.pace
        self._connection = ReconnectingReceiver(factory, backend, self._drop_buffer)
        self._ledger = Ledger(
            capabilities,
            backend,
            group,
            self._connection,
            on_settled=self._settled,
            on_failure=self._fail,
        )
        self.finish = self._ledger.finish
        self._leases = LeaseExtender(
            self._connection,
            self._ledger,
            max_hold,
            on_tick=self._shed,
            on_lost=self._lost,
            on_failure=self._fail,
        )
        self._on_opened = on_opened
        self._on_closed = on_closed
        self._demand = asyncio.Event()
        self._keep: int | None = None
        """How many buffered messages the next turn of the pump leaves."""
        self._returned = False
        """Whether released messages have to be back before the next receive, for the order."""
        self._pump: asyncio.Task[None] | None = None
        self._opened: asyncio.Future[None] | None = None
        self._closing = asyncio.Event()
        self._impatience: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._waited = 0.0
        self._seen = 0
        self._unattended = False

    # -- life ------------------------------------------------------------------------------

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

    def stop(self) -> None:
        """Take no more: waiting readers see the end, buffered messages are released.

        Messages in a hand can still be settled, until `aclose`.
        """
        self.stopping = True
        self._demand.set()
        if self._opened is not None and not self._opened.done():
            self._opened.set_result(None)
        self._end_receive()
        self._release(self._ahead.remove_after(0))
        self._ahead.wake_all()

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

    # -- receiving -------------------------------------------------------------------------

    async def _receive_all(self) -> None:
        assert self._opened is not None
        try:
            if not self.stopping:
                await self._connection.open()
            if not self._opened.done():
                self._opened.set_result(None)
            while not self.stopping:
                await self._receive()
        except EndOfStream:
            self.stopping = True
        except Exception as error:  # a provider may raise anything; the reader must see it
            if not transient(error):  # retries are given up only while closing: no reader waits
                self._fail(error)
        finally:
            if not self._opened.done():
                self._opened.set_result(None)
            self._ahead.wake_all()

    async def _receive(self) -> None:
        """Give back what is surplus, then receive once, or wait for demand."""
        await self._make_room()
        receiver = await self._connection.open()
        if self.stopping:
            return  # a receiver opened since then has not been told to wake
        room = self.pace.room(len(self.buffer), self._ahead.wanted)
        if room == 0 or self._ahead.suspect:
            self._demand.clear()
            if not self._ahead.suspect or not self._ahead.waiting:
                await self._demand.wait()
            return
        try:
            deliveries = await ask(receiver.receive(room, RECEIVE_TIMEOUT))
        except Exception as error:
            if not transient(error):
                raise
            await self._connection.recover(receiver, error)
            return
        self._connection.confirm()
        self._arrived(deliveries)
        if receiver is not self._connection.receiver:
            self._drop_buffer()

    async def _make_room(self) -> None:
        """Release what the readers will not ask for soon, and all behind a suspect.

        Done between two calls of ``receive``, and waited for: otherwise a receive that is out
        would overtake the messages that are on their way back.
        """
        keep, self._keep = self._keep, None
        isolate = self._ahead.suspect and self._ahead.waiting
        if isolate:
            keep = 1
        if keep is not None and self.capabilities.release:
            self._release(self._ahead.remove_after(keep))
        if self._returned or isolate:
            self._returned = False
            await self._ledger.flush()
        if isolate and self._ahead.suspect:
            self._ahead.approved = self.buffer[0]
            self._ahead.wake()

    def _end_receive(self) -> None:
        if self._connection.receiver is not None:
            self._connection.receiver.wake()

    def _arrived(self, deliveries: Sequence[Delivery]) -> None:
        if not deliveries:
            return
        now = self.clock()
        deadline = now + self._leases.seconds if self._leases.lapse else float("inf")
        held = self._ledger.held
        for delivery in deliveries:
            delivery.subscription = self
            delivery.since = now
            delivery.deadline = deadline
            delivery.message._delivery = delivery
            held[delivery] = None
        self._ahead.add(deliveries)
        if self.stopping:
            self._release(self._ahead.remove_after(0))
        if not self._leases.ticking:
            self.pace.begin()
            self._leases.begin()
        self._ahead.wake()

    # -- handing over ----------------------------------------------------------------------

    def pop(self, hand: list[Delivery]) -> bool:
        """Move the next message into ``hand``, in any thread; False if there is none: `wait`."""
        if not self._ahead.pop(hand, self.clock()):
            return False
        if len(self.buffer) == self.pace.low:
            self._refill()
        self.pace.yielded += 1
        return True

    def _refill(self) -> None:
        if asyncio._get_running_loop() is self.loop:
            self._adapt()
            self._demand.set()
        elif self.loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(self._refill)

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
        self.pace.asked()
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
        self._ahead.calm()
        return self._ahead.ready()

    def give_back(self, deliveries: list[Delivery]) -> None:
        """Put what was popped and not handed over back to the front, in any thread."""
        if not deliveries:
            return
        for delivery in deliveries:
            delivery.owned = False
        self._ahead.put_back(deliveries)
        deliveries.clear()
        if asyncio._get_running_loop() is self.loop:
            self._look_again()
        elif self.loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(self._look_again)

    def _look_again(self) -> None:
        self._ahead.add(())
        if self.stopping:
            self._release(self._ahead.remove_after(0))
        self._ahead.wake()
        self._keep_watch()

    def _adapt(self) -> None:
        self.pace.adapt(self.clock(), self._leases.seconds)

    def _shed(self) -> None:
        """Let the pump release buffered messages that no reader will ask for soon."""
        if not self.capabilities.release:
            return
        keep = self.pace.tick(
            len(self.buffer), self.clock(), self._leases.seconds, waiting=self._ahead.waiting
        )
        if keep < len(self.buffer):
            self._shrink(keep)

    def _shrink(self, keep: int) -> None:
        self._keep = keep
        self._demand.set()
        self._end_receive()

    def _keep_watch(self) -> None:
        """Notice a reader that was cancelled, or whose loop was closed, while it waited."""
        assert self.loop is not None
        self._waited, self._seen = self.loop.time(), self.pace.yielded
        if self._watch is None and not self.stopping:
            self._watch = self.loop.call_later(KEEP_OPEN, self._check_reader)

    def _check_reader(self) -> None:
        assert self.loop is not None
        self._watch = None
        if self._ahead.waiting or self.pace.yielded != self._seen or self.stopping:
            return
        left = self._waited + KEEP_OPEN - self.loop.time()
        if left > 0:
            self._watch = self.loop.call_later(left, self._check_reader)
        elif self.capabilities.release:
            self.pace.rest()
            self._shrink(0)

    # -- settling --------------------------------------------------------------------------

    def settle(
        self, delivery: Delivery, outcome: Outcome, delay: float = 0.0, reason: str = ""
    ) -> bool:
        """Record how ``delivery`` ended, in any thread, without waiting.

        Returns:
            False if it was settled differently before.

        Raises:
            UnsupportedError: If the backend cannot end a delivery in this way.
        """
        if outcome is not Outcome.ACK:
            check_settlement(self.capabilities, self.backend, outcome, delay)
            elsewhere = asyncio._get_running_loop() is not self.loop
            if elsewhere and self.capabilities.ordering == "key" and outcome is not Outcome.REJECT:
                # The reader's next pop has to wait until the loop has removed the successors.
                self.pace.careful = True
                self._ahead.approved = None
        return self._ledger.record(Settlement(delivery, outcome, delay, reason))

    def _settled(self, settlement: Settlement) -> None:
        if self.capabilities.ordering == "key" and settlement.outcome is not Outcome.REJECT:
            self._release(self._ahead.remove_key(settlement.delivery.message.key))

    async def flush(self) -> None:
        """Return once the broker has accepted everything recorded; raises what it refused."""
        if self in _live:
            self._check_loop()
            await self._ledger.flush()
        self.surface()

    async def _raise_error(self) -> None:
        if self.error is not None:
            await self.close()
            self.surface()

    def surface(self) -> None:
        """Raise what ended the subscription, if it failed permanently."""
        if self.error is not None:
            self.surfaced = True
            raise self.error

    def _release(self, deliveries: Iterable[Delivery]) -> None:
        for delivery in deliveries:
            self._ledger.give_back((delivery,))
            self._returned = True

    def _drop_buffer(self) -> None:
        """Release the buffer when the connection is lost: its receipts may be void."""
        if self.capabilities.redelivery != "none":
            self._release(self._ahead.remove_after(0))

    def _lost(self, delivery: Delivery) -> None:
        self._ahead.discard(delivery)
        self._ledger.lose(delivery)
        self._ledger.report_lost(delivery)

    def _fail(self, error: Exception) -> None:
        if self.error is None:
            self.error = error
        self.stop()
