"""The synchronous facade: `connect` opens any backend for scripts, threads and notebooks."""

from __future__ import annotations

from abe.sync.aio import AsyncStream, AsyncView
from abe.sync.backend import SyncBackend, connect
from abe.sync.iterator import SyncBatch, SyncStream
from abe.sync.nesting import enable_nesting
from abe.sync.worker import Worker

__all__ = [
    "AsyncStream",
    "AsyncView",
    "SyncBackend",
    "SyncBatch",
    "SyncStream",
    "Worker",
    "connect",
    "enable_nesting",
]
