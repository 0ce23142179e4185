"""``%abe_consume``."""

from __future__ import annotations

from typing import Any

from abe.ipython.grammar import Option, Syntax, count, identifier, parse, seconds
from abe.ipython.render import cell, plural
from abe.ipython.results import Messages
from abe.ipython.session import Call, say

__all__ = ["CONSUME", "consume"]

CONSUME = Syntax(
    "%abe_consume",
    "[KEYS…] [-g GROUP] [-n 10] [-t 5] [-o NAME]",
    (
        Option("--group", "-g", "GROUP"),
        Option("--number", "-n", "N", count, default=10),
        Option("--timeout", "-t", "S", seconds, default=5.0),
        Option("--out", "-o", "NAME", identifier),
    ),
)


def consume(call: Call) -> Any:
    """Take messages, acknowledge them and return them."""
    arguments = parse(CONSUME, call.line, call.evaluate)
    options = arguments.options
    group, timeout = options["group"], options["timeout"]
    backend = call.session.backend()
    taken = backend.take(
        options["number"], timeout=timeout, keys=arguments.words or None, group=group
    )
    whose = "the default group" if group is None else f"group {cell(group)}"
    source = f"from {cell(backend.name)}, {whose}"
    nothing = "" if taken else f": nothing arrived within {timeout:g} s"
    say(f"acked {plural(len(taken), 'message')} {source}{nothing}")
    return call.result(Messages(taken, source), options["out"])
