"""The commands that publish, consume, inspect and delete messages, and list backends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import typer

from abe.backends.message_queue.base import Message
from abe.backends.message_queue.client import AsyncBackend
from abe.backends.message_queue.handling.threads import DaemonThreads
from abe.backends.message_queue.loader import choose_backend, list_backends
from abe.cli import options
from abe.cli.output import emit, emit_line, emit_table, say, would_block
from abe.cli.publishing import Publication, open_input, read_all
from abe.cli.session import Terminated, open_backend, with_backend
from abe.display.lines import json_line, message_json, message_text
from abe.display.results import Backends, Backlog, DeadLetters, Messages
from abe.display.text import cell, group_name, plural
from abe.errors import AbeError

__all__ = ["COMMANDS"]

MIN_WAIT = 0.1
"""Seconds; a shorter wait would end before present messages have crossed the network."""


def publish(
    ctx: typer.Context,
    key: options.Key,
    payload: options.Payload = None,
    header: options.Header = None,
    delay: options.Delay = 0.0,
    format: options.InputFormat = options.Format.JSONL,
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
    headers = options.assignments(header, "--header")
    opened = open_backend(options.target(backend, env))
    what = Publication(opened, key, headers=headers, delay=options.seconds(delay, "--delay"))
    if text is not None:
        _send(what, opened, partial(what.send, [what.document(text)]))
    else:
        with open_input(file) as source:
            if source is None:
                ctx.fail("PAYLOAD is missing, and nothing comes through standard input")
            if format is options.Format.JSON:
                _send(what, opened, partial(what.send, [what.document(read_all(source))]))
            elif stream:
                _send(what, opened, partial(what.follow, source))
            else:
                with what.checked(source) as parts:
                    _send(what, opened, partial(what.send, parts))
    record = {"published": what.published, "key": key}
    text = f"published {plural(what.published, 'message')} to {cell(key)}"
    emit_line(json_line(record) if json else text)


def _payload_text(ctx: typer.Context, payload: list[str] | None, file: Path | None) -> str | None:
    if payload and len(payload) > 1:
        ctx.fail("""PAYLOAD is one argument; quote it for the shell: '{"id": 1}'""")
    if payload and file is not None:
        ctx.fail("PAYLOAD and --file do not go together")
    return payload[0] if payload and payload[0] != "-" else None


def _send(what: Publication, backend: AsyncBackend, work: Callable[[], Awaitable[None]]) -> None:
    try:
        with_backend(backend, lambda _: work())
    except (KeyboardInterrupt, Terminated):
        if what.published:
            say(f"abe: interrupted; {what.progress}, perhaps more")
        raise


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
    wanted = _Consumption(
        keys=keys or (),
        group=group or None,
        number=number if number is not None or follow else 10,
        timeout=_patience(timeout, "--timeout", None if follow else 5.0),
        quiet=_patience(quiet, "--quiet", None if follow else 0.5),
        as_lines=options.as_lines(json),
    )
    acked = with_backend(options.target(backend, env), partial(_consume, wanted=wanted))
    if not wanted.as_lines:
        say(f"acked {plural(acked, 'message')} of {group_name(group or None)}")


def _patience(value: float | None, option: str, default: float | None) -> float | None:
    return default if value is None else options.seconds(value, option)


@dataclass(frozen=True, slots=True)
class _Consumption:
    """What ``abe consume`` takes, and when it ends.

    Attributes:
        keys: Only keys that match one of these; empty for all.
        group: The consumer group.
        number: Maximum number of messages; ``None`` for no limit.
        timeout: Seconds to wait for the first message; ``None`` waits without limit.
        quiet: Seconds to wait for each further one.
        as_lines: Write JSON, not text.
    """

    keys: Sequence[str]
    group: str | None
    number: int | None
    timeout: float | None
    quiet: float | None
    as_lines: bool


async def _consume(backend: AsyncBackend, wanted: _Consumption) -> int:
    """Write messages to standard output and return how many were acked.

    A message whose line could not be written is released.
    """
    if wanted.timeout is not None and hasattr(backend.backend, "ping"):
        # A stream waits for its broker to return; a command with a time limit reports it.
        await backend.ping(max(wanted.timeout, 5.0))
    prefetch = None
    if wanted.number is not None and backend.capabilities.attempts != "upper":
        prefetch = min(wanted.number, 512)  # further messages stay available to others
    stream = backend.consume(wanted.keys or None, group=wanted.group, prefetch=prefetch)
    form = message_json if wanted.as_lines else message_text
    threads = DaemonThreads("abe-output")
    acked = 0
    try:
        async with stream:
            while wanted.number is None or acked < wanted.number:
                patience = wanted.quiet if acked else wanted.timeout
                patience = None if patience is None else max(patience, MIN_WAIT)
                taken = await stream.take(1, patience)
                if not taken:
                    break
                await _write(f"{form(taken[0])}\n", threads)
                await taken[0].ack()
                acked += 1
    finally:
        threads.close()
    return acked


async def _write(line: str, threads: DaemonThreads) -> None:
    """Write a line without blocking the loop, which extends leases while a slow reader reads."""
    if would_block(len(line.encode())):
        await threads.submit(emit, line)
    else:
        emit(line)


def peek(
    keys: options.Keys = None,
    group: options.Group = None,
    number: options.PeekNumber = 10,
    backend: options.BackendName = None,
    env: options.Env = None,
    json: options.MessageJson = None,
) -> None:
    """Show waiting messages without taking them.

    These are the messages that the group could take now, oldest first.
    """
    group = group or None

    async def look(q: AsyncBackend) -> Messages[Message]:
        found = await q.peek(keys or None, group=group, limit=number)
        return Messages(found, f"waiting on {cell(q.name)} for {group_name(group)}, not taken")

    _show(with_backend(options.target(backend, env), look), json)


def stats(
    keys: options.Keys = None,
    group: options.StatsGroup = None,
    backend: options.BackendName = None,
    env: options.Env = None,
    json: options.Json = False,
) -> None:
    """Show the backlog of every key and group.

    In JSON each line is an object with key, group, ready, in_flight, delayed, dead, oldest_age
    (seconds) and approximate; null where the broker cannot say.
    """

    async def look(q: AsyncBackend) -> Backlog:
        found = await q.stats()
        return Backlog(found.entries, found.approximate, f"of {cell(q.name)}")

    backlog = with_backend(options.target(backend, env), look)
    backlog = backlog.select(keys or None, None if group is None else [group or None])
    if not json:
        emit_table(backlog.table())
        return
    for entry in backlog:
        emit_line(json_line({**asdict(entry), "approximate": backlog.approximate}))


def dead(
    ctx: typer.Context,
    action: options.DeadAction = options.Action.LIST,
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
    if ids and action is options.Action.LIST:
        ctx.fail("--id is for 'abe dead replay'")
    group, where = group or None, options.target(backend, env)
    if action is options.Action.LIST:

        async def look(q: AsyncBackend) -> Messages[Message]:
            found = await q.dead_letters(group=group, limit=number or 100)
            return DeadLetters(found, f"of {group_name(group)} on {cell(q.name)}")

        _show(with_backend(where, look), json)
        return
    count = with_backend(where, lambda q: q.replay(group=group, ids=ids or None, limit=number))
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
    count = with_backend(options.target(backend, env), lambda q: q.purge(keys or None, group=group))
    _report_count(json, "purged", count, "message", group)


def _show(messages: Messages[Message], json: bool | None) -> None:
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


COMMANDS: Sequence[Callable[..., None]] = (
    publish,
    consume,
    peek,
    stats,
    dead,
    purge,
    backends,
)
