"""Foreign text made fit to be shown: on one line, short, harmless to a terminal, without secrets.

What came from a message, a broker or an error goes through `cell` or `preview` before anybody sees
it. Cost depends on the limits, not on the size of the data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime

__all__ = [
    "INVISIBLE",
    "MAX_CELL",
    "SECRET",
    "cell",
    "plural",
    "preview",
    "redact",
    "visible",
    "when",
]

MAX_CELL = 160
"""Most characters of one table cell."""
SECRET = "***"  # noqa: S105 - what stands in for one
"""What is shown in the place of a secret."""

_SLACK = 500  # a URL that begins inside a cell is redacted even if it ends behind it

# Controls, soft hyphen, zero-width and bidirectional marks, separators that break lines, surrogates
# and tags. Joiners stay: emoji and several scripts are written with them.
INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Characters that change how a terminal shows the others, or that nobody can see."""
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}

_CONFIDENTIAL = (
    "pass|passw(?:or)?d|passwd|passphrase|pwd|secret|token|credentials?|authorization"
    "|api[_-]?key|access[_-]?key|private[_-]?key|secret[_-]?key"
)
_SECRET_FIELD = re.compile(rf"(?:.*[_.-])?(?:{_CONFIDENTIAL})", re.IGNORECASE | re.DOTALL)
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# But for the form that errors show.
_URL_CREDENTIALS = re.compile(
    r"([A-Za-z][A-Za-z0-9+.\-]{0,30}://)(?!\[user:password@\])[^\s/?#\"'<>]*@"
)
_URL_CUT = re.compile(r"(://)[^\s/?#@\"'<>]*:[^\s/?#@\"'<>]*\Z")
_URL_QUERY = re.compile(
    rf"([?&](?:[\w.-]*[_.-])?(?:{_CONFIDENTIAL}|sig|signature)=)[^&\s\"'<>#]+", re.IGNORECASE
)


def visible(text: str, limit: int = MAX_CELL) -> str:
    """Return ``text`` on one line, with what cannot be seen as escapes, cut to ``limit``."""
    cut = len(text) > limit
    shown = INVISIBLE.sub(_escape, text[:limit] if cut else text)
    if cut or len(shown) > limit:
        return f"{shown[: limit - 1]}…"
    return shown


def redact(text: str) -> str:
    """Return ``text`` without the credentials in its URLs."""
    if "://" in text:
        text = _URL_CREDENTIALS.sub(rf"\1{SECRET}@", text)
    if "=" in text:
        text = _URL_QUERY.sub(rf"\1{SECRET}", text)
    return text


def cell(text: str, limit: int = MAX_CELL) -> str:
    """Return foreign ``text`` fit to be shown: redacted, visible and short."""
    return visible(_redact_start(text, limit), limit)


def preview(value: object, limit: int = MAX_CELL) -> str:
    """Return the beginning of ``value`` as JSON, redacted, visible and short."""
    parts: list[str] = []
    length = 0
    for part in _json(value, limit):
        parts.append(part)
        length += len(part)
        if length > limit:
            break
    return visible("".join(parts), limit)


def when(moment: datetime | None) -> str:
    """Return a time as every table shows it."""
    if moment is None:
        return ""
    return moment.astimezone(UTC).isoformat(sep=" ", timespec="milliseconds").replace("+00:00", "Z")


def plural(number: int, noun: str) -> str:
    """Return ``1 message``, ``2 messages``, ``12,000 messages``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _json(value: object, limit: int) -> Iterator[str]:
    if isinstance(value, str):
        yield json.dumps(_redact_start(value, limit), ensure_ascii=False)
    elif isinstance(value, dict):
        yield "{"
        for i, (name, inner) in enumerate(value.items()):
            yield ", " if i else ""
            yield from _json(name, limit)
            yield ": "
            hidden = isinstance(name, str) and isinstance(inner, str) and _is_secret(name)
            yield from _json(SECRET if hidden else inner, limit)
        yield "}"
    elif isinstance(value, list | tuple):
        yield "["
        for i, inner in enumerate(value):
            yield ", " if i else ""
            yield from _json(inner, limit)
        yield "]"
    elif value is None or isinstance(value, bool | float | int):
        yield _number(value)
    else:
        yield f"<{type(value).__name__}>"


def _number(value: float | bool | None) -> str:
    try:
        return json.dumps(value)
    except ValueError:  # more digits than Python converts
        return "<a very long number>"


def _is_secret(name: str) -> bool:
    return len(name) <= 100 and _SECRET_FIELD.fullmatch(_HUMP.sub("_", name)) is not None


def _redact_start(text: str, limit: int) -> str:
    room = limit + _SLACK
    if len(text) <= room:
        return redact(text)
    return _URL_CUT.sub(rf"\1{SECRET}", redact(text[:room])) + "…"


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    code = ord(character)
    if character in _ESCAPES:
        return _ESCAPES[character]
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
