"""What happens behind a `MessageStream`: receiving ahead, leases, settlement, closing.

The stream is a thin handle that the caller may drop; the engine is what its tasks hold. So the
tasks never keep a forgotten stream alive, and a forgotten stream can still be wound up.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial

from abe.backends.message_queue.base.capabilities import Capabilities, check_settlement
from abe.backends.message_queue.base.log import log_message
from abe.backends.message_queue.base.message import Message, Outcome
from abe.backends.message_queue.base.receiver import Delivery, EndOfStream, Receiver, Settlement
from abe.backends.message_queue.base.subscription.leases import Leases
from abe.backends.message_queue.base.subscription.outbox import Outbox
from abe.backends.message_queue.base.subscription.prefetch import MAX_PREFETCH, Pace
from abe.backends.message_queue.base.subscription.reconnect import TRANSIENT, Connection, ask
from abe.errors import ConfigurationError, LoopError
from abe.types import ConsumerGroup

__all__ = ["StreamEngine"]

logger = logging.getLogger(__name__)

ACK = Outcome.ACK
RECEIVE_TIMEOUT = 20.0
SUSPECT_ATTEMPT = 3
"""From this attempt on a message may be what kills its consumers, and is received singly."""
CLOSE_TIMEOUT = 10.0
OWNER_TIMEOUT = 1.0
"""Seconds that the end of the loop leaves the owner of detached messages to settle them."""

_live: set[StreamEngine] = set()
"""Event loops refer to tasks weakly; this keeps a dropped stream's engine until it is closed."""


