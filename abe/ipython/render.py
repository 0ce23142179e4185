"""What magics show: text and HTML made of data nobody vouches for.

Everything that came from a message goes through `visible` (control, ANSI and bidirectional
characters become escapes), `redact` (credentials) and a length limit before it is shown, and
through HTML escaping in HTML. Cost depends on the limits, not on the size of the data.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

__all__ = [
    "MAX_CELL",
    "MAX_LINE",
    "MAX_ROWS",
    "SECRET",
    "Limits",
    "Table",
    "cell",
    "limits",
    "plural",
    "preview",
    "redact",
    "reset_limits",
    "visible",
    "when",
    "whose",
]

MAX_CELL = 160
"""Most characters of one table cell."""
MAX_LINE = 2000
"""Most characters of anything else."""
MAX_ROWS = 50
"""Most rows of one table."""
SECRET = "***"  # noqa: S105 - what stands in for one
"""What is shown in the place of a secret."""


@dataclass(slots=True)
class Limits:
    """How much a table shows; ``%config AbeMagics`` changes it.

    Attributes:
        rows: Most rows.
        cell: Most characters of one cell.
    """

    rows: int = MAX_ROWS
    cell: int = MAX_CELL


limits = Limits()
"""What holds in this process."""


def reset_limits() -> None:
    """Show as much as when nothing is configured."""
    limits.rows, limits.cell = MAX_ROWS, MAX_CELL


_SLACK = 500  # a URL that begins inside a cell is redacted even if it ends behind it

# Controls, soft hyphen, zero-width and bidirectional marks, separators that break lines, surrogates
# and tags. Joiners stay: emoji and several scripts are written with them.
_INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}

_CONFIDENTIAL = (
    "pass|passw(?:or)?d|passwd|passphrase|pwd|secret|token|credentials?|authorization"
    "|api[_-]?key|access[_-]?key|private[_-]?key|secret[_-]?key"
)
_SECRET_FIELD = re.compile(rf"(?:.*[_.-])?(?:{_CONFIDENTIAL})", re.IGNORECASE | re.DOTALL)
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_URL_CREDENTIALS = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]{0,30}://)[^\s/?#\"'<>]*@")
_URL_CUT = re.compile(r"(://)[^\s/?#@\"'<>]*:[^\s/?#@\"'<>]*\Z")
_URL_QUERY = re.compile(
    rf"([?&](?:[\w.-]*[_.-])?(?:{_CONFIDENTIAL}|sig|signature)=)[^&\s\"'<>#]+", re.IGNORECASE
)


def visible(text: str, limit: int | None = None) -> str:
    """Return ``text`` on one line, with what cannot be seen as escapes, cut to ``limit``."""
    limit = limits.cell if limit is None else limit
    cut = len(text) > limit
    shown = _INVISIBLE.sub(_escape, text[:limit] if cut else text)
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


def cell(text: str, limit: int | None = None) -> str:
    """Return foreign ``text`` fit to be shown: redacted, visible and short."""
    limit = limits.cell if limit is None else limit
    return visible(_redact_start(text, limit), limit)


def preview(value: object, limit: int | None = None) -> str:
    """Return the beginning of ``value`` as JSON, redacted, visible and short."""
    limit = limits.cell if limit is None else limit
    parts: list[str] = []
    length = 0
    for part in _json(value, limit):
        parts.append(part)
        length += len(part)
        if length > limit:
            break
    return visible("".join(parts), limit)


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


def when(moment: datetime | None) -> str:
    """Return a time as every table shows it."""
    if moment is None:
        return ""
    return moment.astimezone(UTC).isoformat(sep=" ", timespec="milliseconds").replace("+00:00", "Z")


def plural(number: int, noun: str, several: str = "") -> str:
    """Return ``1 message``, ``2 messages``, ``12,000 messages``."""
    return f"{number:,} {noun if number == 1 else several or f'{noun}s'}"


def whose(group: str | None) -> str:
    """Return how sentences name a consumer group."""
    return "the default group" if group is None else f"group {cell(group)}"


@dataclass(slots=True)
class Table:
    """A table with a text and an HTML form.

    It escapes and makes visible; redacting and shortening is for `cell` and `preview`, which know
    what they are given.

    Attributes:
        caption: What the table shows.
        columns: Heads of the columns.
        rows: The rows to show; the first cell names the row.
        total: Number of rows there are, if not all are given.
        notes: Lines below the table.
        figure: HTML that stands below the rows; the rows say the same in words.
        numeric: Columns that hold numbers.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    total: int | None = None
    notes: Sequence[str] = field(default_factory=tuple)
    figure: str = ""
    numeric: Collection[str] = ()

    def to_html(self) -> str:
        """Return the table as HTML without styles of its own but alignment.

        One that is too wide scrolls, also by keyboard.
        """
        caption = _html(self.caption)
        styles = [_NUMBER if column in self.numeric else _TEXT for column in self.columns]
        heads = "".join(
            f'<th scope="col"{style}>{_html(c)}</th>'
            for c, style in zip(self.columns, styles, strict=True)
        )
        lines = [f'<div role="region" tabindex="0" aria-label="{caption}" style="overflow-x:auto">']
        lines.append(f"<table><caption{_CAPTION}>{caption}</caption>")
        if self.rows:
            lines += [f"<thead><tr>{heads}</tr></thead>", "<tbody>"]
            for row in self.rows:
                first, *others = zip(map(_html, row), styles, strict=True)
                cells = "".join(f"<td{style}>{text}</td>" for text, style in others)
                lines.append(f'<tr><th scope="row"{first[1]}>{first[0]}</th>{cells}</tr>')
            lines.append("</tbody>")
        lines += ["</table></div>", self.figure] if self.figure else ["</table></div>"]
        return "\n".join([*lines, *(f"<p>{_html(note)}</p>" for note in self._notes())])

    def to_text(self) -> str:
        """Return the table as aligned text."""
        lines = [_line(self.caption)]
        if self.rows:
            grid = [[_line(text) for text in row] for row in (self.columns, *self.rows)]
            widths = [max(_width(text) for text in column) for column in zip(*grid, strict=True)]
            grid.insert(1, ["-" * width for width in widths])
            lines += ["  ".join(map(_pad, row, widths)).rstrip() for row in grid]
        return "\n".join([*lines, *map(_line, self._notes())])

    def _notes(self) -> list[str]:
        hidden = (self.total or 0) - len(self.rows)
        more = [f"… and {hidden:,} more, not shown"] if hidden > 0 else []
        return [*more, *self.notes]


_TEXT = ' style="text-align:left"'
_NUMBER = ' style="text-align:right;white-space:nowrap"'
_CAPTION = ' style="caption-side:top;text-align:left"'


def _line(text: str) -> str:
    return visible(text, MAX_LINE)


def _html(text: str) -> str:
    return html.escape(_line(text), quote=True)


def _pad(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
