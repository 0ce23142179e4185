"""What a subscription holds, and how each of it ends: settlements from any thread."""

from __future__ import annotations

import asyncio
import logging
from asyncio import _get_running_loop
from collections import deque
from collections.abc import Callable, Iterable

from abe.backends.message_queue.base.backoff import transient
from abe.backends.message_queue.base.batcher import Batcher
from abe.backends.message_queue.base.capabilities import Capabilities
from abe.backends.message_queue.base.closing import undelivered
from abe.backends.message_queue.base.log_records import log, log_message, summary
from abe.backends.message_queue.base.outcome import OUTCOMES, Outcome
from abe.backends.message_queue.base.process import identity
from abe.backends.message_queue.base.receiver import Delivery, Settlement, checked
from abe.backends.message_queue.base.subscription.reconnect import ReconnectingReceiver, ask
from abe.errors import LoopError
from abe.types import ConsumerGroup

__all__ = ["Ledger"]

logger = logging.getLogger(__name__)

ACK = Outcome.ACK
ACK_CODE = ACK.code
MAX_BATCH = 512
MAX_WAIT = 0.05
"""Seconds for which an ack may wait for others to join it."""
INTERVAL = 0.01
"""Seconds between two looks at the settlements of other threads; the first of a burst is prompt."""


