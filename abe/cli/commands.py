"""The commands that publish, consume, inspect and delete messages, and list backends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import typer

from abe.backends.message_queue.base import SyncMessage
from abe.backends.message_queue.loader import choose_backend, list_backends
from abe.cli import options
from abe.cli.output import emit, emit_line, emit_table, say
from abe.cli.publishing import Publication, open_input, read_all
from abe.display.lines import json_line, message_json, message_text
from abe.display.results import Backends, Messages
from abe.display.text import cell, group_name, plural
from abe.errors import AbeError, UnsupportedError
from abe.sync import connect


def publish(
    ctx: typer.Context,
    key: options.Key,
    payload: options.Payload = None,
    header: options.Header = None,
    delay: options.Delay = 0.0,
    format: options.InputFormat = "jsonl",
    file: options.File = None,
    stream: options.Stream = False,
    backend: options.BackendName = None,
    env: options.Env = None,
    json: options.Json = False,
) -> None:
    """Publish a message, or one for each line of input.

        abe publish orders.created '{"id": 1}'
        abe publish orders.created < events.jsonl
        tail -f events.jsonl | abe publish orders.created --stream

    Everything is checked before the first message is sent; input from a pipe is kept in memory or
    a temporary file until then. With --stream nothing is kept: the lines before a bad one are
    published. Memory does not grow with the input. An error names the line and the number of
    messages published.
    """
    text = _payload_text(ctx, payload, file)
    with options.target(backend, env).open(connect) as q:
        what = Publication(q, key, headers=dict(header or ()), delay=delay)
        try:
            if text is not None:
                what.send([what.document(text)])
            elif (source := open_input(file)) is None:
                ctx.fail("PAYLOAD is missing, and nothing comes through standard input")
            else:
                with source:
                    if format == "json":
                        what.send([what.document(read_all(source))])
                    elif stream:
                        what.follow(source)
                    else:
                        what.send_checked(source)
        except KeyboardInterrupt:
            if what.published:
                say(f"abe: interrupted; {what.progress}, perhaps more")
            raise
    record = {"published": what.published, "key": key}
    text = f"published {plural(what.published, 'message')} to {cell(key)}"
    emit_line(json_line(record) if json else text)


def _payload_text(ctx: typer.Context, payload: list[str] | None, file: Path | None) -> str | None:
    if payload and len(payload) > 1:
        ctx.fail("""PAYLOAD is one argument; quote it for the shell: '{"id": 1}'""")
    if payload and file is not None:
        ctx.fail("PAYLOAD and --file do not go together")
    return payload[0] if payload and payload[0] != "-" else None


def consume(
    keys: options.Keys = None,
    group: options.Group = None,
    number: options.Number = None,
    timeout: options.Timeout = None,
    quiet: options.Quiet = None,
    follow: options.Follow = False,
    backend: options.BackendName = None,
    env: options.Env = None,
    json: options.MessageJson = None,
) -> None:
    """Take messages and write one a line.

    A message is acked once its line is written.

        abe consume 'orders.*' -n 100 -t 2
        abe consume -f -g billing | jq .payload

    In JSON each line is an object with id, key, timestamp (ISO 8601, UTC), attempt, headers and
    payload; plain backends give null for id, key and timestamp. A message that was not written,
    because the reader has gone or the command was interrupted, is released.
    """
    group = group or None
    if not follow:
        number = number or 10
        timeout = 5.0 if timeout is None else timeout
        quiet = 0.5 if quiet is None else quiet
    form = message_json if options.as_lines(json) else message_text
    acked = 0
    with options.target(backend, env).open(connect) as q:
        if timeout is not None:
            # A stream waits for its broker to return; a command with a time limit reports it.
            with suppress(UnsupportedError):
                q.ping(max(timeout, 5.0))
        with q.consume(keys or None, group=group, limit=number, timeout=timeout) as stream:
            for message in stream:
                emit(f"{form(message)}\n")
                message.ack()
                acked += 1
                stream.timeout = quiet
    if form is message_text:
        say(f"acked {plural(acked, 'message')} of {group_name(group)}")


def peek(
    keys: options.Keys = None,
    group: options.Group = None,
    number: options.Number = None,
    backend: options.BackendName = None,
    env: options.Env = None,
    json: options.MessageJson = None,
) -> None:
    """Show waiting messages without taking them.

    These are the messages that the group could take now, oldest first.
    """
    with options.target(backend, env).open(connect) as q:
        _show(q.peek(keys or None, group=group or None, limit=number or 10), json)


def stats(
    keys: options.Keys = None,
    group: options.SomeGroup = None,
    backend: options.BackendName = None,
    env: options.Env = None,
    json: options.Json = False,
) -> None:
    """Show the backlog of every key and group.

    In JSON each line is an object with key, group, ready, in_flight, delayed, dead, oldest_age
    (seconds) and approximate; null where the broker cannot say.
    """
    groups = None if group is None else [group or None]
    with options.target(backend, env).open(connect) as q:
        backlog = q.stats().select(keys or None, groups)
    if not json:
        emit_table(backlog.table())
        return
    for entry in backlog:
        emit_line(json_line({**asdict(entry), "approximate": backlog.approximate}))


def dead(
    ctx: typer.Context,
    action: options.DeadAction = "list",
    group: options.Group = None,
    number: options.DeadNumber = None,
    ids: options.Ids = None,
    backend: options.BackendName = None,
    env: options.Env = None,
    json: options.MessageJson = None,
) -> None:
    """List or replay the dead letters of a group.

    They are listed oldest first, and replayed to that group only.
    """
    if ids and action == "list":
        ctx.fail("--id is for 'abe dead replay'")
    group = group or None
    with options.target(backend, env).open(connect) as q:
        if action == "list":
            _show(q.dead_letters(group=group, limit=number or 100), json)
            return
        count = q.replay(group=group, ids=ids or None, limit=number)
    _report_count(json, "replayed", count, "dead letter", group)


def purge(
    ctx: typer.Context,
    keys: options.Keys = None,
    group: options.Group = None,
    yes: options.Yes = False,
    backend: options.BackendName = None,
    env: options.Env = None,
    json: options.Json = False,
) -> None:
    """Delete waiting messages of a group.

    Messages in flight and dead letters are kept.
    """
    if not yes:
        ctx.fail("purge deletes messages permanently; add --yes")
    group = group or None
    with options.target(backend, env).open(connect) as q:
        count = q.purge(keys or None, group=group)
    _report_count(json, "purged", count, "message", group)


def _show(messages: Messages[SyncMessage], json: bool | None) -> None:
    if not options.as_lines(json):
        emit_table(messages.table(ids=True))
        return
    for message in messages:
        emit_line(message_json(message))


def _report_count(json: bool | None, done: str, count: int, noun: str, group: str | None) -> None:
    text = f"{done} {plural(count, noun)} of {group_name(group)}"
    emit_line(json_line({done: count, "group": group}) if json else text)


def backends(
    check: options.Check = False,
    json: options.Json = False,
) -> None:
    """List the installed backends.

    Below the table stands which one is chosen when none is named, and why.
    """
    try:
        choice = choose_backend()
        chosen, reason = choice.info.name, choice.reason
    except AbeError as error:
        chosen, reason = "", str(error)
    found = Backends(list_backends(check=check), chosen, reason)
    if not json:
        emit_table(found.table())
        return
    for info in found:
        emit_line(json_line({**asdict(info), "chosen": info.name == chosen}))


COMMANDS: Sequence[Callable[..., None]] = (publish, consume, peek, stats, dead, purge, backends)
