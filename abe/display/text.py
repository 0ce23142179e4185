"""Foreign text, numbers and times as every table and sentence shows them.

Whatever came from a message, a broker or an error passes through `cell` or `preview` before it is
shown: on one line, shortened, without secrets, harmless to a terminal. The cost depends on the
limits, not on the size of the data.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from abe._redact import SECRET, is_secret, redact
from abe.errors import PayloadError

MAX_CELL = 160
"""Default maximum length of a table cell."""
MAX_ROWS = 50
"""Default maximum number of rows of a table."""
MAX_LINE = 2000
"""Maximum length of any other line."""

# Controls, soft hyphen, zero-width and bidirectional marks, separators that break lines, surrogates
# and tags. Joiners stay: emoji and several scripts are written with them.
INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Characters that cannot be seen, or that change how a terminal shows the others."""
_SLACK = 500  # a URL that begins inside a cell is redacted even if it ends behind it
_URL_CUT = re.compile(r"(://)[^\s/?#@\"'<>]*:[^\s/?#@\"'<>]*\Z")
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


@dataclass(slots=True)
class Limits:
    """How much a table shows; ``%config AbeMagics`` changes it.

    Attributes:
        rows: Maximum number of rows.
        cell: Maximum number of characters of a cell.
    """

    rows: int = MAX_ROWS
    cell: int = MAX_CELL

    def reset(self) -> None:
        """Restore the defaults."""
        self.rows, self.cell = MAX_ROWS, MAX_CELL


limits = Limits()
"""The limits of this process."""


def visible(text: str, limit: int | None = None) -> str:
    """Return ``text`` on one line, invisible characters as escapes, cut to ``limit``."""
    limit = limits.cell if limit is None else limit
    cut = len(text) > limit
    shown = INVISIBLE.sub(_escape, text[:limit] if cut else text)
    if cut or len(shown) > limit:
        return f"{shown[: limit - 1]}…"
    return shown


def cell(text: str, limit: int | None = None) -> str:
    """Return foreign ``text`` redacted, visible and cut to ``limit``."""
    limit = limits.cell if limit is None else limit
    return visible(_redact_start(text, limit), limit)


def preview(value: object, limit: int | None = None) -> str:
    """Return the beginning of ``value`` as JSON, redacted, visible and cut to ``limit``."""
    limit = limits.cell if limit is None else limit
    parts: list[str] = []
    length = 0
    for part in _json(value, limit):
        parts.append(part)
        length += len(part)
        if length > limit:
            break
    return visible("".join(parts), limit)


def when(moment: datetime | None) -> str:
    """Return a time in UTC, to the millisecond; "" for ``None``."""
    if moment is None:
        return ""
    return moment.astimezone(UTC).isoformat(sep=" ", timespec="milliseconds").replace("+00:00", "Z")


def age(seconds: float | None) -> str:
    """Return a duration in its two largest units, e.g. ``2 d 7 h``; "" for ``None``."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days:,} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def number(value: int | None) -> str:
    """Return a number with thousands separators; ``?`` where the broker cannot say."""
    return "?" if value is None else f"{value:,}"


def plural(count: int, noun: str) -> str:
    """Return ``1 message``, ``2 messages``, ``12,000 messages``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean name?`` with the known name that is nearest; "" if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {cell(near[0], 60)}?" if near else ""


def group_name(group: str | None) -> str:
    """Return the name of a consumer group in a sentence."""
    return "the default group" if group is None else f"group {cell(group)}"


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object that `json` has read, of which `json` alone keeps the last of equal names.

    Raises:
        PayloadError: If a name stands twice.
    """
    result = dict(pairs)
    if len(result) != len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise PayloadError(f"the name {json.dumps(cell(name, 60))} stands twice in one object")
    return result


def _json(value: object, limit: int) -> Iterator[str]:
    if isinstance(value, str):
        yield json.dumps(_redact_start(value, limit), ensure_ascii=False)
    elif isinstance(value, dict):
        yield "{"
        for i, (name, inner) in enumerate(value.items()):
            yield ", " if i else ""
            yield from _json(name, limit)
            yield ": "
            # A flag or null is not a secret.
            hidden = isinstance(name, str) and not isinstance(inner, bool | None)
            hidden = hidden and is_secret(name)
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
