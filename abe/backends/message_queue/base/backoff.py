"""Trying again: which failures are worth it, and how long to wait before."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from abe.errors import AbeError

__all__ = ["Backoff", "pause", "transient"]

T = TypeVar("T")


def transient(error: BaseException) -> bool:
    """Return whether the same call may succeed later, with nothing changed by the caller."""
    if isinstance(error, AbeError):
        return error.retryable
    return isinstance(error, (ConnectionError, TimeoutError))


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait between tries: each time longer, up to a maximum.

    Attributes:
        first: Seconds after the first failure.
        factor: By which each further wait is longer.
        maximum: Longest wait, in seconds.
        jitter: Whether to wait a random 50 to 100 % of that ("equal jitter"), so that callers
            who failed together do not try again together.
    """

    first: float = 0.1
    factor: float = 2.0
    maximum: float = 10.0
    jitter: bool = True

    def delay(self, failures: int) -> float:
        """Return the seconds to wait after failure number ``failures`` (from 1) in a row."""
        try:
            wait = min(self.first * self.factor ** (failures - 1), self.maximum)
        except OverflowError:
            wait = self.maximum
        return wait * random.uniform(0.5, 1.0) if self.jitter else wait

    async def retry(
        self,
        call: Callable[[], Awaitable[T]],
        *,
        timeout: float = math.inf,
        stop: asyncio.Event | None = None,
        on_failure: Callable[[Exception, float], None] | None = None,
    ) -> T:
        """Await ``call()`` until it succeeds; raise its last error if that is not to be.

        Args:
            call: Called anew for each try.
            timeout: Seconds after which no further try begins.
            stop: Once set, one more try is the last, and it begins at once.
            on_failure: Called with the error and the seconds until the next try.

        Raises:
            Exception: What ``call`` raised: at once if it is not `transient`, else at the end.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        failures = 0
        while True:
            try:
                return await call()
            except Exception as error:
                failures += 1
                delay = self.delay(failures)
                stopped = stop is not None and stop.is_set()
                if stopped or not transient(error) or loop.time() + delay > deadline:
                    raise
                if on_failure is not None:
                    on_failure(error, delay)
            await pause(delay, stop)


async def pause(seconds: float, stop: asyncio.Event | None = None) -> None:
    """Sleep for ``seconds``, or until ``stop`` is set."""
    if stop is None:
        await asyncio.sleep(seconds)
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
