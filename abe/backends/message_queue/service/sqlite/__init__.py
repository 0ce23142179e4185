"""The durable embedded backend: one SQLite file, shared by the processes of one machine."""

from __future__ import annotations

from abe.backends.message_queue.service.sqlite.backend import SQLiteBackend

__all__ = ["SQLiteBackend"]
