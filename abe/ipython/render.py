"""What magics show: text and HTML made of data nobody vouches for.

Everything that came from a message goes through `cell` or `preview` before it is shown (see
`abe._text`), and through HTML escaping in HTML.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from abe import _text
from abe._text import MAX_CELL, SECRET, plural, redact, when

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

MAX_LINE = 2000
"""Most characters of anything else."""
MAX_ROWS = 50
"""Most rows of one table."""


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


def visible(text: str, limit: int | None = None) -> str:
    """Return ``text`` on one line, with what cannot be seen as escapes, cut to ``limit``."""
    return _text.visible(text, limits.cell if limit is None else limit)


def cell(text: str, limit: int | None = None) -> str:
    """Return foreign ``text`` fit to be shown: redacted, visible and short."""
    return _text.cell(text, limits.cell if limit is None else limit)


def preview(value: object, limit: int | None = None) -> str:
    """Return the beginning of ``value`` as JSON, redacted, visible and short."""
    return _text.preview(value, limits.cell if limit is None else limit)


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
        whole: Other columns that are not broken into lines.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    total: int | None = None
    notes: Sequence[str] = field(default_factory=tuple)
    figure: str = ""
    numeric: Collection[str] = ()
    whole: Collection[str] = ()

    def to_html(self) -> str:
        """Return the table as HTML without styles of its own but alignment.

        One that is too wide scrolls, also by keyboard.
        """
        caption = _html(self.caption)
        styles = [
            _NUMBER if column in self.numeric else _WHOLE if column in self.whole else _TEXT
            for column in self.columns
        ]
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
_WHOLE = ' style="text-align:left;white-space:nowrap"'
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
