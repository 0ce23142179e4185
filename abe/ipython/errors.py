"""Errors of magics: a short exact message for the reader, a real error for notebook runners."""

from __future__ import annotations

import sys
from typing import TypeVar

from IPython.core.getipython import get_ipython

from abe._redact import known
from abe.display.text import MAX_LINE, visible

E = TypeVar("E", bound=BaseException)

_MAX_LINES = 20


class _Short:
    """Renders an error as a few lines; for ``%tb``, which asks again, as IPython does.

    It can be pickled, as errors are that cross process boundaries.
    """

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines
        self._shown = False

    def __call__(self) -> list[str]:
        value = getattr(sys, "last_value", None) if self._shown else None
        shell = get_ipython()
        self._shown = True
        if value is None or shell is None:
            return self._lines
        lines: list[str] = shell.InteractiveTB.structured_traceback(
            type(value), value, value.__traceback__
        )
        return lines


def short(error: E, *hints: str) -> E:
    """Make IPython show ``error`` as its message instead of a traceback, and return it.

    The error itself is unchanged: notebook runners stop at it, ``except`` clauses and ``%debug``
    work; ``%tb`` shows the traceback.
    """
    if not hasattr(error, "_render_traceback_"):
        text = f"{type(error).__name__}: {error}".removesuffix(": ")
        lines = [visible(known.hide(line), MAX_LINE) for line in text.split("\n")[:_MAX_LINES]]
        error.__dict__["_render_traceback_"] = _Short([*lines, *hints])
    if _follows_group(error):
        # For these IPython only prints, and no runner would see an error.
        error.__context__ = None
    return error


def _follows_group(error: BaseException) -> bool:
    context = error.__context__
    seen: set[int] = set()
    while context is not None and id(context) not in seen:
        if isinstance(context, BaseExceptionGroup):
            return True
        seen.add(id(context))
        context = context.__context__
    return False
