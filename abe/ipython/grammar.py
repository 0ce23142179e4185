"""The argument grammar of the magics.

Options stand before KEY or between KEY and PAYLOAD. The payload begins at the first other token
after KEY and is the rest of the line, verbatim. A trailing ``;`` is dropped. ``{{expr}}`` in keys
and option values is evaluated once, as ``str``.
"""

from __future__ import annotations

import difflib
import keyword
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from IPython.core.error import UsageError

from abe._redact import redact
from abe.display.text import visible
from abe.ipython.expressions import Evaluate, ExpressionError, expand, find_expression

__all__ = [
    "GROUP",
    "NUMBER",
    "OUT",
    "Arguments",
    "Option",
    "Syntax",
    "assignment",
    "count",
    "env_name",
    "identifier",
    "one_of",
    "parse",
    "seconds",
]


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a magic.

    Attributes:
        long: Its long spelling, e.g. ``"--group"``.
        short: Its short spelling, if it has one.
        metavar: Name of its value in usage lines; empty for a flag.
        convert: Makes the value from text; raises ``ValueError`` with the form it must have.
        default: The value when the option is absent.
        repeat: It may be given several times; the value is a list.
        name: Key of the value in `Arguments.options`.
    """

    long: str
    short: str = ""
    metavar: str = ""
    convert: Callable[[str], Any] = str
    default: Any = None
    repeat: bool = False
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.long[2:].replace("-", "_"))

    @property
    def label(self) -> str:
        """How messages name the option."""
        return f"{self.short}/{self.long}" if self.short else self.long


@dataclass(frozen=True, slots=True)
class Syntax:
    """The arguments that one magic accepts.

    Attributes:
        magic: The magic as it is written, e.g. ``"%abe_publish"``.
        usage: The text that follows its name, e.g. ``"[--delay S] KEY PAYLOAD"``.
        options: Its options.
        payload: The first word is KEY and what follows it is the payload.
        completes: Kind of the words: ``"keys"``, ``"backend"``, ``"target"``, ``"action"`` or
            ``"handlers"``; a plural may be repeated. Empty for words that are not completed.
        max_words: Maximum number of words, if there is one.
    """

    magic: str
    usage: str
    options: tuple[Option, ...] = ()
    payload: bool = False
    completes: str = ""
    max_words: int | None = None

    def error(self, problem: str) -> UsageError:
        """Return the error that says ``problem`` and how the magic is used."""
        return UsageError(f"{problem}\nUsage: {self.magic} {self.usage}")


@dataclass(slots=True)
class Arguments:
    """The arguments of one call.

    Attributes:
        options: Value of each option by name, defaults included.
        words: Everything else, ``{{expr}}`` evaluated; KEY comes first where there is one.
        payload: The text behind KEY, verbatim; ``None`` if there is none.
    """

    options: dict[str, Any] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    payload: str | None = None


def parse(syntax: Syntax, line: str, evaluate: Evaluate) -> Arguments:
    """Parse ``line``, the text behind the name of a magic.

    The whole line is read before any ``{{expr}}`` is evaluated.

    Raises:
        UsageError: If it does not follow the grammar.
    """
    words, given, payload = _read(syntax, line.rstrip().removesuffix(";").rstrip())
    result = Arguments(payload=payload)
    for option in syntax.options:
        default = option.default
        result.options[option.name] = [] if option.repeat else default
    for option, raw in given:
        value: Any = True
        if raw is not None:
            value = _convert(syntax, option, _expand(syntax, raw, evaluate))
        if option.repeat:
            result.options[option.name].append(value)
        else:
            result.options[option.name] = value
    result.words = [_expand(syntax, w, evaluate) if "{{" in w else w for w in words]
    if syntax.max_words is not None and len(words) > syntax.max_words:
        raise syntax.error(f"{_shown(result.words[syntax.max_words])} is one word too many")
    return result


_Given = list[tuple[Option, str | None]]


def _read(syntax: Syntax, line: str) -> tuple[list[str], _Given, str | None]:
    words: list[str] = []
    given: _Given = []
    names = {name: o for o in syntax.options for name in (o.long, o.short) if name}
    position, options_end = len(line) - len(line.lstrip()), False
    while position < len(line):
        if syntax.payload and not words and line[position] in "[{":
            _refuse_missing_key(syntax, line[position:])
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


def _refuse_missing_key(syntax: Syntax, rest: str) -> None:
    # '[' is forbidden in keys, and JSON follows KEY.
    if rest[0] == "[" or (rest[0] == "{" and not rest.startswith("{{")):
        raise syntax.error(
            f"KEY is missing before the payload; write {syntax.magic} KEY {_shown(rest)}"
        )


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
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if name in ("-h", "--help"):
        hint = f"{syntax.magic}? shows the help"
    elif near:
        hint = f"did you mean {near[0]}?"
    else:
        hint = f"there are {', '.join(o.label for o in names_once(names))}" if names else ""
        hint = hint or "this magic has no options"
    raise syntax.error(f"unknown option {_shown(name)}; {hint}")


def names_once(names: dict[str, Option]) -> list[Option]:
    """Return the options of ``names``, each once, in order."""
    return list(dict.fromkeys(names.values()))


def _word(syntax: Syntax, line: str, start: int) -> tuple[str, int]:
    """Return the word at ``start`` without its quotes, and where it ends.

    Quotes group at the beginning of a word and behind ``=``; ``{{expr}}`` is never split.
    """
    parts: list[str] = []
    position = start
    while position < len(line) and not line[position].isspace():
        if line.startswith("{{", position):
            end = _expression_end(syntax, line, position)
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
            position = _expression_end(syntax, line, position)
            continue
        at_end = position + 1 == len(line) or line[position + 1].isspace()
        if line[position] == line[start] and at_end:
            return position + 1
        position += 1
    raise syntax.error(f"the quote in {_shown(line[start:])} is not closed")


def _expression_end(syntax: Syntax, line: str, start: int) -> int:
    try:
        return find_expression(line, start)[1]
    except ExpressionError as error:
        raise syntax.error(str(error)) from None


def _expand(syntax: Syntax, text: str, evaluate: Evaluate) -> str:
    if "{{" not in text:
        return text
    try:
        return expand(text, evaluate)
    except ExpressionError as error:  # braces that quotes or '=' had kept apart
        raise syntax.error(str(error)) from None


def _convert(syntax: Syntax, option: Option, text: str) -> Any:
    try:
        return option.convert(text)
    except ValueError as error:
        raise syntax.error(f"{option.label} {error}") from None


def _shown(text: str) -> str:
    return visible(redact(text[:300]), 80)


def seconds(text: str) -> float:
    """Convert a number of seconds.

    Raises:
        ValueError: If it is not one.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"must be a number of seconds, 0 or more, not {_shown(text)!r}")
    return value


