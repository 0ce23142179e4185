"""The stream's connection: one receiver at a time, replaced by a new one when it breaks."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress

from abe.backends.message_queue.base.receiver import Receiver
from abe.errors import ConnectionLostError

__all__ = ["TRANSIENT", "Connection"]

logger = logging.getLogger(__name__)

TRANSIENT = (ConnectionError, TimeoutError)
"""Errors that a new connection may cure; `abe.errors.ConnectionLostError` is one."""

FIRST_DELAY = 0.1
MAX_DELAY = 10.0


class Connection:
    """Opens receivers, and replaces a broken one with backoff, whoever notices first.

    Args:
        factory: Makes a receiver; called again for every reconnection.
        name: The backend's name, for the log.
        on_lost: Called once per outage, before reconnecting.
    """

    def __init__(
        self, factory: Callable[[], Receiver], name: str, on_lost: Callable[[], None]
    ) -> None:
        self._factory = factory
        self._name = name
        self._fields = {"backend": name}
        self._on_lost = on_lost
        self._lock = asyncio.Lock()
        self._closing = asyncio.Event()
        self.receiver: Receiver | None = None

    async def open(self) -> Receiver:
        """Connect, retrying while the broker is unreachable; other errors are raised."""
        async with self._lock:
            if self.receiver is None:
                self.receiver = await self._reach(None)
            return self.receiver

    async def recover(self, broken: Receiver, error: BaseException) -> None:
        """Replace ``broken``; returns at once if that has already happened.

        Raises:
            ConnectionLostError: If the broker cannot be reached and the stream is closing.
        """
        async with self._lock:
            if self.receiver is not broken:
                return
            self._on_lost()
            with suppress(Exception):
                await broken.aclose()
            self.receiver = await self._reach(error)

    async def aclose(self) -> None:
        """Close the receiver."""
        self._closing.set()
        receiver, self.receiver = self.receiver, None
        if receiver is not None:
            with suppress(*TRANSIENT):
                await receiver.aclose()

    def stop_waiting(self) -> None:
        """Give up after the attempt in progress instead of waiting for the broker to return."""
        self._closing.set()

    async def _reach(self, error: BaseException | None) -> Receiver:
        """Open a new receiver; ``error`` is what ended the last one, if there was one."""
        delay = FIRST_DELAY
        failures = 0
        while True:
            if error is not None:
                failures += 1
                self._report(failures, error)
                await self._pause(delay * random.uniform(0.5, 1.0))
                delay = min(delay * 2, MAX_DELAY)
            receiver = self._factory()
            try:
                await receiver.open()
            except BaseException as failure:
                with suppress(Exception):
                    await receiver.aclose()
                if not isinstance(failure, TRANSIENT):
                    raise
                if self._closing.is_set():
                    text = f"backend {self._name!r} cannot be reached: {failure}"
                    raise ConnectionLostError(text) from failure
                error = failure
                continue
            if failures:
                logger.info("reconnected to backend %s", self._name, extra=self._fields)
            return receiver

    def _report(self, failures: int, error: BaseException) -> None:
        level = logging.WARNING if failures == 1 else logging.DEBUG
        text = "backend %s cannot be reached (%s: %s); retrying"
        logger.log(level, text, self._name, type(error).__name__, error, extra=self._fields)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()
