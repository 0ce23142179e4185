"""JSON text with ``{{expr}}`` outside its strings, and the answers to common slips."""

from __future__ import annotations

import ast
import json
import keyword
import random
import re
from dataclasses import dataclass
from typing import Any

from abe.display.text import cell, unique_names
from abe.errors import PayloadError
from abe.ipython.expressions import Evaluate, ExpressionError, find_expression

# Possessive, so that a long string costs neither stack nor backtracking.
_STRING_OR_BRACES = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|\{\{', re.DOTALL)

_MORE = "Extra data"
"""Message of `json` for text behind a complete value."""
_SLIP_LENGTH = 2000
"""Maximum length of text that is examined for a slip."""


@dataclass(frozen=True, slots=True)
class Template:
    """Parsed JSON whose expressions are not evaluated yet."""

    parsed: Any
    expressions: dict[str, str]

    def value(self, evaluate: Evaluate) -> Any:
        """Evaluate each expression once, in order, and return the complete value."""
        values = {mark: evaluate(source) for mark, source in self.expressions.items()}
        try:
            return _fill(self.parsed, values)
        except RecursionError:
            raise PayloadError("the payload is nested too deeply") from None


def parse_json(text: str, command: str) -> Template:
    """Parse JSON with ``{{expr}}`` outside its strings, without evaluating anything.

    Errors show the right spelling behind ``command``, if there is one.
    """
    plain, expressions = _replace_expressions(text) if "{{" in text else (text, {})
    try:
        parsed = json.loads(plain, object_pairs_hook=unique_names)
    except json.JSONDecodeError as error:
        raise PayloadError(_explain(text, error.pos, error.msg, command)) from None
    except RecursionError:
        raise PayloadError("the payload is nested too deeply") from None
    except PayloadError:
        raise
    except ValueError as error:  # a number with too many digits
        raise PayloadError(f"the payload is not JSON: {error}") from None
    return Template(parsed, expressions)


def _replace_expressions(text: str) -> tuple[str, dict[str, str]]:
    """Replace each ``{{expr}}`` outside strings by a JSON string of its length, a mark.

    Marks are random characters for private use, so no string of the payload is one; positions in
    errors of the result are those in ``text``.
    """
    parts: list[str] = []
    expressions: dict[str, str] = {}
    done = position = 0
    while match := _STRING_OR_BRACES.search(text, position):
        position = match.end()
        if match.group() != "{{":
            continue
        start = match.start()
        try:
            source, position = find_expression(text, start)
        except ExpressionError as error:
            if not text.startswith("{{{", start):
                raise PayloadError(str(error)) from None
            position = start + 1  # an object whose first name is an expression
            continue
        mark = "".join(chr(random.randrange(0xF0000, 0xFFFFE)) for _ in range(3))
        mark = mark.ljust(position - start - 2, "\uf8ff")
        expressions[mark] = source
        parts += [text[done:start], f'"{mark}"']
        done = position
    return "".join([*parts, text[done:]]), expressions


def _fill(value: Any, values: dict[str, object]) -> Any:
    if isinstance(value, str):
        return values.get(value, value)
    if isinstance(value, list):
        return [_fill(inner, values) for inner in value]
    if isinstance(value, dict):
        filled = {_fill_name(name, values): _fill(inner, values) for name, inner in value.items()}
        if len(filled) != len(value):
            raise PayloadError("a {{…}} gives a name that the object already has")
        return filled
    return value


def _fill_name(name: str, values: dict[str, object]) -> str:
    filled = values.get(name, name)
    if not isinstance(filled, str):
        kind = type(filled).__name__
        raise PayloadError(f"a {{{{…}}}} in the place of a name must give a str, not {kind}")
    return filled


def _explain(text: str, position: int, problem: str, command: str) -> str:
    if command and (hint := _slip(text, position, problem, command)):
        return hint
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    where = f"line {line}, column {column}" if "\n" in text else f"column {column}"
    rest = text[position : position + 60]
    near = f" at {cell(rest.strip(), 30)}" if rest.strip() else ", where the payload ends"
    hint = ""
    if rest.lstrip(" {,[").startswith("'"):
        hint = "; JSON strings stand in double quotes"
    elif problem == _MORE and text[:position].rstrip(" ").endswith("\n"):
        hint = "; if each line is an object, give --format jsonl"
    return f"the payload is not JSON: {problem} ({where}){near}{hint}"


def _slip(text: str, position: int, problem: str, command: str) -> str:
    """Return the right spelling of a common slip; "" if it is not one."""
    command = cell(command, 80)
    before, behind = text[:position].strip(), text[position:].strip()
    if problem == _MORE and behind.startswith("-") and len(text) <= _SLIP_LENGTH:
        option, payload = cell(behind, 60), cell(before)
        return f"options stand before the payload: write {command} {option} {payload}"
    if len(text) > _SLIP_LENGTH or "{{" in text:
        return ""
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    if isinstance(tree, ast.Dict) and any(isinstance(name, ast.Name) for name in tree.keys):
        return ""  # names without quotes, as in JavaScript
    shown = cell(text, 80)
    if isinstance(tree, ast.Name) and not keyword.iskeyword(text):
        return (
            f"{shown} is not JSON; to publish the variable write"
            f" {command} -i {shown} or {command} {{{{{shown}}}}}"
        )
    try:
        fixed = json.dumps(ast.literal_eval(text), ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        if any(isinstance(node, ast.Name) for node in ast.walk(tree)):
            return f"{shown} is not JSON; to publish its value write {command} {{{{{shown}}}}}"
        return ""
    return (
        f"{shown} is a Python literal, not JSON: write {command} {cell(fixed, 200)}"
        " or give the option --format python"
    )