def count(text: str) -> int:
    """Convert a number of messages.

    Raises:
        ValueError: If it is not one.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0):
        raise ValueError(f"must be a whole number, 1 or more, not {_shown(text)!r}")
    return int(text)


def identifier(text: str) -> str:
    """Convert the name of a variable.

    Raises:
        ValueError: If it is not one.
    """
    if not text.isidentifier() or keyword.iskeyword(text):
        raise ValueError(f"must be the name of a variable, not {_shown(text)!r}")
    return text


def assignment(text: str) -> tuple[str, str]:
    """Convert ``K=V``.

    Raises:
        ValueError: If there is no name or no ``=``.
    """
    name, equals, value = text.partition("=")
    if not (name and equals):
        # Not echoed: what stands there may be a secret.
        raise ValueError('must look like NAME=VALUE, with quotes around spaces: NAME="a b"')
    return name, value


def env_name(text: str) -> tuple[str, str | None]:
    """Convert ``K=V``, or ``K`` alone, whose value is asked for.

    Raises:
        ValueError: If K cannot name an environment variable.
    """
    name, equals, value = text.partition("=")
    if not (name.isascii() and name.isidentifier()):
        raise ValueError("must look like NAME=VALUE, or NAME to be asked for the value")
    return name, value if equals else None


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a converter that accepts ``choices``."""

    def convert(text: str) -> str:
        if text in choices:
            return text
        near: Sequence[str] = difflib.get_close_matches(text.lower(), choices, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"must be one of {', '.join(choices)}, not {_shown(text)!r}{hint}")

    return convert


GROUP = Option("--group", "-g", "GROUP")
NUMBER = Option("--number", "-n", "N", count)
OUT = Option("--out", "-o", "NAME", identifier)
