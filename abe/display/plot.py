"""Small plots as inline SVG in the colour of the page, each with its text alternative."""

from __future__ import annotations

import html
from collections.abc import Sequence

from abe.display.text import visible

_LABEL = 220
_BAR = 260
_ROW = 18
_MAX_NAME = 34


def bars(
    title: str, rows: Sequence[tuple[str, Sequence[int]]], parts: Sequence[str], text: str
) -> str:
    """Return stacked horizontal bars.

    Args:
        title: The title.
        rows: The name of each bar and its numbers, one for each of ``parts``.
        parts: Names of the numbers, from the strongest shade to the faintest.
        text: The text alternative.
    """
    most = max((sum(numbers) for _, numbers in rows), default=0)
    if not most:
        return ""
    width, height = _LABEL + _BAR + 70, _ROW * (len(rows) + 1) + 6
    shades = [1.0 - 0.8 * i / max(len(parts) - 1, 1) for i in range(len(parts))]
    lines = [_open(width, height, f"max-width:{width}px;width:100%", f"{title}. {text}")]
    for i, (name, numbers) in enumerate(rows):
        top = i * _ROW + 2
        lines.append(_text(_LABEL - 6, top + 12, visible(name, _MAX_NAME), "end"))
        left = float(_LABEL)
        for number, shade in zip(numbers, shades, strict=True):
            length = number * _BAR / most
            lines.append(
                f'<rect x="{left:.1f}" y="{top}" width="{length:.1f}" height="{_ROW - 4}"'
                f' fill="currentColor" fill-opacity="{shade:.2f}"/>'
                if number
                else ""
            )
            left += length
        lines.append(_text(left + 6, top + 12, f"{sum(numbers):,}", "start"))
    lines.append(_legend(parts, shades, len(rows) * _ROW + 4))
    return "".join(filter(None, [*lines, "</svg>"]))


def _legend(parts: Sequence[str], shades: Sequence[float], top: int) -> str:
    lines: list[str] = []
    left = _LABEL
    for part, shade in zip(parts, shades, strict=True):
        lines.append(
            f'<rect x="{left}" y="{top + 3}" width="10" height="10" fill="currentColor"'
            f' fill-opacity="{shade:.2f}"/>'
        )
        lines.append(_text(left + 14, top + 12, part, "start"))
        left += 24 + 6 * len(part)
    return "".join(lines)


def sparkline(values: Sequence[float], text: str) -> str:
    """Return a line that shows how a number has changed.

    Args:
        values: The numbers, oldest first.
        text: The text alternative.
    """
    width, height = 120, 20
    most = max(values, default=0.0)
    if not most or len(values) < 2:
        return ""
    step = (width - 2) / (len(values) - 1)
    points = " ".join(
        f"{1 + i * step:.1f},{height - 2 - value * (height - 4) / most:.1f}"
        for i, value in enumerate(values)
    )
    start = _open(width, height, f"width:{width}px;height:{height}px;vertical-align:middle", text)
    line = '<polyline fill="none" stroke="currentColor" stroke-width="1.5" points="'
    return f'{start}{line}{points}"/></svg>'


def _open(width: int, height: int, style: str, text: str) -> str:
    label = html.escape(text, quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
        f' aria-label="{label}" style="{style}" font-size="12" font-family="inherit">'
        f"<title>{label}</title>"
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    shown = html.escape(text, quote=True)
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" fill="currentColor">{shown}</text>'
