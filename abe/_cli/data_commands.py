"""The commands that publish, consume, look at and remove messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import typer

from abe._cli import publishing
from abe._cli.consuming import Consumption
from abe._cli.consuming import consume as take
from abe._cli.looking import show_dead, show_messages, show_stats
from abe._cli.messages import counted, whose
from abe._cli.options import (
    Action,
    BackendName,
    DeadAction,
    DeadNumber,
    Delay,
    Env,
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
    Stream,
    Yes,
    as_lines,
    assignments,
    seconds,
    target,
)
from abe._cli.output import emit_line, json_line, say
from abe._cli.session import Target, Terminated, with_backend
from abe._text import cell

__all__ = ["COMMANDS"]


def publish(
    ctx: typer.Context,
    key: Key,
    payload: Payload = None,
    header: Header = None,
    delay: Delay = 0.0,
    format: InputFormat = Format.JSONL,
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
    if len(payload or ()) > 1:
        ctx.fail("""PAYLOAD is one argument; quote it for the shell: '{"id": 1}'""")
    text: str | bytes | None = payload[0] if payload and payload[0] != "-" else None
    extras: dict[str, Any] = {"headers": assignments(header, "--header")} if header else {}
    if seconds(delay, "--delay"):
        extras["delay"] = delay
    what = publishing.Publication(key, extras)
    source = publishing.standard_input() if text is None else None
    if source is not None and format is Format.JSON:
        text, source = publishing.read_all(source), None
    if text is not None:
        _publish_document(text, what, target(backend, env))
    elif source is not None:
        again = source if stream else publishing.check_lines(source, what)
        work = partial(publishing.publish_lines, source=again, what=what)
        _publish(work, what, target(backend, env))
    else:
        ctx.fail("PAYLOAD is missing, and nothing comes through standard input")
    if json:
        emit_line(json_line({"published": what.published, "key": key}))
    else:
        emit_line(f"published {counted(what.published)} to {cell(key)}")


def _publish_document(text: str | bytes, what: publishing.Publication, where: Target) -> None:
    payloads = publishing.document(text)
    what.unit, what.total, what.last = "item", len(payloads), len(payloads) - 1
    items = [publishing.Item(n, payload) for n, payload in enumerate(payloads)]
    _publish(partial(publishing.publish_items, items=items, what=what), what, where)


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
    if timeout is not None:
        seconds(timeout, "--timeout")
    wanted = Consumption(
        keys=keys or (),
        group=group,
        number=number if number is not None or follow else 10,
        timeout=timeout if timeout is not None or follow else 5.0,
        as_lines=as_lines(json),
    )
    acked = with_backend(target(backend, env), partial(take, wanted=wanted))
    if not wanted.as_lines:
        say(f"acked {counted(acked)} of {whose(group)}")


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
    found = with_backend(
        target(backend, env), lambda q: q.peek(keys or None, group=group, limit=number)
    )
    show_messages(found, as_lines=as_lines(json))


def stats(backend: BackendName = None, env: Env = None, json: Json = False) -> None:
    """Show the backlog of every key and group.

    In JSON each line is an object with key, group, ready, in_flight, delayed, dead, oldest_age
    (seconds) and approximate; null where the broker cannot say.
    """
    show_stats(with_backend(target(backend, env), lambda q: q.stats()), as_lines=json)


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
    where = target(backend, env)
    if action is Action.LIST:
        found = with_backend(where, lambda q: q.dead_letters(group=group, limit=number or 100))
        show_dead(found, as_lines=as_lines(json))
        return
    count = with_backend(where, lambda q: q.replay(group=group, ids=ids or None, limit=number))
    _say_count(json, "replayed", f"put {counted(count)} back for {whose(group)}", count, group)


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
    count = with_backend(target(backend, env), lambda q: q.purge(keys or None, group=group))
    _say_count(json, "purged", f"dropped {counted(count)} of {whose(group)}", count, group)


def _say_count(json: bool | None, name: str, text: str, count: int, group: str | None) -> None:
    emit_line(json_line({name: count, "group": group}) if json else text)


COMMANDS: Sequence[Callable[..., None]] = (publish, consume, peek, stats, dead, purge)
