"""``{{expr}}``: Python expressions inside the arguments and payloads of magics."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import CodeType
from typing import Any, TypeAlias

from abe.display.text import cell
from abe.ipython.errors import short

Evaluate: TypeAlias = Callable[[str], object]
"""Runs one expression in the user's namespace."""

MAX_LENGTH = 4000
"""Maximum length of an expression, which bounds the cost of unmatched braces."""


class ExpressionError(ValueError):
    """``{{`` is not followed by a Python expression and ``}}``."""


def find_expression(text: str, start: int) -> tuple[str, int]:
    """Return the expression whose ``{{`` is at ``start`` and the position behind its ``}}``.

    The expression ends at the first ``}}`` that leaves valid Python, so it may contain braces and
    quotes itself: ``{{ {"a": {"b": 1}} }}``, ``{"a": {{x}}}``.
    """
    limit = start + 2 + MAX_LENGTH
    reason = "it has no closing }}"
    end = text.find("}}", start + 2, limit)
    while end != -1:
        source = text[start + 2 : end]
        problem = _problem(source)
        if not problem:
            return source.strip(), end + 2
        if reason.startswith("it has"):
            reason = problem
        end = text.find("}}", end + 1, limit)
    shown = cell(text[start : start + 100].partition("\n")[0], 60)
    raise ExpressionError(f"{shown} does not begin a Python expression in {{{{…}}}}: {reason}")


def whole_expression(text: str) -> str | None:
    """Return the expression if ``text`` is one ``{{expr}}`` and nothing else."""
    if not text.startswith("{{"):
        return None
    try:
        source, end = find_expression(text, 0)
    except ExpressionError:  # it may be an object whose first name is an expression
        return None
    return source if end == len(text) else None


def expand(text: str, evaluate: Evaluate) -> str:
    """Replace each ``{{expr}}`` in ``text`` by ``str`` of its value."""
    parts: list[str] = []
    position = 0
    while (start := text.find("{{", position)) != -1:
        source, end = find_expression(text, start)
        parts += [text[position:start], str(evaluate(source))]
        position = end
    return "".join([*parts, text[position:]])


def evaluator(user_ns: dict[str, Any], local_ns: dict[str, Any] | None) -> Evaluate:
    """Return a function that evaluates expressions where the magic was called."""

    def evaluate(source: str) -> object:
        # One dict, because a lambda or comprehension would not see separate locals.
        outside = local_ns is None or local_ns is user_ns
        scope = user_ns if outside else {**user_ns, **(local_ns or {})}
        try:
            return eval(_compile(source), scope)  # noqa: S307 - the user's own code
        except Exception as error:
            raise short(error, f"in {{{{{cell(source, 60)}}}}}") from None

    return evaluate


def _compile(source: str) -> CodeType:
    # Parentheses allow line breaks; the line break ends a trailing comment.
    return compile(f"({source}\n)", "{{expr}}", "eval")


def _problem(source: str) -> str:
    if not source.strip():
        return "it is empty"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # shown once, when it is evaluated
            _compile(source)
    except SyntaxError as error:
        return error.msg
    except (ValueError, RecursionError, MemoryError) as error:
        return str(error) or type(error).__name__
    return ""
