"""`RetryPolicy`: when a failed message is tried again."""

from __future__ import annotations

from dataclasses import dataclass

from abe.backends.message_queue.base.backoff import Backoff
from abe.errors import ConfigurationError

__all__ = ["RetryPolicy"]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how late a failed message is tried again.

    Attributes:
        max_attempts: Deliveries after which a message that fails goes to the dead letters.
        base: Seconds before the second attempt.
        factor: By which each further wait is longer.
        max_delay: Longest wait, in seconds.
        jitter: Whether to wait a random 50 to 100 % of that ("equal jitter"), so that failures
            spread out.

    Raises:
        ConfigurationError: If a number is out of range.
    """

    max_attempts: int = 5
    base: float = 0.5
    factor: float = 2.0
    max_delay: float = 60.0
    jitter: bool = True

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ConfigurationError(f"max_attempts is {self.max_attempts}; it must be at least 1")
        if not (self.base >= 0 and self.max_delay >= 0 and self.factor >= 1):
            raise ConfigurationError("base and max_delay must be 0 or more, factor 1 or more")

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after attempt number ``attempt`` (from 1) has failed."""
        return Backoff(self.base, self.factor, self.max_delay, self.jitter).delay(attempt)
