"""One form for everything that is logged about a message."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar

from abe.backends.message_queue.base.message import BaseMessage
from abe.types import ConsumerGroup

__all__ = ["Handling", "MessageContext", "handling", "log", "log_message", "summary"]


def log(
    logger: logging.Logger,
    level: int,
    text: str,
    *arguments: object,
    extra: Mapping[str, object] | None = None,
    error: BaseException | None = None,
    stacklevel: int = 1,
) -> None:
    """Log, whatever the application's handlers and filters raise.

    A record that cannot be logged is lost; a settlement or a reconnection must not be lost with it.

    Args:
        logger: The logger of the module.
        level: Level of the record, e.g. ``logging.WARNING``.
        text: The message, with ``%`` for each of ``arguments``.
        *arguments: Values that are formatted into ``text`` if the record is shown.
        extra: Attributes of the record, e.g. ``backend``.
        error: Exception whose traceback is part of the record.
        stacklevel: Whose line the record names: 1 is the caller's.
    """
    with suppress(Exception):
        logger.log(level, text, *arguments, extra=extra, exc_info=error, stacklevel=stacklevel + 1)


def summary(error: BaseException) -> str:
    """Return the type and the text of an error, whatever its ``__str__`` raises."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # an application's exception may not be printable
        return f"{type(error).__name__}: (its text cannot be printed)"


def log_message(
    logger: logging.Logger,
    level: int,
    text: str,
    message: BaseMessage,
    *,
    backend: str,
    group: ConsumerGroup,
    error: BaseException | None = None,
) -> None:
    """Log ``text`` with the fields that identify ``message``, in the text and as attributes."""
    fields = _fields(message, backend, group)
    log(
        logger,
        level,
        "%s (backend=%s group=%s key=%s id=%s attempt=%s)",
        text,
        *fields.values(),
        extra=fields,
        error=error,
        stacklevel=2,
    )


class Handling:
    """One handling of a message, found in its context by log records, tasks and threads."""

    __slots__ = ("backend", "group", "message")

    def __init__(self, message: BaseMessage, backend: str, group: ConsumerGroup) -> None:
        self.message = message
        self.backend = backend
        self.group = group


handling: ContextVar[Handling | None] = ContextVar("handling", default=None)


class MessageContext(logging.Filter):
    """A filter for log handlers: adds the message in hand to every record of its handler.

    The attributes are ``backend``, ``group``, ``key``, ``id`` and ``attempt``; what a record has
    already stays.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Complete the record; it is never dropped."""
        if (this := handling.get()) is not None:
            for name, value in _fields(this.message, this.backend, this.group).items():
                record.__dict__.setdefault(name, value)
        return True


def _fields(message: BaseMessage, backend: str, group: ConsumerGroup) -> dict[str, object]:
    return {
        "backend": backend,
        "group": group,
        "key": message.key,
        "id": message.id,
        "attempt": message.attempt,
    }
