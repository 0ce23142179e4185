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
    SupportsPing,
    SupportsPublishMany,
    SupportsStats,
)
from abe_backend_sqs import SqsBackend

backend_class: type[MessageQueueBackendProtocol] = SqsBackend


def _fits(backend: SqsBackend) -> None:
    plain: MessageQueueBackendProtocol = backend
    headers: SupportsHeaders = backend
    delay: SupportsDelay = backend
    many: SupportsPublishMany = backend
    stats: SupportsStats = backend
    dead: SupportsDeadLetters = backend
    admin: SupportsAdmin = backend
    ping: SupportsPing = backend
    close: SupportsClose = backend
    del plain, headers, delay, many, stats, dead, admin, ping, close


def test_the_class_is_a_backend() -> None:
    assert issubclass(backend_class, MessageQueueBackendProtocol)
    _fits(SqsBackend("orders"))


def test_the_entry_point_leads_to_it() -> None:
    (found,) = metadata.entry_points(group="abe.backends.message_queue", name="sqs")
    assert found.load() is SqsBackend
