"""The synchronous facade: `connect` opens any backend for scripts, threads and notebooks."""

from __future__ import annotations

from abe.sync.backend import SyncBackend, connect
from abe.sync.nesting import enable_nesting
from abe.sync.stream import SyncBatch, SyncStream
from abe.sync.worker import Worker

__all__ = [
    "SyncBackend",
    "SyncBatch",
    "SyncStream",
    "Worker",
    "connect",
    "enable_nesting",
]
