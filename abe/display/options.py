"""The options of magics and commands: how they are spelled, what they do, what values they take."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from abe._redact import redact
from abe.display.text import visible


@dataclass(frozen=True)
class Option:
    """An option of a magic, a command or both.

    Attributes:
        long: Its long spelling, e.g. ``"--group"``.
        short: Its short spelling, if it has one.
        metavar: Name of its value in usage lines; empty for a flag.
        does: A sentence that says what it does.
        convert: Makes the value from text; raises ``ValueError`` with the form it must have.
        default: The default value in words.
        repeat: It may be given several times; the value is a list.
    """

    long: str
    short: str = ""
    metavar: str = ""
    does: str = ""
    convert: Callable[[str], Any] = str
    default: str = ""
    repeat: bool = False

    @cached_property
    def name(self) -> str:
        """Key of the value among the values of all options."""
        return self.long[2:].replace("-", "_")

    @property
    def label(self) -> str:
        """How messages name the option."""
        return f"{self.short}/{self.long}" if self.short else self.long

    @property
    def help(self) -> str:
        """What it does, for the help of a command."""
        return f"{self.does} Repeatable." if self.repeat else self.does


def quoted(text: str) -> str:
    """Return the beginning of an argument for an error, without secrets."""
    return visible(redact(text[:300]), 80)


def seconds(text: str) -> float:
    """Convert a number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"must be a number of seconds, 0 or more, not {quoted(text)!r}")
    return value


def count(text: str) -> int:
    """Convert a number of messages."""
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0):
        raise ValueError(f"must be a whole number, 1 or more, not {quoted(text)!r}")
    return int(text)


def assignment(text: str) -> tuple[str, str]:
    """Convert ``K=V``."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        # Not echoed: what stands there may be a secret.
        raise ValueError('must look like NAME=VALUE, with quotes around spaces: NAME="a b"')
    return name, value


def variable(text: str) -> tuple[str, str | None]:
    """Convert ``K=V``, or ``K`` alone, whose value is asked for."""
    name, equals, value = text.partition("=")
    if not (name.isascii() and name.isidentifier()):
        raise ValueError("must look like NAME=VALUE, or NAME to be asked for the value")
    return name, value if equals else None


KEYS = "Only these keys; * matches one segment, a final ** one or more."
GROUP = Option("--group", "-g", "GROUP", "The consumer group.", default="default group")
SOME_GROUP = Option(
    "--group", "-g", "GROUP", "Only this group; '' is the default group.", default="all groups"
)
NUMBER = Option("--number", "-n", "N", "Maximum number of messages.", count, "10")
DEAD_NUMBER = Option(
    "--number", "-n", "N", "Maximum number of messages.", count, "100 to list, all to replay"
)
QUIET = Option(
    "--quiet", "-q", "S", "Seconds without a further message before it ends.", seconds, "0.5"
)
ID = Option("--id", "", "ID", "Replay only this message.", repeat=True)
YES = Option("--yes", does="Confirm that messages are deleted.")
CHECK = Option("--check", does="Import each, to find broken and deprecated ones.")
ENV = Option(
    *("--env", "-e", "K[=V]"),
    "Set a variable that configures the backend; K alone asks for its value.",
    variable,
    repeat=True,
)
HEADER = Option("--header", "-H", "K=V", "Text metadata of the messages.", assignment, repeat=True)
DELAY = Option("--delay", "-d", "S", "Seconds before delivery, at least.", seconds)
SELECT = Option(
    *("--select", "-s", "PATTERN"),
    "Only cases whose name contains PATTERN, or matches it with * and ?.",
    repeat=True,
)
CONCURRENCY = Option(
    "--concurrency", "-c", "N", "Maximum number of concurrent handlers.", count, "1"
)
MAX_ATTEMPTS = Option(
    "--max-attempts", "-a", "N", "Failures before a message is given up.", count, "5"
)
