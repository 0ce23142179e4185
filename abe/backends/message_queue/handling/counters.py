"""Counters of a consumer, readable at any time."""

from __future__ import annotations

import time
from collections import deque

__all__ = ["Counters"]

RATE_WINDOW = 10.0
"""Seconds over which `Counters.rate` is measured."""


class Counters:
    """Counters of a consumer, readable at any time and from any thread.

    Attributes:
        processed: Messages handled successfully.
        failed: Handler calls that ended in an exception.
        retried: Failures after which the message is to be redelivered.
        dead: Messages given up.
        in_flight: Handlers running now.
        last_error: The last exception of a handler.
    """

    def __init__(self) -> None:
        self.processed = 0
        self.failed = 0
        self.retried = 0
        self.dead = 0
        self.in_flight = 0
        self.last_error: BaseException | None = None
        self._finished: deque[float] = deque(maxlen=10_000)

    @property
    def rate(self) -> float:
        """Messages handled per second, over the last ten seconds."""
        now = time.monotonic()
        recent = 0
        oldest = now
        # A copy, because handlers go on while another thread reads this.
        for moment in reversed(self._finished.copy()):
            if now - moment > RATE_WINDOW:
                break
            recent, oldest = recent + 1, moment
        full = recent == self._finished.maxlen
        return recent / max(now - oldest, 0.001) if full else recent / RATE_WINDOW
