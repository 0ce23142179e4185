"""The memory backend fulfils the contract, also for consumers on another loop than its own."""

from __future__ import annotations

import abe
from abe.backends.message_queue.service.memory import MemoryBackend
from abe.sync.portal import get_portal
from abe.testing.contract import BackendContract, ConsumerContract
from abe.testing.harness import Harness
from abe.types import MessageQueueBackendProtocol


class MemoryHarness(Harness):
    """One named store for each namespace."""

    patience = 10.0
    quiet = 0.05
    short_delay = 0.15

    def __init__(self) -> None:
        self._made: list[MemoryBackend] = []

    def open(self, backend: MemoryBackend) -> MessageQueueBackendProtocol:
        self._made.append(backend)
        return backend

    def make(self, namespace: str) -> MessageQueueBackendProtocol:
        return self.open(MemoryBackend(namespace))

    def make_bounded(self, namespace: str, capacity: int) -> MessageQueueBackendProtocol:
        return self.open(MemoryBackend(namespace, maxsize=capacity, publish_timeout=0.1))

    def make_short_lease(self, namespace: str, seconds: float) -> MessageQueueBackendProtocol:
        return self.open(MemoryBackend(namespace, lease=seconds))

    def advance_time(self, seconds: float) -> None:
        for store in {backend._store for backend in self._made}:
            store.advance_time(seconds)


class TestMemory(BackendContract):
    harness = MemoryHarness


class TestMemoryConsumer(ConsumerContract):
    harness = MemoryHarness


class BridgedHarness(MemoryHarness):
    """The facade opens each backend, on the loop of the portal, which stays."""

    def __init__(self) -> None:
        super().__init__()
        get_portal()

    def open(self, backend: MemoryBackend) -> MessageQueueBackendProtocol:
        return abe.connect(super().open(backend)).aio


class TestBridged(BackendContract):
    harness = BridgedHarness

    test_has_the_three_methods = None  # type: ignore[assignment]  # from_env opens its own
    test_dropped_stream_gives_back = None  # type: ignore[assignment]  # in silence: test_sync_aio


class TestBridgedConsumer(ConsumerContract):
    harness = BridgedHarness
