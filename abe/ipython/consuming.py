"""``%abe_consume``."""

from __future__ import annotations

from typing import Any

from abe.display.results import Messages
from abe.display.text import cell, group_name, plural
from abe.ipython.grammar import Option, Syntax, count, identifier, parse, seconds
from abe.ipython.session import Call, say

__all__ = ["CONSUME", "consume"]

CONSUME = Syntax(
    "%abe_consume",
    "[KEYS…] [-g GROUP] [-n 10] [-t 5] [-q 0.5] [-o NAME]",
    (
        Option("--group", "-g", "GROUP"),
        Option("--number", "-n", "N", count),
        Option("--timeout", "-t", "S", seconds),
        Option("--quiet", "-q", "S", seconds),
        Option("--out", "-o", "NAME", identifier),
    ),
)


def consume(call: Call) -> Any:
    """Take messages, acknowledge them and return them."""
    arguments = parse(CONSUME, call.line, call.evaluate)
    options = arguments.options
    settings = call.session.settings
    group = call.group(options["group"])
    timeout = settings.timeout if options["timeout"] is None else options["timeout"]
    backend = call.session.backend()
    taken = backend.take(
        options["number"] or settings.limit,
        timeout=timeout,
        quiet=settings.quiet if options["quiet"] is None else options["quiet"],
        keys=arguments.words or None,
        group=group,
    )
    call.session.note((message.key for message in taken), [group])
    source = f"from {cell(backend.name)}, {group_name(group)}"
    nothing = "" if taken else f": nothing arrived within {timeout:g} s"
    say(f"acked {plural(len(taken), 'message')} {source}{nothing}")
    return call.result(Messages(taken, source), options["out"])
