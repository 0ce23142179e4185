"""``%abe_publish`` and ``%%abe_publish``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from abe.backends.message_queue.base.keys import validate_key
from abe.errors import AbeError, PublishError
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
from abe.ipython.payloads import FORMATS, payloads_of, read_payloads
from abe.ipython.progress import Progress
from abe.ipython.render import cell
from abe.ipython.results import Published
from abe.ipython.session import Call, say

if TYPE_CHECKING:
    from abe.sync import SyncBackend

__all__ = ["LINE", "CELL", "publish"]

MANY = 1000
"""Messages that are published in one go; more of them show progress."""

_COMMON = (
    Option("--header", "-H", "K=V", assignment, repeat=True),
    Option("--delay", "-d", "S", seconds, default=0.0),
    Option("--format", "-f", "|".join(FORMATS), one_of(*FORMATS), default="json"),
    Option("--out", "-o", "NAME", identifier),
)

LINE = Syntax(
    "%abe_publish",
    "[--header K=V]… [--delay S] KEY PAYLOAD, or KEY -i VAR",
    (*_COMMON, Option("--in", "-i", "VAR", identifier)),
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
    payloads = _payloads(call, arguments, key, body)
    count = _send(call, key, payloads, arguments.options)
    call.session.note([key])
    return call.result(count, arguments.options["out"])


def _require_key_and_payload(syntax: Syntax, arguments: Arguments, body: str | None) -> None:
    variable = arguments.options.get("in")
    if not arguments.words:
        raise syntax.error("KEY is missing: which key to publish under, e.g. orders.created")
    given = arguments.payload
    if body is not None:
        if given is not None:
            raise syntax.error(
                f"the payload of %%abe_publish is the cell, so {cell(given, 40)} cannot follow KEY"
            )
    elif given is not None and variable is not None:
        raise syntax.error(f"both -i {variable} and a payload are given: {cell(given, 40)}")
    elif given is None and variable is None:
        key = cell(arguments.words[0], 40)
        raise syntax.error(f"nothing to publish: {key} was taken for KEY and no PAYLOAD follows it")


def _payloads(call: Call, arguments: Arguments, key: str, body: str | None) -> list[dict[str, Any]]:
    variable = arguments.options.get("in")
    if variable is not None:
        return payloads_of(call.variable(variable), variable)
    text = arguments.payload if body is None else body
    return read_payloads(
        text or "", arguments.options["format"], call.evaluate, f"%abe_publish {cell(key, 60)}"
    )


def _send(call: Call, key: str, payloads: list[dict[str, Any]], options: dict[str, Any]) -> Any:
    """Publish payloads that are known to be valid."""
    backend = call.session.backend()
    extras: dict[str, Any] = {}
    if options["header"]:
        extras["headers"] = dict(options["header"])
    if options["delay"]:
        extras["delay"] = options["delay"]
    if len(payloads) == 1:
        backend.publish(key, payloads[0], **extras)
    elif len(payloads) <= MANY and not extras:
        backend.publish_many(payloads, key=key)
    else:
        _send_many(backend, key, payloads, extras)
    return Published(len(payloads), key, backend.name)


def _send_many(
    backend: SyncBackend, key: str, payloads: list[dict[str, Any]], extras: dict[str, Any]
) -> None:
    total = len(payloads)
    with Progress(total, "published") as progress:
        try:
            if extras:
                _send_singly(backend, key, payloads, extras, progress)
            else:
                backend.publish_many(payloads, key=key, progress=progress)
        except KeyboardInterrupt:
            say(f"interrupted; at least {progress.count:,} of {total:,} are published")
            raise


def _send_singly(
    backend: SyncBackend,
    key: str,
    payloads: list[dict[str, Any]],
    extras: dict[str, Any],
    progress: Progress,
) -> None:
    total = len(payloads)
    for done, payload in enumerate(payloads):
        try:
            backend.publish(key, payload, **extras)
        except AbeError as error:
            if not done:
                raise
            raise PublishError(
                f"published {done} of {total}; item {done} failed: {error}",
                retryable=getattr(error, "retryable", False),
                published=range(done),
                failed={done: str(error), **dict.fromkeys(range(done + 1, total), "not sent")},
            ) from error
        progress(done + 1)
