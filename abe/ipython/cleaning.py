"""``%abe_dead`` and ``%abe_purge``."""

from __future__ import annotations

from typing import Any

from abe.backends.message_queue.base.keys import KeyFilter
from abe.display.results import Count, DeadLetters
from abe.display.text import cell, group_name, plural
from abe.errors import AbeError
from abe.ipython.grammar import Option, Syntax, count, identifier, one_of, parse
from abe.ipython.session import Call

__all__ = ["DEAD", "PURGE", "dead", "purge"]

DEAD = Syntax(
    "%abe_dead",
    "[list|replay] [-g GROUP] [-n N] [--id ID]… [-o NAME]",
    (
        Option("--group", "-g", "GROUP"),
        Option("--number", "-n", "N", count),
        Option("--id", "", "ID", repeat=True),
        Option("--out", "-o", "NAME", identifier),
    ),
)
PURGE = Syntax(
    "%abe_purge",
    "[KEYS…] [-g GROUP] --yes [-o NAME]",
    (
        Option("--group", "-g", "GROUP"),
        Option("--yes"),
        Option("--out", "-o", "NAME", identifier),
    ),
)
ACTIONS = ("list", "replay")
LIMIT = 100


def dead(call: Call) -> Any:
    """Show the dead letters of a group, or put them back."""
    arguments = parse(DEAD, call.line, call.evaluate)
    options = arguments.options
    if len(arguments.words) > 1:
        raise DEAD.error(f"{cell(arguments.words[1], 40)} is one word too many")
    try:
        action = one_of(*ACTIONS)(arguments.words[0] if arguments.words else "list")
    except ValueError as error:
        raise DEAD.error(f"the action {error}") from None
    if action == "list" and options["id"]:
        raise DEAD.error("--id chooses what is replayed; it does not go with list")
    group = call.group(options["group"])
    backend = call.session.backend()
    call.session.note(groups=[group])
    where = f"of {group_name(group)} on {cell(backend.name)}"
    if action == "list":
        found = backend.dead_letters(group=group, limit=options["number"] or LIMIT)
        return call.result(DeadLetters(found, where), options["out"])
    number = backend.replay(group=group, ids=options["id"] or None, limit=options["number"])
    sentence = f"replayed {plural(number, 'dead letter')} {where}"
    return call.result(Count(number, sentence), options["out"])


def purge(call: Call) -> Any:
    """Drop what waits for a group."""
    arguments = parse(PURGE, call.line, call.evaluate)
    keys = arguments.words or None
    KeyFilter(keys)
    group = call.group(arguments.options["group"])
    backend = call.session.backend()
    where = f"for {group_name(group)} on {cell(backend.name)}"
    if not arguments.options["yes"]:
        raise PURGE.error(
            f"this drops {_how_many(call, keys, group)} waiting {where}, for good;"
            " if that is what you want, repeat it with --yes"
        )
    call.session.note(groups=[group])
    number = backend.purge(keys, group=group)
    sentence = f"dropped {plural(number, 'message')} that waited {where}"
    return call.result(Count(number, sentence), arguments.options["out"])


def _how_many(call: Call, keys: list[str] | None, group: str | None) -> str:
    backend = call.session.backend()
    wanted = KeyFilter(keys)
    try:
        found = [
            (entry.ready, entry.delayed)
            for entry in backend.stats().entries
            if entry.group == group and wanted.matches(entry.key)
        ]
    except AbeError:
        return "the messages"
    if any(None in numbers for numbers in found):
        return "the messages"
    return plural(sum(number or 0 for numbers in found for number in numbers), "message")
