"""The backend protocol under its working name."""

from __future__ import annotations

from abe.types import MessageQueueBackendProtocol as MessageQueueBackend

__all__ = ["MessageQueueBackend"]
