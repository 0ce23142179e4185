"""One message or record as one line of text or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from abe.backends.message_queue.base.message import BaseMessage
from abe.display.text import INVISIBLE, MAX_LINE, cell, preview, when
from abe.errors import PayloadError

FIELDS = ("id", "key", "timestamp", "attempt", "headers", "payload")
"""Members of the JSON object that represents a message; the names are stable."""


def json_line(record: Mapping[str, Any]) -> str:
    """Return ``record`` as JSON on one line, with invisible characters escaped."""
    # Outside strings JSON has none of these characters, so they are always inside one.
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    return INVISIBLE.sub(lambda match: json.dumps(match.group())[1:-1], text)


def message_json(message: BaseMessage) -> str:
    """Return the members named by `FIELDS` as one line of JSON; null where a backend has none."""
    moment = message.timestamp
    values = (
        message.id,
        message.key,
        moment.isoformat() if moment is not None else None,
        message.attempt,
        dict(message.headers),
        dict(message),
    )
    try:
        return json_line(dict(zip(FIELDS, values, strict=True)))
    except (TypeError, ValueError) as error:
        raise PayloadError(f"message {message.id} is not JSON: {error}") from None


def message_text(message: BaseMessage) -> str:
    """Return time, key, payload and notes as one line for a person to read."""
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
