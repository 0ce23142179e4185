"""The leases of what a stream holds: extended while it is held, reported when they are lost."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from abe.backends.message_queue.base.receiver import Delivery, Receiver, checked
from abe.backends.message_queue.base.subscription.reconnect import TRANSIENT, Connection, ask

__all__ = ["Leases"]

DEFAULT_LEASE = 30.0
"""Seconds assumed where the broker has no lease, for what is measured in leases."""
TICKS = 16
"""In each lease."""
EARLY = 0.6
"""A lease is extended when no more than this part of it is left."""


class Leases:
    """Keeps what is neither settled nor lost, and the broker waiting for it.

    Args:
        connection: Whose receiver extends.
        max_hold: Seconds for which the lease of one message is extended.
        on_tick: Called sixteen times in a lease while anything is held.
        on_end: Called with a delivery whose lease is extended no longer.
        on_lost: Called with a delivery that belongs to somebody else by now.
        on_failure: Called with the error when the broker refuses for good.

    Attributes:
        held: The deliveries, in the order in which they came.
    """

    def __init__(
        self,
        connection: Connection,
        max_hold: float,
        *,
        on_tick: Callable[[], None],
        on_end: Callable[[Delivery], None],
        on_lost: Callable[[Delivery], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self.held: dict[Delivery, None] = {}
        self._connection = connection
        self._max_hold = max_hold
        self._on_tick = on_tick
        self._on_end = on_end
        self._on_lost = on_lost
        self._on_failure = on_failure
        self._timer: asyncio.TimerHandle | None = None
        self._extension: asyncio.Task[None] | None = None

    @property
    def seconds(self) -> float:
        """Seconds of lease, or what stands in for it where the broker has none."""
        receiver = self._connection.receiver
        return (receiver.lease if receiver is not None else None) or DEFAULT_LEASE

    @property
    def ticking(self) -> bool:
        """Whether anything has been held lately."""
        return self._timer is not None

    def begin(self) -> None:
        """Begin to tick: something is held."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self.seconds / TICKS, self._tick)

    async def close(self) -> None:
        """Extend nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._extension is not None:
            self._extension.cancel()
            await asyncio.wait([self._extension])

    def _tick(self) -> None:
        self._timer = None
        if self.held:
            self._on_tick()
            self._extend()
            self.begin()

    def _extend(self) -> None:
        receiver = self._connection.receiver
        if receiver is None or receiver.lease is None:
            return
        if self._extension is not None and not self._extension.done():
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        due = []
        for delivery in self.held:
            if delivery.deadline - now > receiver.lease * EARLY:
                continue
            if now - delivery.since < self._max_hold:
                due.append(delivery)
            else:
                delivery.deadline = math.inf
                self._on_end(delivery)
        if due:
            self._extension = loop.create_task(self._send(receiver, due), name="abe-extend")

    async def _send(self, receiver: Receiver, due: list[Delivery]) -> None:
        try:
            try:
                await self._send_once(receiver, due)
            except TRANSIENT as error:
                await self._connection.recover(receiver, error)
        except TRANSIENT:
            return  # the stream is closing
        except Exception as error:  # whatever the provider raises: somebody has to be told
            self._on_failure(error)

    async def _send_once(self, receiver: Receiver, due: list[Delivery]) -> None:
        if receiver is not self._connection.receiver:
            return  # replaced before this task began
        lease = self.seconds
        ends = asyncio.get_running_loop().time() + lease
        lost = checked(await ask(receiver.extend(due, lease)), receiver, "extend")
        self._connection.confirm()
        for delivery in due:
            delivery.deadline = ends
        for delivery in lost:
            if delivery in self.held:
                self._on_lost(delivery)
