"""How far a subscription receives ahead of its reader."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

__all__ = ["MAX_PREFETCH", "PrefetchController", "size_of"]

MAX_PREFETCH = 1024
MAX_RECEIVE = 512
"""Half of that, so that a refill and the acks it brings make full batches."""
MAX_BYTES = 4 << 20
"""Limit of the payloads held ahead, as far as their sizes can be told from those before."""
TICKS = 4
"""Length of the demand window, in lease ticks: recent demand predicts future demand."""


class PrefetchController:
    """Receives little ahead at first and more while the reader is fast, ``most`` at most.

    Attributes:
        yielded: How many messages the reader was given.
        low: When no more than this many are left, a refill is due.
        careful: Whether a message is buffered that must be handed over alone.
        easy: While more than this many are left, handing one over involves nothing else.
    """

    __slots__ = (
        "_idle",
        "_largest",
        "_limit",
        "_mark",
        "_most",
        "_ticks",
        "_waited",
        "careful",
        "easy",
        "low",
        "yielded",
    )

    def __init__(self, most: int) -> None:
        self.yielded = 0
        self._most = most
        self.careful = False
        self._idle = True
        self._mark = (0, 0.0)
        self._waited = 0.0
        self._largest = 1
        self._ticks: deque[int] = deque(maxlen=TICKS)
        self._set(1)

    def _set(self, limit: int) -> None:
        limit = min(limit, max(1, MAX_BYTES // self._largest))
        self._limit = 1 if self.careful else limit
        self.low = self._limit // 2
        self.easy = math.inf if self.careful else self.low + 1

    def be_careful(self, careful: bool) -> None:
        """Receive nothing ahead while a message is buffered that must be handed over alone."""
        self.careful = careful
        self._set(self._limit)

    def room(self, buffered: int, wanted: int) -> int:
        ahead = 0
        if self._limit > 1 and not self._idle and buffered * 2 <= self._limit:
            ahead = self._limit - buffered
        return min(max(wanted - buffered, ahead), MAX_RECEIVE)

    def measured(self, size: int) -> None:
        """Note the size of a received payload, in bytes; what was larger before fades slowly."""
        self._largest = max(size, self._largest - self._largest // 4, 1)
        if self._limit * self._largest > MAX_BYTES:
            self._set(self._limit)

    def asked(self) -> None:
        self._idle = False

    def rest(self) -> None:
        """The reader has gone: receive nothing ahead until it asks again."""
        self._idle = True
        self._set(1)

    def waited(self, seconds: float) -> None:
        """Leave time spent waiting for messages out of the reader's speed."""
        self._waited += seconds

    def adapt(self, now: float, lease: float) -> None:
        """Hold as much as the reader takes in a quarter ``lease``, at most doubling each time.

        Its speed shows in what it took since the last time.
        """
        count, since = self._mark
        consumed = self.yielded - count
        if consumed and since:
            cost = max((now - since - self._waited) / consumed, 1e-9)
            room = min(self._limit * 2, self._most, int(lease / 4 / cost))
            self._set(max(1, room))
        self._mark = (self.yielded, now)
        self._waited = 0.0

    def begin(self) -> None:
        self._ticks.clear()

    def tick(self, buffered: int, now: float, lease: float, *, waiting: bool) -> int:
        """Return how many of ``buffered`` messages the reader will ask for soon enough."""
        self._ticks.append(self.yielded)
        if len(self._ticks) < TICKS:
            return buffered
        recent = self.yielded - self._ticks[0]
        if recent == 0 and buffered and not waiting:
            self.rest()
            return 0
        if buffered > 3 * recent + 1:
            self.adapt(now, lease)
            self._set(max(1, recent))
            return self._limit
        return buffered


def size_of(payload: dict[str, Any]) -> int:
    """Return about how many bytes of JSON ``payload`` is, not counting beyond the limit."""
    size = 0
    rest: list[Any] = [payload]
    while rest and size < MAX_BYTES:
        value = rest.pop()
        size += 8
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, dict):
            rest += value
            rest += value.values()
        elif isinstance(value, list):
            rest += value
    return size
