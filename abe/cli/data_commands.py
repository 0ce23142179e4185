"""The commands that publish, consume, look at and remove messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import typer

from abe.backends.message_queue.base import Message
from abe.backends.message_queue.client import AsyncBackend
from abe.backends.message_queue.loader import choose_backend
from abe.cli import publishing
from abe.cli.consuming import Consumption
from abe.cli.consuming import consume as take
from abe.cli.options import (
    Action,
    BackendName,
    DeadAction,
    DeadNumber,
    Delay,
    Env,
    File,
    Follow,
    Format,
    Group,
    Header,
    Ids,
    InputFormat,
    Json,
    Key,
    Keys,
    MessageJson,
    Number,
    Patience,
    Payload,
    PeekNumber,
    Quiet,
    StatsGroup,
    Stream,
    Yes,
    as_lines,
    assignments,
    seconds,
    target,
)
from abe.cli.output import emit_line, emit_table, say
from abe.cli.session import Target, Terminated, with_backend
from abe.display.lines import json_line, message_json
from abe.display.results import Backlog, DeadLetters, Messages
from abe.display.text import cell, group_name, plural

__all__ = ["COMMANDS"]


def publish(
    ctx: typer.Context,
    key: Key,
    payload: Payload = None,
    header: Header = None,
    delay: Delay = 0.0,
    format: InputFormat = Format.JSONL,
    file: File = None,
    stream: Stream = False,
    backend: BackendName = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Publish a message, or one for each line of input.

        abe publish orders.created '{"id": 1}'
        abe publish orders.created < events.jsonl
        tail -f events.jsonl | abe publish orders.created --stream

    Everything is checked before the first message is sent; input from a pipe is kept in memory or
    a temporary file until then. With --stream nothing is kept: the lines before a bad one are
    published. Memory does not grow with the input. On an error the text says which line it was
    and how many messages were published.
    """
    text = _payload_text(ctx, payload, file)
    extras: dict[str, Any] = {"headers": assignments(header, "--header")} if header else {}
    if seconds(delay, "--delay"):
        extras["delay"] = delay
    what = publishing.Publication(key, extras)
    where = target(backend, env)
    choose_backend(where.name, env=where.env)  # reading the input may take long
    if text is not None:
        _publish_document(text, what, where)
    else:
        with publishing.open_input(file) as source:
            if source is None:
                ctx.fail("PAYLOAD is missing, and nothing comes through standard input")
            if format is Format.JSON:
                _publish_document(publishing.read_all(source), what, where)
            else:
                _publish_lines(source, what, where, stream)
    record = {"published": what.published, "key": key}
    text = f"published {plural(what.published, 'message')} to {cell(key)}"
    emit_line(json_line(record) if json else text)


def _payload_text(ctx: typer.Context, payload: list[str] | None, file: Path | None) -> str | None:
    if payload and len(payload) > 1:
        ctx.fail("""PAYLOAD is one argument; quote it for the shell: '{"id": 1}'""")
    if payload and file is not None:
        ctx.fail("PAYLOAD and --file do not go together")
    return payload[0] if payload and payload[0] != "-" else None


def _publish_document(text: str | bytes, what: publishing.Publication, where: Target) -> None:
    payloads = publishing.document(text)
    what.unit, what.total, what.last = "item", len(payloads), len(payloads) - 1
    items = [publishing.Item(n, payload) for n, payload in enumerate(payloads)]
    _publish(partial(publishing.publish_items, items=items, what=what), what, where)


def _publish_lines(
    source: publishing.Source, what: publishing.Publication, where: Target, stream: bool
) -> None:
    with nullcontext(source) if stream else publishing.checked(source, what) as lines:
        _publish(partial(publishing.publish_lines, source=lines, what=what), what, where)


def _publish(work: Callable[..., Any], what: publishing.Publication, where: Target) -> None:
    try:
        with_backend(where, work)
    except (KeyboardInterrupt, Terminated):
        if what.published:
            say(f"abe: interrupted; {what.progress}, perhaps more")
        raise


