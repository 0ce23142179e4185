"""How far a stream receives ahead of its caller."""

from __future__ import annotations

import math
from collections import deque

__all__ = ["MAX_PREFETCH", "Pace"]

MAX_PREFETCH = 1024
MAX_RECEIVE = 512
"""Half of that, so that a refill and the acks it brings make full batches."""
TICKS = 4
"""Of the leases' clock: what the caller asked for during so many is what it will ask for."""


class Pace:
    """Receives little ahead at first and more while the caller is fast.

    Args:
        most: Most messages to hold ahead of the caller.

    Attributes:
        yielded: How many messages the caller was given.
        low: When no more are left, it is time for a refill.
        easy: While more are left, one can be handed over and nothing else is to be done.
    """

    __slots__ = (
        "_careful",
        "_idle",
        "_limit",
        "_mark",
        "_most",
        "_ticks",
        "_waited",
        "easy",
        "low",
        "yielded",
    )

    def __init__(self, most: int) -> None:
        self.yielded = 0
        self._most = most
        self._careful = False
        self._idle = True
        self._mark = (0, 0.0)
        self._waited = 0.0
        self._ticks: deque[int] = deque(maxlen=TICKS)
        self._set(1)

    def _set(self, limit: int) -> None:
        self._limit = 1 if self._careful else limit
        self.low = self._limit // 2
        self.easy = math.inf if self._careful else self.low + 1

    @property
    def careful(self) -> bool:
        """Whether a message is buffered that must be handed over alone; receives none ahead."""
        return self._careful

    @careful.setter
    def careful(self, careful: bool) -> None:
        self._careful = careful
        self._set(self._limit)

    def room(self, buffered: int, wanted: int) -> int:
        """Return how many messages to ask for: what the caller waits for, or a refill ahead."""
        ahead = 0
        if self._limit > 1 and not self._idle and buffered * 2 <= self._limit:
            ahead = self._limit - buffered
        return min(max(wanted - buffered, ahead), MAX_RECEIVE)

    def asked(self) -> None:
        """The caller wants messages."""
        self._idle = False

    def waited(self, seconds: float) -> None:
        """The caller waited for messages: that is no sign of how fast it is."""
        self._waited += seconds

    def adapt(self, now: float, lease: float) -> None:
        """Hold as much as the caller takes a quarter ``lease`` for, but at most twice as much.

        How fast it is shows in what it took since the last time.
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
        """Ticks come from now on."""
        self._ticks.clear()

    def tick(self, buffered: int, now: float, lease: float, *, waiting: bool) -> int:
        """Return how many of ``buffered`` messages the caller will ask for soon enough."""
        self._ticks.append(self.yielded)
        if len(self._ticks) < TICKS:
            return buffered
        recent = self.yielded - self._ticks[0]
        if recent == 0 and buffered and not waiting:
            self._idle = True
            self._set(1)
            return 0
        if buffered > 3 * recent + 1:
            self.adapt(now, lease)
            self._set(max(1, recent))
            return self._limit
        return buffered
