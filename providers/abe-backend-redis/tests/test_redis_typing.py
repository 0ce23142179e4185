"""The class fits the protocols; mypy checks these assignments, the test that they import."""

from __future__ import annotations

from importlib import metadata

from abe.types import (
    MessageQueueBackendProtocol,
    SupportsAdmin,
    SupportsClose,
    SupportsDeadLetters,
    SupportsDelay,
    SupportsHeaders,
    SupportsKeys,
    SupportsPeek,
    SupportsPing,
    SupportsPublishMany,
    SupportsStats,
)
from abe_backend_redis import RedisBackend

backend_class: type[MessageQueueBackendProtocol] = RedisBackend


def _fits(backend: RedisBackend) -> None:
    plain: MessageQueueBackendProtocol = backend
    keys: SupportsKeys = backend
    headers: SupportsHeaders = backend
    delay: SupportsDelay = backend
    many: SupportsPublishMany = backend
    peek: SupportsPeek = backend
    stats: SupportsStats = backend
    dead: SupportsDeadLetters = backend
    admin: SupportsAdmin = backend
    ping: SupportsPing = backend
    close: SupportsClose = backend
    del plain, keys, headers, delay, many, peek, stats, dead, admin, ping, close


def test_the_class_is_a_backend() -> None:
    assert issubclass(backend_class, MessageQueueBackendProtocol)
    _fits(RedisBackend())


def test_the_entry_point_leads_to_it() -> None:
    (found,) = metadata.entry_points(group="abe.backends.message_queue", name="redis")
    assert found.load() is RedisBackend
