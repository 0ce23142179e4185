"""Reference pages made from the code: the magics, the commands' options, the contract's cases."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["cases", "code", "command_options", "literal", "magics", "settings", "table"]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    r"""Return a table in Markdown; ``|`` in a cell is escaped.

    >>> print(table(["x", "y"], [[code("a|`b`"), literal("<c>_d_")]]))
    | x | y |
    | --- | --- |
    | `` a\|`b` `` | \<c\>\_d\_ |
    """
    lines = [list(head)]
    lines += [["---"] * len(lines[0]), *map(list, rows)]
    return "\n".join(
        "| " + " | ".join(re.sub(r"(?<!\\)\|", r"\|", text) for text in line) + " |"
        for line in lines
    )


def code(text: str) -> str:
    """Return text as code inside a line; it may hold backticks."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    padding = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{padding}{text}{padding}{fence}"


def literal(text: str) -> str:
    """Return prose in which nothing is Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", text)


# --- Magics ---------------------------------------------------------------------------------------


def magics() -> str:
    """Return a section for each magic, made from what ``%NAME?`` shows."""
    from abe.ipython.magics import AbeMagics

    kinds = AbeMagics.magics
    sections = []
    for name in sorted({*kinds["line"], *kinds["cell"]}):
        written = [f"%{name}"] * (name in kinds["line"]) + [f"%%{name}"] * (name in kinds["cell"])
        method = getattr(AbeMagics, kinds["line"].get(name) or kinds["cell"][name])
        title = " and ".join(map(code, written))
        sections.append(f"## {title} {{ #{name} }}\n\n{_docstring(inspect.getdoc(method) or '')}")
    return "\n\n".join(sections)


def _docstring(text: str) -> str:
    """Return a magic's docstring as Markdown: examples, paragraphs, options, what it returns."""
    parts: list[str] = []
    for heading, lines in _blocks(text):
        body = "\n".join(lines).strip("\n")
        if heading == "::":
            parts.append(f"```ipython3\n{inspect.cleandoc(body)}\n```")
        elif heading == "Options:":
            parts.append(table(["option", "does"], _options(lines)))
        elif heading == "Returns:":
            parts.append(f"**Returns** {literal(' '.join(body.split()))}.")
        else:
            parts.append(literal(body))
    return "\n\n".join(parts)


def _blocks(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield indented blocks with the line they belong to, and paragraphs with ""."""
    heading, block = "", list[str]()
    for line in [*text.splitlines(), "end"]:
        indented = line.startswith(" ")
        if heading and (indented or not line.strip()):
            block.append(line)
            continue
        if heading or not line.strip() or line in ("::", "end"):
            if any(it.strip() for it in block):
                yield heading, block
            heading, block = "", []
        if line in ("::", "Options:", "Returns:"):
            if block:
                yield "", block
            heading, block = line, []
        elif line.strip():
            block.append(line)


def _options(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Yield each option as it is written, and what it does."""
    found: list[list[str]] = []
    for line in lines:
        match = re.match(r"\s{2}(-.*?)(?:\s{2,}(.*))?$", line)
        if match:
            found.append([match[1], match[2] or ""])
        elif line.strip():
            found[-1][1] += " " + line.strip()
    return ((code(option), literal(does.strip())) for option, does in found)


def settings() -> str:
    """Return what ``%config AbeMagics`` shows and sets, as a table."""
    from abe.ipython.session import Settings

    traits = Settings.class_own_traits(config=True)
    rows = (
        (code(f"AbeMagics.{name}"), literal(it.help), code(repr(it.default_value)))
        for name, it in traits.items()
    )
    return table(["setting", "means", "default"], rows)


# --- Command line ---------------------------------------------------------------------------------


def command_options() -> str:
    """Return a section for each command: how it is called, its arguments and options."""
    import typer.main

    from abe.cli.app import app

    group: Any = typer.main.get_command(app)
    return "\n\n".join(_command(name, command) for name, command in group.commands.items())


def _command(name: str, command: Any) -> str:
    import typer

    context = typer.Context(command, info_name=f"abe {name}")
    records = [(it, *it.get_help_record(context)) for it in command.params]
    arguments = [_bare(left) for it, left, _ in records if it.param_type_name == "argument"]
    parts = [f"### abe {name} {{ #abe-{name} }}"]
    for number, paragraph in enumerate((command.help or "").split("\n\n")):
        example = paragraph.startswith("\b\n")
        body = inspect.cleandoc(paragraph.removeprefix("\b\n"))
        parts.append(f"```text\n{body}\n```" if example else literal(body))
        if number == 0:
            parts.append(f"```text\nabe {name} [OPTIONS] {' '.join(arguments)}".rstrip() + "\n```")
    rows = [_parameter(left, does) for _, left, does in records]
    parts.append(table(["argument or option", "does", "default"], rows))
    return "\n\n".join(parts)


def _bare(left: str) -> str:
    """Return how an argument or option is written, without its type; choices are kept."""
    left = re.sub(r"^\w+ <(.*\|.*)>$", r"[\1]", left)
    left = re.sub(r" <(.*\|.*)>$", r" \1", left)
    return re.sub(r" <.*>$", "", left)


def _parameter(left: str, text: str) -> tuple[str, str, str]:
    does, _, rest = text.partition("  [")
    default = rest.removesuffix("]").removeprefix("default: ").partition(";")[0].strip("()")
    return code(_bare(left)), literal(does), literal(default)


# --- The contract ---------------------------------------------------------------------------------

CHAPTERS = {
    "dead": "Dead letters",
    "handling": "The consumer: handling",
    "running": "The consumer: running",
}
"""Titles of chapters that their module's name does not say."""


def cases() -> str:
    """Return every obligation of the contract suite, by chapter."""
    from abe.testing import list_cases

    parts = []
    for module, group in itertools.groupby(list_cases(), lambda case: case.scenario.__module__):
        name = module.rpartition(".")[2]
        rows = [
            (code(it.id), literal(it.obligation), _all(it.needs) or "all", _all(it.hooks))
            for it in group
        ]
        title = CHAPTERS.get(name, name.capitalize())
        head = ["case", "obligation", "applies to", "hooks"]
        parts.append(f"## {title}\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def _all(names: Iterable[str]) -> str:
    return ", ".join(map(code, names))
