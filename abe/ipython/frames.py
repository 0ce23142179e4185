"""DataFrames of pandas and polars as payloads, one for each row; neither is imported here."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from typing import Any

from abe.display.text import cell
from abe.errors import PayloadError

_SIMPLE = (str, int, float, bool, type(None))


def is_frame(value: object) -> bool:
    """Whether ``value`` is a DataFrame, or of a class derived from one."""
    return _library(value) != ""


def _library(value: object) -> str:
    for base in type(value).__mro__:
        library = base.__module__.partition(".")[0]
        if base.__name__ == "DataFrame" and library in ("pandas", "polars"):
            return library
    return ""


def rows_of(frame: Any, name: str) -> list[dict[str, Any]]:
    """Return the rows of a DataFrame, which errors call ``name``; the index is dropped.

    Missing values become null, numpy's scalars and arrays plain numbers and lists, dates and times
    ISO 8601. What JSON cannot hold is left for the check of the payloads, which names it. A NaN is
    missing in pandas; in polars it is a number, which JSON cannot hold.
    """
    columns = list(frame.columns)
    for column in columns:
        if not isinstance(column, str):
            raise PayloadError(
                f"{name}: column {cell(repr(column), 60)} is named by {type(column).__name__}, not"
                " str; rename the columns first"
            )
    if len(set(columns)) != len(columns):
        twice = next(column for column in columns if columns.count(column) > 1)
        raise PayloadError(f"{name}: two columns are called {cell(twice, 60)!r}")
    polars = _library(frame) == "polars"
    if not columns:
        return [{} for _ in range(len(frame))]
    plain = _plain_with(nan_is_missing=not polars)
    values = []
    for i in range(len(columns)):
        series = frame.to_series(i) if polars else frame.iloc[:, i]
        missing = [False] * len(frame) if polars else series.isna()
        values.append(
            [None if no else plain(it) for it, no in zip(series.to_list(), missing, strict=True)]
        )
    names = [str(column) for column in columns]
    return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]


def _plain_with(*, nan_is_missing: bool) -> Callable[[Any], Any]:
    def plain(value: Any) -> Any:
        if type(value) in _SIMPLE:
            return None if nan_is_missing and value != value else value
        if type(value).__name__ in ("NAType", "NaTType"):
            return None
        if isinstance(value, datetime | date | time):
            return value.isoformat()
        if isinstance(value, timedelta):
            return _duration(value)
        if isinstance(value, list | tuple):
            return [plain(inner) for inner in value]
        if isinstance(value, dict):
            return dict(zip(value, map(plain, value.values()), strict=True))
        return _foreign(value, plain)

    return plain


def _foreign(value: Any, plain: Callable[[Any], Any]) -> Any:
    library = type(value).__module__.partition(".")[0]
    kind = type(value).__name__
    if library == "numpy":
        if kind in ("datetime64", "timedelta64"):
            return plain(value.astype(f"{kind}[us]").item())
        if hasattr(value, "tolist"):
            return plain(value.tolist())
    if library == "polars" and kind == "Series":
        return plain(value.to_list())
    if library == "pandas" and kind == "Period":
        return str(value)
    return value


def _duration(value: timedelta) -> str:
    """Return a duration as ISO 8601 writes it, e.g. ``P1DT2H3M4.5S``."""
    sign = "-" if value < timedelta(0) else ""
    value = abs(value)
    minutes, seconds = divmod(value.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = value.microseconds * 1000 + getattr(value, "nanoseconds", 0)
    second = f"{seconds}.{fraction:09d}".rstrip("0") if fraction else str(seconds)
    return f"{sign}P{value.days}DT{hours}H{minutes}M{second}S"
