"""Redis Streams for `abe`; selected by ``QUEUE_BACKEND=redis``."""

from __future__ import annotations

from abe_backend_redis._version import __version__
from abe_backend_redis.backend import RedisBackend

__all__ = ["RedisBackend", "__version__"]