class Ledger:
    """Knows what is held, and decides which settlement of a delivery counts.

    `record` and `finish` may be called in any thread; the other methods belong to the loop. A
    settlement from elsewhere goes through the inbox first and is claimed second, so that an
    interrupt between the two leaves it recorded; the loop completes the claim. ``on_settled`` is
    called on the loop with each settlement by a reader that counts and is no ack; with acks, too,
    while `watched`: the end of any delivery may then be waited for. ``on_failure`` gets the error
    when the broker refuses a settlement permanently.
    """

    def __init__(
        self,
        capabilities: Capabilities,
        backend: str,
        group: ConsumerGroup,
        connection: ReconnectingReceiver,
        on_settled: Callable[[Settlement], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self.watched = False
        self._held: dict[Delivery, None] = {}
        self._acked: list[Delivery] = []
        """On the loop, and not passed on yet: that costs less for many at once."""
        self._can_release = capabilities.release
        self._backend = backend
        self._group = group
        self._connection = connection
        self._on_settled = on_settled
        self._on_failure = on_failure
        self._batcher = Batcher(
            self._send, max_items=MAX_BATCH, max_wait=MAX_WAIT, name="abe-settle"
        )
        self._inbox: deque[Settlement] = deque()
        self._awake = False
        self._timer: asyncio.TimerHandle | None = None
        self._late: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._process = identity.pid()

    @property
    def here(self) -> bool:
        return identity.pid() == self._process

    # -- any thread ------------------------------------------------------------------------

    def record(self, settlement: Settlement) -> bool:
        """Record how a delivery ended; False if it was settled differently before."""
        delivery, outcome = settlement.delivery, settlement.outcome
        if _get_running_loop() is self._loop:
            self.drain()
            self._accept(settlement)
            return delivery.claims[0] == outcome.code
        if not self._post(settlement):
            delivery.claims.append(Outcome.LOST.code)
        delivery.claims.append(outcome.code)
        won = delivery.claims[0] == outcome.code
        if not won:
            delivery.message._outcome = OUTCOMES[delivery.claims[0]]
        return won

    def ack(self, delivery: Delivery) -> bool:
        loop = _get_running_loop()
        if loop is None or loop is not self._loop:
            return self.record(Settlement(delivery, ACK))
        if self._inbox:
            self.drain()
        delivery.claims.append(ACK_CODE)
        if delivery.claims[0] != ACK_CODE:
            return False
        self._note_ack(delivery, loop)
        return True

    def finish(self, hand: list[Delivery]) -> None:
        """Ack what is neither settled nor owned, and empty the hand."""
        loop = _get_running_loop()
        here = loop is not None and loop is self._loop
        if here and self._inbox:
            self.drain()
        for delivery in hand:
            if delivery.claims or delivery.owned:
                continue
            if here:
                delivery.claims.append(ACK_CODE)
                # `_note_ack`, nearly always: this runs for every message.
                acked, message = self._acked, delivery.message
                if acked and len(acked) < MAX_BATCH and not self.watched:
                    message._delivery = None
                    message._outcome = ACK
                    acked.append(delivery)
                else:
                    self._note_ack(delivery, loop)
            else:
                self._post(Settlement(delivery, ACK))
                delivery.claims.append(ACK_CODE)
        hand.clear()

    def _post(self, settlement: Settlement) -> bool:
        """Leave a settlement for the loop; False if the loop is gone."""
        if self._process != identity.known or not identity.unforked[0]:
            self._check_process()
        assert self._loop is not None
        if self._loop.is_closed():
            return False
        if not settlement.delivery.claims:
            # First: waking the loop lets it run at once, and it may find that the lease was lost.
            settlement.delivery.message._outcome = settlement.outcome
        self._inbox.append(settlement)
        if not self._awake:
            self._awake = True
            try:
                self._loop.call_soon_threadsafe(self._look)
            except RuntimeError:  # closed just now
                return False
        return True

    def _check_process(self) -> None:
        if not self.here:
            raise LoopError(
                f"this message was received in process {self._process}, before a fork; "
                f"it cannot be settled in its child {identity.pid()}"
            )

    # -- the loop --------------------------------------------------------------------------

    def _look(self) -> None:
        self._timer = None
        if self._inbox:
            self.drain()
        else:
            self._awake = False
            if not self._inbox:  # a thread may have seen the flag just before
                return
            self._awake = True
        self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._look)

    def drain(self) -> None:
        """Take up what other threads recorded, in their order."""
        while self._inbox:
            self._accept(self._inbox.popleft())

    @property
    def held(self) -> dict[Delivery, None]:
        """What is received and not settled, in the order of arrival."""
        if self._acked:
            self._pass_on()
        return self._held

    def _note_ack(self, delivery: Delivery, loop: asyncio.AbstractEventLoop | None) -> None:
        """Collect an ack that counts, and pass the acks on after a while."""
        message = delivery.message
        message._delivery = None  # also breaks the cycle with the delivery
        message._outcome = ACK
        self._acked.append(delivery)
        if self.watched or len(self._acked) >= MAX_BATCH:
            self._pass_on()
        elif self._late is None and loop is not None:
            self._late = loop.call_later(MAX_WAIT, self.send)

    def _pass_on(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
        acked, self._acked = self._acked, []
        settlements = []
        for delivery in acked:
            if delivery in self._held:  # and not acked twice
                del self._held[delivery]
                # A third of the time that the constructor takes, and there is one for each message.
                settlements.append(tuple.__new__(Settlement, (delivery, ACK, 0.0, "")))
        self._batcher.add(*settlements)
        if self.watched:
            self._on_settled(Settlement(acked[-1], ACK))

    def _accept(self, settlement: Settlement, *, tell: bool = True) -> None:
        """Claim the delivery for ``settlement``, and pass it on if it was the first."""
        held, delivery = self.held, settlement.delivery
        delivery.claims.append(settlement.outcome.code)
        if delivery.claims[0] != settlement.outcome.code or delivery not in held:
            return
        del held[delivery]
        message = delivery.message
        message._delivery = None  # also breaks the cycle with the delivery
        message._outcome = settlement.outcome
        self._batcher.add(settlement)
        if settlement.outcome is not ACK:
            self._batcher.send()
        if tell and (settlement.outcome is not ACK or self.watched):
            self._on_settled(settlement)

    def lose(self, delivery: Delivery) -> None:
        delivery.claims.append(Outcome.LOST.code)
        delivery.message._delivery = None
        delivery.message._outcome = OUTCOMES[delivery.claims[0]]
        self.held.pop(delivery, None)

    def give_back(self, deliveries: Iterable[Delivery]) -> None:
        """Release what is neither settled nor owned, where the backend can.

        Earlier messages of the same key may stay, so that this is not told to `on_settled`.
        """
        for delivery in deliveries:
            if delivery.claims or delivery.owned:
                continue
            if self._can_release:
                self._accept(Settlement(delivery, Outcome.RELEASE), tell=False)
            else:
                self.lose(delivery)

    def report_lost(self, delivery: Delivery) -> None:
        """Say that a settlement came, or would come, too late."""
        delivery.message._outcome = Outcome.LOST
        self.warn("lease lost: the message is, or will be, redelivered", delivery)

    def report_held(self, delivery: Delivery, seconds: float) -> None:
        """Say that a lease will lapse, after ``seconds`` of being extended."""
        self.warn(f"held for {seconds:g} s: its lease is no longer extended", delivery)

    def warn(self, text: str, delivery: Delivery, level: int = logging.WARNING) -> None:
        message = delivery.message
        log_message(logger, level, text, message, backend=self._backend, group=self._group)

    # -- sending ---------------------------------------------------------------------------

    def send(self) -> None:
        if self._acked:
            self._pass_on()
        self._batcher.send()

    async def flush(self) -> None:
        self.drain()
        self.send()
        await self._batcher.flush()

    @property
    def owes(self) -> bool:
        """Whether a settlement is not answered for, but for releases, which do no harm if lost."""
        return bool(self._acked) or self._batcher.has(
            lambda settlement: settlement.outcome is not Outcome.RELEASE
        )

    async def close(self, timeout: float) -> None:
        """Send what is recorded within ``timeout`` seconds, and record no more after that."""
        self.drain()
        self.send()
        self._report_undelivered(
            await self._batcher.close(timeout), f"the broker did not answer within {timeout:g} s"
        )
        if self._timer is not None:
            self._timer.cancel()
        for delivery in list(self.held):
            self.lose(delivery)

    async def _send(self, batch: list[Settlement]) -> list[Settlement]:
        try:
            receiver = await self._connection.open()
            try:
                failures = checked(await ask(receiver.settle(batch)), receiver, "settle")
            except Exception as error:
                if not transient(error):
                    raise
                await self._connection.recover(receiver, error)
                return batch
        except Exception as error:  # a provider may raise anything, and it must not be swallowed
            if transient(error):
                self._report_undelivered(batch, summary(error))
            else:
                text = "settling %d deliveries failed permanently"
                log(logger, logging.ERROR, text, len(batch), error=error)
                self._on_failure(error)
            return []
        self._connection.confirm()
        retry = []
        for settlement, refusal in failures:
            if refusal is None:
                if settlement.outcome is not Outcome.RELEASE:
                    self.report_lost(settlement.delivery)
            elif transient(refusal):
                retry.append(settlement)
            elif settlement.delivery.owned:  # its owner goes on with the others
                settlement.delivery.message._outcome = Outcome.LOST
                text = f"the broker refused to {settlement.outcome} the message: {summary(refusal)}"
                self.warn(text, settlement.delivery, logging.ERROR)
            else:
                self._on_failure(refusal)
        return retry

    def _report_undelivered(self, settlements: list[Settlement], reason: str) -> None:
        count = sum(settlement.outcome is not Outcome.RELEASE for settlement in settlements)
        if count:
            self._on_failure(undelivered(count, reason))