def consume(
    keys: Keys = None,
    group: Group = None,
    number: Number = None,
    timeout: Patience = None,
    quiet: Quiet = None,
    follow: Follow = False,
    backend: BackendName = None,
    env: Env = None,
    json: MessageJson = None,
) -> None:
    """Take messages and write one a line.

    Each is acked once its line is written.

        abe consume 'orders.*' -n 100 -t 2
        abe consume -f -g billing | jq .payload

    In JSON each line is an object with id, key, timestamp (ISO 8601, UTC), attempt, headers and
    payload; plain backends give null for id, key and timestamp. A message that was not written,
    because the reader has gone or the command was interrupted, comes again.
    """
    wanted = Consumption(
        keys=keys or (),
        group=group or None,
        number=number if number is not None or follow else 10,
        timeout=_patience(timeout, "--timeout", None if follow else 5.0),
        quiet=_patience(quiet, "--quiet", None if follow else 0.5),
        as_lines=as_lines(json),
    )
    acked = with_backend(target(backend, env), partial(take, wanted=wanted))
    if not wanted.as_lines:
        say(f"acked {plural(acked, 'message')} of {group_name(group)}")


def _patience(value: float | None, option: str, default: float | None) -> float | None:
    return default if value is None else seconds(value, option)


def peek(
    keys: Keys = None,
    group: Group = None,
    number: PeekNumber = 10,
    backend: BackendName = None,
    env: Env = None,
    json: MessageJson = None,
) -> None:
    """Show waiting messages, taking none.

    They are those that the group could take now, oldest first.
    """
    group = group or None

    async def look(q: AsyncBackend) -> Messages[Message]:
        found = await q.peek(keys or None, group=group, limit=number)
        return Messages(found, f"waiting on {cell(q.name)} for {group_name(group)}, not taken")

    _show(with_backend(target(backend, env), look), json)


def stats(
    keys: Keys = None,
    group: StatsGroup = None,
    backend: BackendName = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Show the backlog of every key and group.

    In JSON each line is an object with key, group, ready, in_flight, delayed, dead, oldest_age
    (seconds) and approximate; null where the broker cannot say.
    """

    async def look(q: AsyncBackend) -> Backlog:
        found = await q.stats()
        return Backlog(found.entries, found.approximate, f"of {cell(q.name)}")

    backlog = with_backend(target(backend, env), look)
    backlog = backlog.select(keys or None, None if group is None else [group or None])
    if not json:
        emit_table(backlog.table())
        return
    for entry in backlog:
        emit_line(json_line({**asdict(entry), "approximate": backlog.approximate}))


def dead(
    ctx: typer.Context,
    action: DeadAction = Action.LIST,
    group: Group = None,
    number: DeadNumber = None,
    ids: Ids = None,
    backend: BackendName = None,
    env: Env = None,
    json: MessageJson = None,
) -> None:
    """Show dead letters, or deliver them again.

    They are those of one group, oldest first; only that group gets them again.
    """
    if ids and action is Action.LIST:
        ctx.fail("--id is for 'abe dead replay'")
    group, where = group or None, target(backend, env)
    if action is Action.LIST:

        async def look(q: AsyncBackend) -> Messages[Message]:
            found = await q.dead_letters(group=group, limit=number or 100)
            return DeadLetters(found, f"of {group_name(group)} on {cell(q.name)}")

        _show(with_backend(where, look), json)
        return
    count = with_backend(where, lambda q: q.replay(group=group, ids=ids or None, limit=number))
    _report_count(json, "replayed", count, "dead letter", group)


def purge(
    ctx: typer.Context,
    keys: Keys = None,
    group: Group = None,
    yes: Yes = False,
    backend: BackendName = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Drop what waits for a group.

    What is in flight and dead letters stay.
    """
    if not yes:
        ctx.fail("purge drops messages for good; add --yes")
    group = group or None
    count = with_backend(target(backend, env), lambda q: q.purge(keys or None, group=group))
    _report_count(json, "purged", count, "message", group)


def _show(messages: Messages[Message], json: bool | None) -> None:
    if not as_lines(json):
        emit_table(messages.table(ids=True))
        return
    for message in messages:
        emit_line(message_json(message))


def _report_count(json: bool | None, done: str, count: int, noun: str, group: str | None) -> None:
    text = f"{done} {plural(count, noun)} of {group_name(group)}"
    emit_line(json_line({done: count, "group": group}) if json else text)


COMMANDS: Sequence[Callable[..., None]] = (publish, consume, peek, stats, dead, purge)
