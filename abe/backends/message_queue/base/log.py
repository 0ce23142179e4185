"""One form for everything that is logged about a message."""

from __future__ import annotations

import logging

from abe.backends.message_queue.base.message import BaseMessage
from abe.types import ConsumerGroup

__all__ = ["log_message"]


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
    """Log ``text`` with the fields that identify ``message``, in the text and as attributes.

    Args:
        logger: The logger of the module that speaks.
        level: Of `logging`.
        text: What happened.
        message: Whom it happened to.
        backend: The backend's name.
        group: The consumer group.
        error: Logged with its traceback.
    """
    fields = {
        "backend": backend,
        "group": group,
        "key": message.key,
        "id": message.id,
        "attempt": message.attempt,
    }
    logger.log(
        level,
        "%s (backend=%s group=%s key=%s id=%s attempt=%s)",
        text,
        *fields.values(),
        extra=fields,
        exc_info=error,
    )
