"""Every public name says what it is: its parameters, what it returns, what it raises."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from abe import errors

MODULES = (
    "abe",
    "abe.types",
    "abe.errors",
    "abe.sync",
    "abe.display",
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
RAISED = {*errors.__all__, *(name for name in dir(builtins) if name.endswith("Error"))}
SILENT = {"StopAsyncIteration", "StopIteration", "AssertionError", "NotImplementedError"}
"""Raised where Python's own protocols say so."""
REFERENCE = re.compile(r"(?:See|As|like|as for) `[\w.]+`", re.IGNORECASE)
"""The documentation of another function applies."""


def symbols() -> Iterator[tuple[str, Any]]:
    """Yield every public class and function once, by its shortest name."""
    seen = set()
    for module in MODULES:
        for name in importlib.import_module(module).__all__:
            found = getattr(importlib.import_module(module), name)
            ours = getattr(found, "__module__", "").startswith("abe.")
            if ours and (inspect.isclass(found) or inspect.isfunction(found)) and found not in seen:
                seen.add(found)
                yield f"{module}.{name}", found


def functions() -> Iterator[tuple[str, Callable[..., Any], str]]:
    """Yield every public function and method of abe's with what its documentation says."""
    for name, found in symbols():
        if inspect.isfunction(found):
            yield name, found, inspect.getdoc(found) or ""
            continue
        for member, value in vars(found).items():
            function = getattr(value, "fget", None) or getattr(value, "__func__", value)
            if not member.startswith("_") and inspect.isfunction(function):
                text = inspect.getdoc(getattr(found, member)) or inspect.getdoc(function) or ""
                yield f"{name}.{member}", function, text


SYMBOLS = dict(symbols())
FUNCTIONS = {name: (function, text) for name, function, text in functions()}


@pytest.mark.parametrize("name", SYMBOLS)
def test_it_has_a_docstring(name: str) -> None:
    text = inspect.getdoc(SYMBOLS[name])
    assert text
    assert text.splitlines()[0].endswith((".", ":", "?")), text


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_says_what_it_takes_and_returns(name: str) -> None:
    function, text = FUNCTIONS[name]
    assert text
    parameters = [it for it in inspect.signature(function).parameters if it not in ("self", "cls")]
    if "Args:" in text:
        section = text.partition("Args:")[2]
        missing = [it for it in parameters if not re.search(rf"^ +\*{{0,2}}{it}:", section, re.M)]
    else:
        missing = [it for it in parameters if not re.search(rf"\b{it}\b", text)]
        if len(parameters) <= 2 or REFERENCE.search(text):
            missing = []  # one sentence says it
    assert missing == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_says_what_it_raises(name: str) -> None:
    function, text = FUNCTIONS[name]
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    raised = {
        it.exc.func.id
        for it in ast.walk(tree)
        if isinstance(it, ast.Raise)
        and isinstance(it.exc, ast.Call)
        and isinstance(it.exc.func, ast.Name)
    }
    assert {it for it in raised & RAISED - SILENT if it not in text} == set()
