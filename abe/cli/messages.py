"""Messages as the command line shows them."""

from __future__ import annotations

from typing import Any

from abe._text import cell, plural, preview, when
from abe.backends.message_queue.base import BaseMessage
from abe.cli.output import MAX_LINE, json_line
from abe.errors import PayloadError

__all__ = ["FIELDS", "as_json", "as_text", "counted", "record", "whose"]

FIELDS = ("id", "key", "timestamp", "attempt", "headers", "payload")
"""Members of the JSON object that stands for a message; the names are stable."""


def record(message: BaseMessage) -> dict[str, Any]:
    """Return what `FIELDS` names; ``id``, ``key`` and ``timestamp`` are None on plain backends."""
    moment = message.timestamp
    return {
        "id": message.id,
        "key": message.key,
        "timestamp": moment.isoformat() if moment is not None else None,
        "attempt": message.attempt,
        "headers": dict(message.headers),
        "payload": dict(message),
    }


def as_json(message: BaseMessage) -> str:
    """Return the message as one line of JSON.

    Raises:
        PayloadError: If a plain backend has delivered what is not JSON.
    """
    try:
        return json_line(record(message))
    except (TypeError, ValueError) as error:
        raise PayloadError(f"message {message.id} is not JSON: {error}") from None


def as_text(message: BaseMessage) -> str:
    """Return the message as one line for a person."""
    notes = []
    if message.attempt > 1:
        notes.append(f"attempt {message.attempt}")
    if message.headers:
        notes.append(f"headers {preview(dict(message.headers))}")
    parts = (
        when(message.timestamp),
        cell(message.key or ""),
        preview(dict(message), MAX_LINE),
        f"({', '.join(notes)})" if notes else "",
    )
    return "  ".join(filter(None, parts))


def whose(group: str | None) -> str:
    """Return how texts name a group."""
    return "the default group" if group is None else f"group {cell(group)}"


def counted(count: int) -> str:
    """Return ``1 message`` or ``2 messages``."""
    return plural(count, "message")
