"""The leases of what a stream holds: extended while it is held, reported when they are lost."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from functools import partial

from abe.backends.message_queue.base.backoff import transient
from abe.backends.message_queue.base.receiver import Delivery, Receiver, checked
from abe.backends.message_queue.base.subscription.ledger import Ledger
from abe.backends.message_queue.base.subscription.reconnect import ReconnectingReceiver, ask

__all__ = ["MAX_HOLD", "LeaseExtender", "clock_of"]

DEFAULT_LEASE = 30.0
"""Seconds assumed where the broker has no lease, for what is measured in leases."""
TICKS = 16
"""In each lease, and at least one in `LONGEST_TICK`."""
LONGEST_TICK = 2.0
"""Seconds; four ticks without demand let others have the messages a stuck reader has buffered."""
EARLY = 0.6
"""A lease is extended when no more than this part of it is left."""

MAX_HOLD = 900.0
"""Longest time, in seconds, for which the lease of one message is extended."""


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Return the clock that leases are measured by: it goes on while the machine is suspended.

    A loop of asyncio that has a clock of its own keeps it.
    """
    own = isinstance(loop, asyncio.BaseEventLoop) and type(loop).time is not (
        asyncio.BaseEventLoop.time
    )
    if own or not hasattr(time, "CLOCK_BOOTTIME"):
        return loop.time
    return partial(time.clock_gettime, time.CLOCK_BOOTTIME)


class LeaseExtender:
    """Keeps the broker waiting for what is held, at most ``max_hold`` seconds for each message.

    ``on_tick`` is called sixteen times in a lease while anything is held, ``on_lost`` with a
    delivery that belongs to somebody else by now, ``on_failure`` when the broker refuses for good.
    """

    def __init__(
        self,
        connection: ReconnectingReceiver,
        ledger: Ledger,
        max_hold: float,
        *,
        on_tick: Callable[[], None],
        on_lost: Callable[[Delivery], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self._connection = connection
        self._ledger = ledger
        self._max_hold = max_hold
        self._on_tick = on_tick
        self._on_lost = on_lost
        self._on_failure = on_failure
        self._clock: Callable[[], float] = float
        self._timer: asyncio.TimerHandle | None = None
        self._extension: asyncio.Task[None] | None = None

    @property
    def seconds(self) -> float:
        """Seconds of lease, or what stands in for it where the broker has none."""
        receiver = self._connection.receiver
        return (receiver.lease if receiver is not None else None) or DEFAULT_LEASE

    @property
    def lapse(self) -> bool:
        """Whether leases end at all."""
        receiver = self._connection.receiver
        return receiver is not None and receiver.lease is not None

    @property
    def ticking(self) -> bool:
        return self._timer is not None

    def begin(self) -> None:
        loop = asyncio.get_running_loop()
        self._clock = clock_of(loop)
        self._timer = loop.call_later(min(self.seconds / TICKS, LONGEST_TICK), self._tick)

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._extension is not None:
            self._extension.cancel()
            await asyncio.wait([self._extension])

    def _tick(self) -> None:
        self._timer = None
        if self._ledger.held:
            self._on_tick()
            self._extend()
            self.begin()

    def _extend(self) -> None:
        receiver = self._connection.receiver
        if receiver is None or receiver.lease is None:
            return
        if self._extension is not None and not self._extension.done():
            return
        now = self._clock()
        due = []
        for delivery in self._ledger.held:
            if delivery.deadline - now > receiver.lease * EARLY:
                continue
            if now - delivery.since < self._max_hold:
                due.append(delivery)
            else:
                delivery.deadline = math.inf
                self._ledger.report_held(delivery, self._max_hold)
        if due:
            task = asyncio.create_task(self._send(receiver, due), name="abe-extend")
            self._extension = task

    async def _send(self, receiver: Receiver, due: list[Delivery]) -> None:
        try:
            try:
                await self._send_once(receiver, due)
            except Exception as error:
                if not transient(error):
                    raise
                await self._connection.recover(receiver, error)
        except Exception as error:  # a provider may raise anything, and it must not be swallowed
            if not transient(error):  # otherwise the stream is closing
                self._on_failure(error)

    async def _send_once(self, receiver: Receiver, due: list[Delivery]) -> None:
        if receiver is not self._connection.receiver:
            return  # replaced before this task began
        lease = self.seconds
        ends = self._clock() + lease
        lost = checked(await ask(receiver.extend(due, lease)), receiver, "extend")
        self._connection.confirm()
        for delivery in due:
            delivery.deadline = ends
        for delivery in lost:
            if delivery in self._ledger.held:
                self._on_lost(delivery)
