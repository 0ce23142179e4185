"""The argument grammar of the magics.

Options stand before KEY or between KEY and PAYLOAD. The payload begins at the first other token
after KEY and is the rest of the line, verbatim. A trailing ``;`` is dropped. ``{{expr}}`` in keys
and option values is evaluated once, as ``str``.
"""

from __future__ import annotations

import inspect
import keyword
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from IPython.core.error import UsageError

from abe.display.options import Option, quoted
from abe.display.text import did_you_mean
from abe.ipython.expressions import Evaluate, ExpressionError, expand, find_expression


@dataclass(frozen=True)
class Syntax:
    """The arguments that one magic accepts.

    Attributes:
        magic: The magic as it is written, e.g. ``"%abe_publish"``.
        takes: What stands beside the options, e.g. ``"KEY [PAYLOAD]"``.
        options: Its options.
        payload: The first word is KEY and what follows it is the payload.
        completes: Kind of the words: ``"keys"``, ``"backend"``, ``"target"``, ``"action"`` or
            ``"handlers"``; a plural may be repeated. Empty for words that are not completed.
        max_words: Maximum number of words, if there is one.
    """

    magic: str
    takes: str = ""
    options: tuple[Option, ...] = ()
    payload: bool = False
    completes: str = ""
    max_words: int | None = None

    @cached_property
    def names(self) -> dict[str, Option]:
        """The options by each of their spellings."""
        return {name: o for o in self.options for name in (o.long, o.short) if name}

    @property
    def usage(self) -> str:
        """The text that follows the magic's name in usage lines."""
        options = [
            f"[{' '.join(filter(None, (o.short or o.long, o.metavar)))}]{'…' * o.repeat}"
            for o in self.options
        ]
        return " ".join(filter(None, [*options, self.takes]))

    def document(self, text: str) -> str:
        """Insert the options into the docstring of a magic, before what it returns."""
        spelled = [
            f"{o.short and f'{o.short}, '}{o.long} {o.metavar}".rstrip() for o in self.options
        ]
        width = max(map(len, spelled)) + 2
        lines = [
            textwrap.fill(
                f"{o.help[:-1]} (without it: {o.default})." if o.default else o.help,
                width=98,
                initial_indent=f"  {name:{width}}",
                subsequent_indent=" " * (width + 2),
            )
            for o, name in zip(self.options, spelled, strict=True)
        ]
        before, returns, result = inspect.cleandoc(text).partition("Returns:")
        return "\n".join([before.rstrip(), "", "Options:", *lines, "", returns + result]).rstrip()

    def error(self, problem: str) -> UsageError:
        """Return the error that says ``problem`` and how the magic is used."""
        return UsageError(f"{problem}\nUsage: {self.magic} {self.usage}")


class Arguments(NamedTuple):
    """The arguments of one call.

    Attributes:
        options: Value of each option by name, defaults included.
        words: Everything else, ``{{expr}}`` evaluated; KEY comes first where there is one.
        payload: The text behind KEY, verbatim; ``None`` if there is none.
    """

    options: dict[str, Any]
    words: list[str]
    payload: str | None


def parse(syntax: Syntax, line: str, evaluate: Evaluate) -> Arguments:
    """Parse ``line``, the text behind the name of a magic.

    The whole line is read before any ``{{expr}}`` is evaluated.
    """
    options: dict[str, Any] = {o.name: [] if o.repeat else None for o in syntax.options}
    try:
        words, given, payload = _read(syntax, line.rstrip().removesuffix(";").rstrip())
        for option, text in given:
            value = True if text is None else _convert(syntax, option, expand(text, evaluate))
            options[option.name] = [*options[option.name], value] if option.repeat else value
        words = [expand(it, evaluate) if "{{" in it else it for it in words]
    except ExpressionError as error:
        raise syntax.error(str(error)) from None
    if syntax.max_words is not None and len(words) > syntax.max_words:
        raise syntax.error(f"{quoted(words[syntax.max_words])} is one word too many")
    return Arguments(options, words, payload)


_Given = list[tuple[Option, str | None]]


