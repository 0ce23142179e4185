"""A table with a text and an HTML form."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from abe.display.text import MAX_LINE, visible

NARROWEST = 8
"""Width below which a column is not folded."""
_TEXT = ' style="text-align:left"'
_WHOLE = ' style="text-align:left;white-space:nowrap"'
_NUMBER = ' style="text-align:right;white-space:nowrap"'
_CAPTION = ' style="caption-side:top;text-align:left"'


@dataclass(slots=True)
class Table:
    """Rows under column heads, with a caption above and notes below.

    Both forms escape markup and invisible characters; the cells have been redacted and shortened
    by `abe.display.text`.

    Attributes:
        caption: The heading.
        columns: Heads of the columns.
        rows: The rows to show; the first cell names the row.
        total: Number of rows there are, if not all are given.
        notes: Lines below the table.
        figure: HTML below the rows; the rows say the same in words.
        numeric: Columns that hold numbers.
        whole: Other columns whose cells are not wrapped.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    total: int | None = None
    notes: Sequence[str] = ()
    figure: str = ""
    numeric: Collection[str] = ()
    whole: Collection[str] = ()

    def to_html(self) -> str:
        """Return the table as HTML that scrolls, also by keyboard, where it is too wide."""
        lines = [_p(self.caption)]
        if self.rows:
            caption = _html(self.caption)
            styles = [
                _NUMBER if column in self.numeric else _WHOLE if column in self.whole else _TEXT
                for column in self.columns
            ]
            heads = "".join(
                f'<th scope="col"{style}>{_html(head)}</th>'
                for head, style in zip(self.columns, styles, strict=True)
            )
            lines = [
                f'<div role="region" tabindex="0" aria-label="{caption}" style="overflow-x:auto">',
                f"<table><caption{_CAPTION}>{caption}</caption>",
                f"<thead><tr>{heads}</tr></thead>",
                "<tbody>",
                *(_row(row, styles) for row in self.rows),
                "</tbody></table></div>",
            ]
        figure = [self.figure] if self.figure else []
        return "\n".join([*lines, *figure, *map(_p, self._notes())])

    def to_text(self) -> str:
        """Return the table as aligned text."""
        return "\n".join([_line(self.caption), *self.lines(), *map(_line, self._notes())])

    def lines(self, width: int | None = None) -> list[str]:
        """Return the heads and rows as aligned text; cells are folded to fit into ``width``."""
        if not self.rows:
            return []
        heads = [self.columns] if any(self.columns) else []
        grid = [[_line(text) for text in row] for row in (*heads, *self.rows)]
        widths = [max(_width(text) for text in column) for column in zip(*grid, strict=True)]
        while width and sum(widths) + 2 * len(widths) - 2 > width and max(widths) > NARROWEST:
            widths[widths.index(max(widths))] -= 1
        if heads:
            grid.insert(1, ["-" * size for size in widths])
        return [
            "  ".join(map(_pad, texts, widths)).rstrip()
            for row in grid
            for texts in zip_longest(*map(_fold, row, widths), fillvalue="")
        ]

    def _notes(self) -> list[str]:
        hidden = (self.total or 0) - len(self.rows)
        more = [f"… and {hidden:,} more, not shown"] if hidden > 0 else []
        return [*more, *self.notes]


def _row(row: Sequence[str], styles: Sequence[str]) -> str:
    (first, style), *others = zip(map(_html, row), styles, strict=True)
    cells = "".join(f"<td{style}>{text}</td>" for text, style in others)
    return f'<tr><th scope="row"{style}>{first}</th>{cells}</tr>'


def _p(text: str) -> str:
    return f"<p>{_html(text)}</p>"


def _html(text: str) -> str:
    return html.escape(_line(text), quote=True)


def _line(text: str) -> str:
    return visible(text, MAX_LINE)


def _fold(text: str, width: int) -> list[str]:
    if _width(text) <= width:
        return [text]
    parts = [""]
    for character in text:
        if _width(parts[-1] + character) > width:
            parts.append("")
        parts[-1] += character
    return parts


def _pad(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
