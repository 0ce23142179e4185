"""Dead letters: the headers that say why a message was given up."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping

from abe.backends.message_queue.base.log_records import summary

__all__ = ["PREFIX", "dead_headers", "raw_payload", "reason_for"]

PREFIX = "abe-dead-"
"""Headers with this prefix are abe's; replaying removes them."""
MAX_LENGTH = 1000
MAX_ORIGINS = 10


def reason_for(error: BaseException) -> str:
    """Return an error as a reason: its summary, and on further lines where it came from."""
    where = traceback.format_list(traceback.extract_tb(error.__traceback__)[-3:])
    lines = [summary(error), *(line.rstrip() for line in where)]
    seen = {id(error)}
    pending = _origins(error)
    while pending and len(seen) < MAX_ORIGINS:
        origin = pending.pop(0)
        if id(origin) not in seen:
            seen.add(id(origin))
            lines.append(f"from {summary(origin)}")
            pending += _origins(origin)
    return "\n".join(lines).strip()


def _origins(error: BaseException) -> list[BaseException]:
    """Return the errors that ``error`` was raised from, or consists of."""
    members = list(error.exceptions) if isinstance(error, BaseExceptionGroup) else []
    context = None if error.__suppress_context__ else error.__context__
    cause = error.__cause__ or context
    return members + ([cause] if cause is not None else [])


def raw_payload(body: bytes) -> dict[str, str]:
    """Return what is shown in the place of a payload that cannot be decoded: its text, escaped."""
    return {"abe-raw": body.decode(errors="backslashreplace")}


def dead_headers(
    headers: Mapping[str, str], *, reason: str, attempts: int, id: str | None, key: str | None
) -> dict[str, str]:
    """Return ``headers`` and those that say why a message was given up.

    ``abe-dead-reason`` (the first line of ``reason``), ``abe-dead-traceback`` (the others),
    ``abe-dead-attempts``, ``abe-dead-time`` (seconds since the epoch), ``abe-dead-id`` and
    ``abe-dead-key`` (the message's own).
    """
    summary, _, where = reason.partition("\n")
    texts = {
        "reason": summary[:MAX_LENGTH],
        "traceback": where[-MAX_LENGTH:],
        "attempts": str(attempts),
        "time": f"{time.time():.6f}",
        "id": id or "",
        "key": key or "",
    }
    clean = (text.encode(errors="replace").decode() for text in texts.values())
    return {**headers, **{PREFIX + name: text for name, text in zip(texts, clean, strict=True)}}
