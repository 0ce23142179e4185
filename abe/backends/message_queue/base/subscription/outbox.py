"""Settlements on their way to the broker: batched, retried, and flushed before anybody waits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial

from abe.backends.message_queue.base.message import Outcome
from abe.backends.message_queue.base.receiver import (
    Delivery,
    SettleFailure,
    Settlement,
    checked,
)
from abe.backends.message_queue.base.subscription.reconnect import TRANSIENT, Connection, ask
from abe.errors import ConnectionLostError

__all__ = ["Outbox"]

logger = logging.getLogger(__name__)

MAX_BATCH = 512
MAX_WAIT = 0.05
"""Seconds for which an ack may wait for others to join it."""
RETRY_DELAY = 0.2

ACK = Outcome.ACK
# A named tuple, made without the Python function that its constructor is: one for every message.
_settlement: Callable[[tuple[Delivery, Outcome, float, str]], Settlement] = partial(
    tuple.__new__, Settlement
)


class Outbox:
    """Collects settlements and sends them in batches, in order, one batch at a time.

    Args:
        connection: Where to send them.
        on_lost: Called with each settlement whose delivery belongs to somebody else by now.
        on_failure: Called with the error when the broker refuses a settlement for good.
    """

    def __init__(
        self,
        connection: Connection,
        on_lost: Callable[[Settlement], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self._connection = connection
        self._on_lost = on_lost
        self._on_failure = on_failure
        self._pending: list[Settlement] = []
        self._timer: asyncio.TimerHandle | None = None
        self._sender: asyncio.Task[None] | None = None
        """Sends, and when it is done what was recorded meanwhile is sent."""

    def ack(self, delivery: Delivery) -> None:
        """Record an ack, which may wait `MAX_WAIT` for company."""
        self._pending.append(_settlement((delivery, ACK, 0.0, "")))
        if len(self._pending) >= MAX_BATCH:
            self.send()
        elif self._timer is None and self._sender is None:
            self._timer = asyncio.get_running_loop().call_later(MAX_WAIT, self.send)

    def add(self, settlement: Settlement) -> None:
        """Record a settlement that is no ack, and start sending."""
        self._pending.append(settlement)
        self.send()

    def send(self) -> None:
        """Start sending what is recorded."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pending and self._sender is None:
            self._sender = asyncio.get_running_loop().create_task(self._run(), name="abe-settle")
            self._sender.add_done_callback(self._go_on)

    def _go_on(self, sender: asyncio.Task[None]) -> None:
        self._sender = None
        if not sender.cancelled():
            self.send()

    async def close(self, timeout: float) -> None:
        """Flush; what the broker has not accepted after ``timeout`` seconds is given up."""
        try:
            async with asyncio.timeout(timeout):
                while self._pending or self._sender is not None:
                    await self.flush()
        except TimeoutError:
            if self._sender is not None:
                self._sender.cancel()
                await asyncio.wait([self._sender])
            self._give_up(self._pending, f"the broker did not answer within {timeout:g} s")
            self._pending.clear()

    async def flush(self) -> None:
        """Return once the broker has answered for everything recorded so far.

        Nothing that is recorded meanwhile is waited for, or steady traffic would never let it
        return: what is on its way is one round, what had to wait for that is the next.
        """
        rounds = 0
        while rounds < 2 and (self._pending or self._sender is not None):
            self.send()
            sender = self._sender
            assert sender is not None
            await asyncio.wait([sender])
            rounds += not sender.cancelled()

    async def _run(self) -> None:
        """Send what is recorded now, until the broker has answered for all of it."""
        todo, self._pending = self._pending, []
        try:
            while todo:
                batch = todo[:MAX_BATCH]
                retry = await self._send(batch)
                todo[: len(batch)] = retry
                if retry:
                    await asyncio.sleep(RETRY_DELAY)
        except BaseException:
            self._pending[:0] = todo
            raise

    async def _send(self, batch: list[Settlement]) -> list[Settlement]:
        """Settle ``batch`` and return what has to be tried again."""
        try:
            receiver = await self._connection.open()
            try:
                failures = checked(await ask(receiver.settle(batch)), receiver, "settle")
            except TRANSIENT as error:
                await self._connection.recover(receiver, error)
                return batch
            self._connection.confirm()
            return self._sort(failures)
        except TRANSIENT as error:
            self._give_up(batch, str(error))
        except Exception as error:  # whatever the provider raises: somebody has to be told
            logger.exception("settling %d deliveries failed for good", len(batch))
            self._on_failure(error)
        return []

    def _give_up(self, settlements: Sequence[Settlement], reason: str) -> None:
        """Called while closing. A release that never arrives does no harm: the lease lapses."""
        count = sum(settlement.outcome is not Outcome.RELEASE for settlement in settlements)
        if count:
            text = f"closed with {count} settlements not delivered, those messages will come again"
            self._on_failure(ConnectionLostError(f"{text}: {reason}"))

    def _sort(self, failures: Sequence[SettleFailure]) -> list[Settlement]:
        retry = []
        for settlement, error in failures:
            if error is None:
                self._on_lost(settlement)
            elif isinstance(error, TRANSIENT):
                retry.append(settlement)
            else:
                self._on_failure(error)
        return retry
