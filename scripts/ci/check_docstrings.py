"""Fail on public functions whose docstring leaves out a parameter or an exception."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from abe import errors

MODULES = (
    "abe",
    "abe.types",
    "abe.errors",
    "abe.display",
    "abe.sync",
    "abe.ipython",
    "abe.testing",
    "abe.logging",
    "abe.backends.message_queue.base",
    "abe.backends.message_queue.client",
    "abe.backends.message_queue.consumer",
    "abe.backends.message_queue.loader",
    "abe.backends.message_queue.service.memory",
    "abe.backends.message_queue.service.sqlite",
)
SILENT = {"StopAsyncIteration", "StopIteration", "AssertionError", "NotImplementedError"}
"""Raised where Python's own protocols say so."""
RAISED = {*errors.__all__, *(it for it in dir(builtins) if it.endswith("Error"))} - SILENT
REFERENCE = re.compile(r"(?:See|As|like|as for) `[\w.]+`", re.IGNORECASE)
"""The documentation of another function applies."""


def functions() -> Iterator[tuple[str, Callable[..., Any], str]]:
    """Yield every public function and method of abe's with its documentation."""
    exported = {
        found: f"{module}.{name}"
        for module in reversed(MODULES)
        for name in importlib.import_module(module).__all__
        if inspect.isclass(found := getattr(importlib.import_module(module), name))
        or inspect.isfunction(found)
    }
    for found, name in exported.items():
        members = {"": found} if inspect.isfunction(found) else vars(found)
        for member, value in members.items():
            function = getattr(value, "fget", None) or getattr(value, "__func__", value)
            if not member.startswith("_") and inspect.isfunction(function):
                text = inspect.getdoc(getattr(found, member, found)) or inspect.getdoc(function)
                yield f"{name}.{member}".rstrip("."), function, text or ""


def unexplained(function: Callable[..., Any], text: str) -> list[str]:
    """Return the parameters that a docstring leaves out; one sentence may do for two."""
    names = [it for it in inspect.signature(function).parameters if it not in ("self", "cls")]
    before, heading, section = text.partition("Args:")
    if heading:
        return [it for it in names if not re.search(rf"^ +\*{{0,2}}{it}:", section, re.MULTILINE)]
    if len(names) <= 2 or REFERENCE.search(before):
        return []
    return [it for it in names if not re.search(rf"\b{it}\b", before)]


def raised(function: Callable[..., Any]) -> set[str]:
    """Return the exceptions that a function raises by name."""
    nodes = ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function))))
    calls = (
        it.exc.func for it in nodes if isinstance(it, ast.Raise) and isinstance(it.exc, ast.Call)
    )
    return {it.id for it in calls if isinstance(it, ast.Name)} & RAISED


def main() -> int:
    """Print every problem and return the exit status."""
    problems = []
    for name, function, text in functions():
        missing = unexplained(function, text) + [it for it in raised(function) if it not in text]
        if missing or not text:
            problems.append(f"{name}: its docstring lacks {', '.join(missing) or 'everything'}")
    print(*problems, sep="\n", end="\n" if problems else "")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
