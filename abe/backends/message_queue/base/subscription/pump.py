"""The receiving half of a `Subscription`: one task that receives, makes room and gives back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from abe.backends.message_queue.base.backoff import transient
from abe.backends.message_queue.base.capabilities import Capabilities, check_settlement
from abe.backends.message_queue.base.closing import combined
from abe.backends.message_queue.base.outcome import Outcome
from abe.backends.message_queue.base.receiver import Delivery, EndOfStream, Receiver, Settlement
from abe.backends.message_queue.base.subscription.leases import MAX_HOLD, LeaseExtender
from abe.backends.message_queue.base.subscription.ledger import Ledger
from abe.backends.message_queue.base.subscription.prefetch import MAX_PREFETCH
from abe.backends.message_queue.base.subscription.read_ahead import ReadAhead
from abe.backends.message_queue.base.subscription.reconnect import ReconnectingReceiver, ask
from abe.errors import ConfigurationError
from abe.types import ConsumerGroup

__all__ = ["Pump"]

RECEIVE_TIMEOUT = 20.0
KEEP_OPEN = 1.0
"""Seconds after which a reader that neither waits nor took anything since is taken to be gone."""


class Pump:
    """Receives ahead of the readers, as far as they ask for more, and records settlements.

    Releases happen between two calls of ``receive`` and are waited for: otherwise a receive that
    is out would overtake the messages that are on their way back. The arguments are those of
    `Subscription`.
    """

    def __init__(
        self,
        factory: Callable[[], Receiver],
        *,
        capabilities: Capabilities,
        backend: str,
        group: ConsumerGroup = None,
        prefetch: int | None = None,
        max_hold: float = MAX_HOLD,
        on_opened: Callable[[Any], None] | None = None,
        on_closed: Callable[[Any], None] | None = None,
    ) -> None:
        if prefetch is None:
            prefetch = MAX_PREFETCH
        elif prefetch < 1:
            raise ConfigurationError(f"prefetch is {prefetch}; it must be at least 1")
        self._sheds = capabilities.release and capabilities.attempts != "upper"
        """Whether buffered messages may go back unused: elsewhere that counts against them."""
        self.capabilities = capabilities
        self.backend = backend
        self.group = group
        self._on_opened = on_opened
        self._on_closed = on_closed
        self.loop: asyncio.AbstractEventLoop | None = None
        self.clock: Callable[[], float] = float
        self.error: Exception | None = None
        self.stopping = False
        self.isolates = False
        self._alone: Delivery | None = None
        """The suspect that was handed over last."""
        self._ahead = ReadAhead(prefetch)
        self.buffer = self._ahead.buffer
        self.prefetch = self._ahead.prefetch
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
        self._demand = asyncio.Event()
        self._keep: int | None = None
        """How many buffered messages the next turn of the pump leaves."""
        self._returned = False
        """Whether released messages have to be back before the next receive, for the order."""
        self._opened: asyncio.Future[None] | None = None
        self._closing = asyncio.Event()
        self._watch: asyncio.TimerHandle | None = None
        self._waited = 0.0
        self._seen = 0

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

    # -- receiving ------------------------------------------------------------------------

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
        await self._make_room()
        receiver = await self._connection.open()
        if self.stopping:
            return  # a receiver opened since then has not been told to wake
        room = self.prefetch.room(len(self.buffer), self._ahead.wanted)
        careful = self.prefetch.careful or self._alone is not None
        if room == 0 or (careful and (self._ahead.suspect or self._is_isolated())):
            self._demand.clear()
            if not self._must_isolate():
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
        """Release what the readers will not ask for soon, and all behind a suspect."""
        keep, self._keep = self._keep, None
        isolate = self._must_isolate()
        if isolate:
            keep = 1
        if keep is not None and self._sheds:
            self._release(self._ahead.remove_after(keep))
        if self._returned or isolate:
            self._returned = False
            await self._ledger.flush()
        if isolate and self._ahead.suspect:
            self._alone = self._ahead.approved = self.buffer[0]
            self._ahead.wake()

    def _must_isolate(self) -> bool:
        if not (self.prefetch.careful and self._ahead.suspect and self._ahead.waiting):
            return False
        if not self.isolates:
            return True
        buffered = set(self.buffer)
        self._ledger.watched = not buffered.issuperset(self._ledger.held)
        return not self._ledger.watched

    def _is_isolated(self) -> bool:
        """Whether a suspect is in a hand, beside which nothing may be in flight."""
        if not self.isolates or self._alone is None or self._alone in self.buffer:
            return False
        self._ledger.watched = self._alone in self._ledger.held
        if not self._ledger.watched:
            self._alone = None
        return self._ledger.watched

    def _end_receive(self) -> None:
        if self._connection.receiver is not None:
            self._connection.receiver.wake()

    def _arrived(self, deliveries: Sequence[Delivery]) -> None:
        if not deliveries:
            return
        now = self.clock()
        deadline = now + self._leases.seconds if self._leases.lapse else float("inf")
        for delivery in deliveries:
            delivery.subscription = self
            delivery.since = now
            delivery.deadline = deadline
            delivery.message._delivery = delivery
        self._ledger.held.update(dict.fromkeys(deliveries))
        self._ahead.add(deliveries)
        if self.stopping:
            self._release(self._ahead.remove_after(0))
        if not self._leases.ticking:
            self.prefetch.begin()
            self._leases.begin()
        self._ahead.wake()

    # -- demand ---------------------------------------------------------------------------

    def _refill(self) -> None:
        if asyncio._get_running_loop() is self.loop:
            self._adapt()
            self._demand.set()
        elif self.loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(self._refill)

    def _adapt(self) -> None:
        self.prefetch.adapt(self.clock(), self._leases.seconds)

    def _shed(self) -> None:
        """Let the pump release buffered messages that no reader will ask for soon."""
        if not self._sheds:
            return
        keep = self.prefetch.tick(
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
        self._waited, self._seen = self.loop.time(), self.prefetch.yielded
        if self._watch is None and not self.stopping:
            self._watch = self.loop.call_later(KEEP_OPEN, self._check_reader)

    def _check_reader(self) -> None:
        assert self.loop is not None
        self._watch = None
        if self._ahead.waiting or self.prefetch.yielded != self._seen or self.stopping:
            return
        left = self._waited + KEEP_OPEN - self.loop.time()
        if left > 0:
            self._watch = self.loop.call_later(left, self._check_reader)
        elif self._sheds:
            self.prefetch.rest()
            self._shrink(0)

    # -- settling -------------------------------------------------------------------------

    def settle(
        self, delivery: Delivery, outcome: Outcome, delay: float = 0.0, reason: str = ""
    ) -> bool:
        """Record how ``delivery`` ended, in any thread; False if it was settled otherwise."""
        if outcome is Outcome.ACK:
            return self._ledger.ack(delivery)
        check_settlement(self.capabilities, self.backend, outcome, delay)
        elsewhere = asyncio._get_running_loop() is not self.loop
        if elsewhere and self.capabilities.ordering == "key" and outcome is not Outcome.REJECT:
            # The reader's next pop has to wait until the loop has removed the successors.
            self.prefetch.be_careful(True)
            self._ahead.approved = None
        return self._ledger.record(Settlement(delivery, outcome, delay, reason))

    def _settled(self, settlement: Settlement) -> None:
        if self._ledger.watched:
            self._demand.set()
            self._ahead.wake()
        if settlement.outcome in (Outcome.ACK, Outcome.REJECT):
            return
        if self.capabilities.ordering == "key":
            self._release(self._ahead.remove_key(settlement.delivery.message.key))

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
        elif getattr(self.error, "undelivered", 0) and getattr(error, "undelivered", 0):
            self.error = combined([self.error, error])
        self.stop()