def _read(syntax: Syntax, line: str) -> tuple[list[str], _Given, str | None]:
    words: list[str] = []
    given: _Given = []
    names = syntax.names
    position, options_end = len(line) - len(line.lstrip()), False
    while position < len(line):
        rest = line[position:]
        # '[' is forbidden in keys, and JSON follows KEY.
        is_json = rest[0] == "[" or (rest[0] == "{" and not rest.startswith("{{"))
        if syntax.payload and not words and is_json:
            usage = f"{syntax.magic} KEY {quoted(rest)}"
            raise syntax.error(f"KEY is missing before the payload; write {usage}")
        begins_option = line[position] == "-" and not options_end
        if syntax.payload and words and not begins_option:
            return words, given, line[position:]
        word, end = _word(syntax, line, position)
        position = len(line) - len(line[end:].lstrip())
        if begins_option and word == "--":
            options_end = True
        elif begins_option and word != "-":
            option, value = _split_option(syntax, names, word)
            if option.metavar and value is None:
                if position >= len(line):
                    raise syntax.error(f"{option.label} needs a value: {option.metavar}")
                value, end = _word(syntax, line, position)
                position = len(line) - len(line[end:].lstrip())
            if not option.repeat and any(option is other for other, _ in given):
                raise syntax.error(f"{option.label} is given twice")
            given.append((option, value))
        else:
            words.append(word)
    return words, given, None


def _split_option(syntax: Syntax, names: dict[str, Option], word: str) -> tuple[Option, str | None]:
    name, equals, value = word.partition("=")
    if name in names:
        option = names[name]
        if equals and not option.metavar:
            raise syntax.error(f"{option.label} takes no value")
        return option, value if equals else None
    short = names.get(word[:2])
    if short is not None and not word.startswith("--") and short.metavar:
        return short, word[2:]
    known = ", ".join(o.label for o in syntax.options)
    hint = did_you_mean(name, names) or (
        f"; there are {known}" if known else "; this magic has no options"
    )
    if name in ("-h", "--help"):
        hint = f"; {syntax.magic}? shows the help"
    raise syntax.error(f"unknown option {quoted(name)}{hint}")


def _word(syntax: Syntax, line: str, start: int) -> tuple[str, int]:
    """Return the word at ``start`` without its quotes, and where it ends.

    Quotes group at the beginning of a word and behind ``=``; ``{{expr}}`` is never split.
    """
    parts: list[str] = []
    position = start
    while position < len(line) and not line[position].isspace():
        if line.startswith("{{", position):
            end = find_expression(line, position)[1]
            parts.append(line[position:end])
        elif line[position] in "\"'" and (position == start or line[position - 1] == "="):
            end = _quote_end(syntax, line, position)
            parts.append(line[position + 1 : end - 1])
        else:
            end = position + 1
            parts.append(line[position])
        position = end
    return "".join(parts), position


def _quote_end(syntax: Syntax, line: str, start: int) -> int:
    position = start + 1
    while position < len(line):
        if line.startswith("{{", position):
            position = find_expression(line, position)[1]
            continue
        at_end = position + 1 == len(line) or line[position + 1].isspace()
        if line[position] == line[start] and at_end:
            return position + 1
        position += 1
    raise syntax.error(f"the quote in {quoted(line[start:])} is not closed")


def _convert(syntax: Syntax, option: Option, text: str) -> Any:
    try:
        return option.convert(text)
    except ValueError as error:
        raise syntax.error(f"{option.label} {error}") from None


def identifier(text: str) -> str:
    """Convert the name of a variable."""
    if not text.isidentifier() or keyword.iskeyword(text):
        raise ValueError(f"must be the name of a variable, not {quoted(text)!r}")
    return text


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a converter that accepts ``choices``."""

    def convert(text: str) -> str:
        if text in choices:
            return text
        hint = did_you_mean(text.lower(), choices)
        raise ValueError(f"must be one of {', '.join(choices)}, not {quoted(text)!r}{hint}")

    return convert


OUT = Option("--out", "-o", "NAME", "Also store the result in the variable NAME.", identifier)
