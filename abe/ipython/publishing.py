"""``%abe_publish`` and ``%%abe_publish``."""

from __future__ import annotations

from typing import Any

from abe.backends.message_queue.base.keys import validate_key
from abe.display.results import Count
from abe.display.text import cell, plural
from abe.ipython.grammar import (
    Arguments,
    Option,
    Syntax,
    assignment,
    identifier,
    one_of,
    parse,
    seconds,
)
from abe.ipython.payloads import FORMATS, payloads_of, read_file, read_payloads
from abe.ipython.progress import Progress
from abe.ipython.sending import send
from abe.ipython.session import Call, say

__all__ = ["LINE", "CELL", "publish"]


def _variable(text: str) -> str:
    try:
        return identifier(text)
    except ValueError as error:
        raise ValueError(f"{error}; for an expression write {{{{…}}}} as the payload") from None


_COMMON = (
    Option("--header", "-H", "K=V", assignment, repeat=True),
    Option("--delay", "-d", "S", seconds, default=0.0),
    Option("--format", "-f", "|".join(FORMATS), one_of(*FORMATS)),
    Option("--out", "-o", "NAME", identifier),
)

LINE = Syntax(
    "%abe_publish",
    "[--header K=V]… [--delay S] KEY PAYLOAD, or KEY -i VAR, or KEY --file PATH",
    (*_COMMON, Option("--in", "-i", "VAR", _variable), Option("--file", "-F", "PATH")),
    payload=True,
)
CELL = Syntax(
    "%%abe_publish",
    f"[--header K=V]… [--delay S] KEY [--format {'|'.join(FORMATS)}], then PAYLOAD as the cell",
    _COMMON,
    payload=True,
)


def publish(call: Call, body: str | None) -> Any:
    """Publish what the line holds, or ``body`` if it is a cell magic."""
    syntax = LINE if body is None else CELL
    arguments = parse(syntax, call.line, call.evaluate)
    _require_key_and_payload(syntax, arguments, body)
    key = validate_key(arguments.words[0])
    try:
        with Progress(None, "checked", live=call.session.in_notebook) as progress:
            payloads = _payloads(call, arguments, key, body, progress)
    except KeyboardInterrupt:
        say("interrupted: nothing is published")
        raise
    count = _send(call, key, payloads, arguments.options)
    call.session.note([key])
    return call.result(count, arguments.options["out"])


def _require_key_and_payload(syntax: Syntax, arguments: Arguments, body: str | None) -> None:
    variable, path = arguments.options.get("in"), arguments.options.get("file")
    if not arguments.words:
        raise syntax.error("KEY is missing: which key to publish under, e.g. orders.created")
    given = arguments.payload
    if body is not None:
        if given is not None:
            raise syntax.error(
                f"the payload of %%abe_publish is the cell, so {cell(given, 40)} cannot follow KEY"
            )
        return
    sources = [f"-i {variable}"] if variable is not None else []
    sources += [f"--file {cell(path, 40)}"] if path is not None else []
    sources += [f"a payload ({cell(given, 40)})"] if given is not None else []
    if len(sources) > 1:
        raise syntax.error(f"only one of {' and '.join(sources)} can be published")
    if not sources:
        key = cell(arguments.words[0], 40)
        raise syntax.error(f"nothing to publish: {key} was taken for KEY and no PAYLOAD follows it")


def _payloads(
    call: Call, arguments: Arguments, key: str, body: str | None, progress: Progress
) -> list[dict[str, Any]]:
    variable = arguments.options.get("in")
    if variable is not None:
        return payloads_of(call.variable(variable), variable, progress)
    path = arguments.options.get("file")
    if path is not None:
        return read_file(path, arguments.options["format"])
    text = arguments.payload if body is None else body
    return read_payloads(
        text or "",
        arguments.options["format"] or "json",
        call.evaluate,
        f"%abe_publish {cell(key, 60)}",
        progress,
    )


def _send(call: Call, key: str, payloads: list[dict[str, Any]], options: dict[str, Any]) -> Any:
    """Publish payloads that are known to be valid."""
    backend = call.session.backend()
    extras: dict[str, Any] = {}
    if options["header"]:
        extras["headers"] = dict(options["header"])
    if options["delay"]:
        extras["delay"] = options["delay"]
    send(backend, key, payloads, extras, live=call.session.in_notebook)
    number = len(payloads)
    where = f"to {cell(key)} on {cell(backend.name)}"
    return Count(number, f"published {plural(number, 'message')} {where}")
