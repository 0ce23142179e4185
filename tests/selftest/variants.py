"""Variants of the reference backend that claim less, or differently, so that every case applies."""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, ClassVar, Self

from abe.backends.message_queue.base import Capabilities
from abe.testing.harness import Harness
from abe.types import ConsumerGroup
from tests.selftest.reference import FULL, ReferenceBackend

__all__ = [
    "Bare",
    "GroupFiltered",
    "KeyOrdered",
    "Modest",
    "PlainBackend",
    "PlainHarness",
    "UpperBound",
    "VARIANTS",
]


class KeyOrdered(ReferenceBackend):
    """Ordered per key."""

    CAPABILITIES: ClassVar[Capabilities] = replace(FULL, ordering="key")


class GroupFiltered(ReferenceBackend):
    """All consumers of a group give the same filter."""

    CAPABILITIES: ClassVar[Capabilities] = replace(FULL, keys="group")


class UpperBound(ReferenceBackend):
    """Releases count as attempts; no order."""

    CAPABILITIES: ClassVar[Capabilities] = replace(FULL, attempts="upper", ordering="none")


class Modest(ReferenceBackend):
    """A broker with configured groups, and leases, but neither release nor attempts."""

    CAPABILITIES: ClassVar[Capabilities] = Capabilities(
        durable=True, groups=True, redelivery="message", lease=2.0
    )


class Bare(ReferenceBackend):
    """Declares capabilities, and none of them."""

    CAPABILITIES: ClassVar[Capabilities] = Capabilities()


VARIANTS: tuple[type[ReferenceBackend], ...] = (
    ReferenceBackend,
    KeyOrdered,
    GroupFiltered,
    UpperBound,
    Modest,
    Bare,
)


class PlainBackend:
    """What a stranger might write: three methods and nothing of abe.

    At least once in the simplest way: a message counts as done when the iterator is resumed.
    """

    def __init__(self) -> None:
        self.waiting: deque[tuple[str, dict[str, Any]]] = deque()
        self.news = asyncio.Event()

    @classmethod
    def from_env(cls) -> Self:
        """Create a backend; there is nothing to configure."""
        return cls()

    async def publish(self, key: str, payload: dict[str, Any]) -> None:
        """Append a copy."""
        self.waiting.append((key, copy.deepcopy(payload)))
        self.news.set()

    async def consume(self, *, group: ConsumerGroup = None) -> AsyncIterator[dict[str, Any]]:
        """Yield what waits; what was not finished goes back to the front."""
        while True:
            while not self.waiting:
                self.news.clear()
                await self.news.wait()
            item = self.waiting.popleft()
            try:
                yield item[1]
            except GeneratorExit:
                self.waiting.appendleft(item)
                self.news.set()
                raise


class PlainHarness(Harness):
    """One plain backend for each namespace: its messages are in the instance.

    Args:
        backend: Its class.
        patience: Seconds to wait for what must happen.
    """

    quiet = 0.02
    reopen = False

    def __init__(self, backend: type[Any] = PlainBackend, patience: float = 10.0) -> None:
        self.backend = backend
        self.patience = patience
        self._made: dict[str, Any] = {}

    def make(self, namespace: str) -> Any:
        """Return the backend of ``namespace``."""
        if namespace not in self._made:
            self._made[namespace] = self.backend.from_env()
        return self._made[namespace]