class StreamEngine:
    """Receives ahead of the caller, keeps leases, records settlements, and closes in order.

    Args:
        factory: Makes a receiver; called again after a lost connection.
        capabilities: What the backend declares.
        backend: The backend's name, for errors and the log.
        group: The consumer group, for the log.
        prefetch: Most messages to hold ahead of the caller; ``None`` = adaptive.
        max_hold: Seconds for which the lease of one message is extended.
        on_opened: Called with this engine when it first runs.
        on_closed: Called with it once everything is given back.
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
        on_opened: Callable[[StreamEngine], None] | None,
        on_closed: Callable[[StreamEngine], None] | None,
    ) -> None:
        if prefetch is None:
            prefetch = 1 if capabilities.attempts == "upper" else MAX_PREFETCH
        elif prefetch < 1:
            raise ConfigurationError(f"prefetch is {prefetch}; it must be at least 1")
        self.capabilities = capabilities
        self.backend = backend
        self.group = group
        self.loop: asyncio.AbstractEventLoop | None = None
        self.hand: list[Delivery] = []
        """Yielded last: acked when the caller asks for more."""
        self.buffer: deque[Delivery] = deque()
        self.pace = Pace(prefetch)
        self.error: Exception | None = None
        self.surfaced = False
        self.stopping = False
        self._connection = Connection(factory, backend, self._drop_buffer)
        self._outbox = Outbox(self._connection, self._lost_in_settle, self._fail)
        self._leases = Leases(
            self._connection,
            max_hold,
            on_tick=self._shed,
            on_end=partial(self._warn, f"held for {max_hold:g} s: its lease is no longer extended"),
            on_lost=self._lost,
            on_failure=self._fail,
        )
        self._held = self._leases.held
        self._on_opened = on_opened
        self._on_closed = on_closed
        self._demand = asyncio.Event()
        self._wanted = 0
        self._waiter: asyncio.Future[None] | None = None
        self._pump: asyncio.Task[None] | None = None
        self._opened: asyncio.Future[None] | None = None
        self._closing = asyncio.Event()
        self._impatience: asyncio.TimerHandle | None = None
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
        """Take no more: a waiting caller sees the end, buffered messages are given back.

        Messages in hand can still be settled, until `close`.
        """
        self.stopping = True
        self._demand.set()
        if self._opened is not None and not self._opened.done():
            self._opened.set_result(None)
        self._end_receive()
        self._release_buffered(self.buffer)
        self._wake_caller()

    @property
    def closing(self) -> bool:
        """Whether messages in hand have been, or are being, given back."""
        return self._closing.is_set()

    async def close(self) -> None:
        """Give back what is not settled, flush, disconnect. Safe to call twice, or at once."""
        if self.loop is None:
            self.stopping = True
        elif self in _live and not self.loop.is_closed():
            self._check_loop()
            self.begin_close()
            assert self._pump is not None
            await asyncio.wait([self._pump])

    async def finish(self) -> None:
        """Close, and raise what ended the stream if no call has raised it yet."""
        await self.close()
        if not self.surfaced:
            self.surface()

    def begin_close(self) -> None:
        """Start closing, from the stream's loop."""
        if self in _live and not self.closing:
            assert self.loop is not None
            self._closing.set()
            self._connection.stop_waiting()
            self._give_back(list(self._held))
            self.stop()
            self._impatience = self.loop.call_later(CLOSE_TIMEOUT, self._cancel_receive)

    def abandon(self) -> None:
        """Start closing, from any thread, for a stream that nobody refers to any more."""
        if self in _live:
            assert self.loop is not None
            self._unattended = True
            try:
                self.loop.call_soon_threadsafe(self.begin_close)
            except RuntimeError:  # the loop is closed
                _live.discard(self)

    def _cancel_receive(self) -> None:
        logger.warning(
            "backend %s was still receiving %g s after wake(); cancelling it",
            self.backend,
            CLOSE_TIMEOUT,
            extra={"backend": self.backend},
        )
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
        """Let who took over messages, and is cancelled too, settle them and close the stream."""
        if any(delivery.detached for delivery in self._held):
            with suppress(TimeoutError):
                async with asyncio.timeout(OWNER_TIMEOUT):
                    await self._closing.wait()

    async def _wind_up(self) -> None:
        """Give everything back and disconnect; may be repeated after a cancellation."""
        assert self._impatience is not None
        self._impatience.cancel()
        await self._outbox.close(CLOSE_TIMEOUT)
        for delivery in list(self._held):
            self._forget(delivery)
        await self._leases.close()
        try:
            await self._connection.aclose()
        except Exception as error:  # whatever the provider raises: somebody has to be told
            self._fail(error)
        if self._unattended and not self.surfaced and self.error is not None:
            text = "a stream of backend %s failed, and nobody was left to be told"
            logger.error(text, self.backend, exc_info=self.error, extra={"backend": self.backend})
        _live.discard(self)
        if self._on_closed is not None:
            self._on_closed(self)

    # -- receiving -------------------------------------------------------------------------

    async def _receive_all(self) -> None:
        assert self._opened is not None
        try:
            await self._connection.open()
            if not self._opened.done():
                self._opened.set_result(None)
            while not self.stopping:
                await self._receive()
        except EndOfStream:
            self.stopping = True
        except TRANSIENT:
            pass  # only while closing is it not tried again, and then nobody waits for it
        except Exception as error:  # whatever the provider raises: the caller has to be told
            self._fail(error)
        finally:
            if not self._opened.done():
                self._opened.set_result(None)
            self._wake_caller()

    async def _receive(self) -> None:
        receiver = await self._connection.open()
        if self.stopping:
            return  # a receiver opened since then has not been told to wake
        room = self.pace.room(len(self.buffer), self._wanted)
        if room == 0:
            self._demand.clear()
            await self._demand.wait()
            return
        try:
            deliveries = await ask(receiver.receive(room, RECEIVE_TIMEOUT))
        except TRANSIENT as error:
            await self._connection.recover(receiver, error)
            return
        self._connection.confirm()
        self._arrived(deliveries)
        if receiver is not self._connection.receiver:
            self._drop_buffer()

    def _end_receive(self) -> None:
        if self._connection.receiver is not None:
            self._connection.receiver.wake()

    def _arrived(self, deliveries: Sequence[Delivery]) -> None:
        if not deliveries:
            return
        assert self.loop is not None
        now = self.loop.time()
        deadline = now + self._leases.seconds
        for delivery in deliveries:
            delivery.engine = self
            delivery.since = now
            delivery.deadline = deadline
            message = delivery.message
            message._delivery = delivery
            self._held[delivery] = None
            if message.attempt >= SUSPECT_ATTEMPT:
                self.pace.careful = True
        self.buffer.extend(deliveries)
        if self.stopping:
            self._release_buffered(self.buffer)
        if not self._leases.ticking:
            self.pace.begin()
            self._leases.begin()
        self._wake_caller()

    # -- handing over ----------------------------------------------------------------------

    def resume(self) -> None:
        """The caller asks for more: what it was given before is done."""
        for delivery in self.hand:
            message = delivery.message
            if message._delivery is not None and not delivery.detached:
                # What `settle` does, without its checks: this runs for every message.
                message._delivery = None
                message._outcome = ACK
                del self._held[delivery]
                self._outbox.ack(delivery)
        self.hand.clear()

    def pop(self) -> Delivery:
        """Hand over the next buffered message; the buffer must not be empty."""
        delivery = self.buffer.popleft()
        if len(self.buffer) == self.pace.low:
            self._adapt()
            self._demand.set()
        self.pace.yielded += 1
        if self.pace.careful:
            self._isolate(delivery)
        return delivery

    async def next(
        self, wanted: int = 1, deadline: float | None = None, *, ask: bool = True
    ) -> Delivery | None:
        """Return the next message; ``None`` at the end, or at ``deadline`` (loop time).

        Args:
            wanted: How many the caller wants soon.
            deadline: When to stop waiting.
            ask: Ask the broker even if ``deadline`` has passed, so that polling finds messages.

        Raises:
            Exception: What ended the stream, if it failed for good.
        """
        self.pace.asked()
        while not self.buffer:
            if not self.closing:  # else it is for who closes
                await self._raise_error()
            if self.stopping:
                return None
            assert self.loop is not None
            if not ask and deadline is not None and self.loop.time() >= deadline:
                return None
            ask = False
            await self._wait(wanted, deadline)
        return self.pop()

    async def _wait(self, wanted: int, deadline: float | None) -> None:
        assert self.loop is not None
        if self._waiter is not None:
            raise RuntimeError("another task is waiting on this stream; open one stream per task")
        self._adapt()
        self._outbox.send()
        self._wanted = wanted
        self._demand.set()
        self._waiter = self.loop.create_future()
        timer = self.loop.call_at(deadline, self._wake_caller) if deadline is not None else None
        started = self.loop.time()
        try:
            await self._waiter
        finally:
            self._waiter = None
            self._wanted = 0
            self.pace.waited(self.loop.time() - started)
            if timer is not None:
                timer.cancel()

    def unread(self, message: Message) -> bool:
        """Put a message in hand back at the front of the buffer; False if it is settled."""
        delivery = message._delivery
        if delivery is None or delivery not in self.hand or self.stopping:
            return False
        self.hand.remove(delivery)
        delivery.detached = False
        self.put_back([delivery])
        return True

    def put_back(self, deliveries: Sequence[Delivery]) -> None:
        """Put what was popped and not handed over back at the front."""
        if self.stopping:
            self._give_back(deliveries)
            return
        for delivery in reversed(deliveries):
            self.buffer.appendleft(delivery)
            if delivery.message.attempt >= SUSPECT_ATTEMPT:
                self.pace.careful = True

    def _wake_caller(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _isolate(self, delivery: Delivery) -> None:
        """Hold nothing beside a message that may kill this process and so cost it attempts."""
        if delivery.message.attempt < SUSPECT_ATTEMPT:
            return
        if self.capabilities.release:
            self._end_receive()
            self._release_buffered(self.buffer)
        self.pace.careful = bool(self.buffer)

    def _adapt(self) -> None:
        assert self.loop is not None
        self.pace.adapt(self.loop.time(), self._leases.seconds)

    def _shed(self) -> None:
        """Release buffered messages that the caller will not ask for soon."""
        if not self.capabilities.release:
            return
        assert self.loop is not None
        keep = self.pace.tick(
            len(self.buffer),
            self.loop.time(),
            self._leases.seconds,
            waiting=self._waiter is not None,
        )
        if keep < len(self.buffer):
            if not keep:
                self._end_receive()
            self._release_buffered(list(self.buffer)[keep:])

    # -- settling --------------------------------------------------------------------------

    def settle(
        self, delivery: Delivery, outcome: Outcome, delay: float = 0.0, reason: str = ""
    ) -> bool:
        """Record how ``delivery`` ended; returns True, since it was not settled before."""
        self._check_loop()
        if outcome is ACK:
            self._forget(delivery, ACK)
            self._outbox.ack(delivery)
            return True
        check_settlement(self.capabilities, self.backend, outcome, delay)
        self._forget(delivery, outcome)
        self._outbox.add(Settlement(delivery, outcome, delay, reason))
        if self.capabilities.ordering == "key" and outcome in (Outcome.NACK, Outcome.RELEASE):
            key = delivery.message.key
            self._release_buffered([d for d in self.buffer if d.message.key == key])
        return True

    async def flush(self) -> None:
        """Return once the broker has accepted everything recorded; raises what it refused."""
        if self in _live:
            self._check_loop()
            await self._outbox.flush()
        self.surface()

    async def _raise_error(self) -> None:
        if self.error is not None:
            await self.close()
            self.surface()

    def surface(self) -> None:
        """Raise what ended the stream, if it failed for good."""
        if self.error is not None:
            self.surfaced = True
            raise self.error

    def _forget(self, delivery: Delivery, outcome: Outcome = Outcome.LOST) -> None:
        # Also breaks the cycle of message and delivery, so neither waits for the collector.
        delivery.message._delivery = None
        delivery.message._outcome = outcome
        self._held.pop(delivery, None)

    def _give_back(self, deliveries: Iterable[Delivery]) -> None:
        """Release what is neither settled nor somebody else's to settle."""
        for delivery in deliveries:
            if delivery.message._delivery is not None and not delivery.detached:
                outcome = Outcome.RELEASE if self.capabilities.release else Outcome.LOST
                self._forget(delivery, outcome)
                if outcome is Outcome.RELEASE:
                    self._outbox.add(Settlement(delivery, outcome))

    def _release_buffered(self, deliveries: Iterable[Delivery]) -> None:
        gone = set(deliveries)
        self._give_back(d for d in self.buffer if d in gone)
        self.buffer = deque(d for d in self.buffer if d not in gone)

    def _drop_buffer(self) -> None:
        """Called when the connection is lost: its receipts may be void."""
        if self.capabilities.redelivery != "none":
            self._release_buffered(self.buffer)

    def _lost_in_settle(self, settlement: Settlement) -> None:
        if settlement.outcome is not Outcome.RELEASE:
            self._report_lost(settlement.delivery)

    def _lost(self, delivery: Delivery) -> None:
        self._forget(delivery)
        with suppress(ValueError):
            self.buffer.remove(delivery)
        self._report_lost(delivery)

    def _report_lost(self, delivery: Delivery) -> None:
        delivery.message._outcome = Outcome.LOST
        self._warn("lease lost: the message is, or will be, delivered again", delivery)

    def _warn(self, text: str, delivery: Delivery) -> None:
        message = delivery.message
        log_message(logger, logging.WARNING, text, message, backend=self.backend, group=self.group)

    def _fail(self, error: Exception) -> None:
        if self.error is None:
            self.error = error
        self.stop()
