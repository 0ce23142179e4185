"""The memory backend fulfils the contract."""

from __future__ import annotations

from abe.backends.message_queue.service.memory import MemoryBackend
from abe.testing.contract import BackendContract, ConsumerContract
from abe.testing.harness import Harness


class MemoryHarness(Harness):
    """One named store for each namespace."""

    patience = 10.0
    quiet = 0.05
    short_delay = 0.15

    def __init__(self) -> None:
        self._made: list[MemoryBackend] = []

    def make(self, namespace: str) -> MemoryBackend:
        backend = MemoryBackend(namespace)
        self._made.append(backend)
        return backend

    def make_bounded(self, namespace: str, capacity: int) -> MemoryBackend:
        return MemoryBackend(namespace, maxsize=capacity, publish_timeout=0.1)

    def make_short_lease(self, namespace: str, seconds: float) -> MemoryBackend:
        return MemoryBackend(namespace, lease=seconds)

    def advance_time(self, seconds: float) -> None:
        for store in {backend._store for backend in self._made}:
            store.advance_time(seconds)


class TestMemory(BackendContract):
    harness = MemoryHarness


class TestMemoryConsumer(ConsumerContract):
    harness = MemoryHarness
