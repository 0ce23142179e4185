"""What the commands that only look have found: tables, or JSON lines."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from abe._text import cell, preview, when
from abe.backends.message_queue.base import BaseMessage
from abe.backends.message_queue.base.dead_letters import PREFIX
from abe.backends.message_queue.loader import BackendInfo, choose_backend, list_backends
from abe.cli.messages import as_json
from abe.cli.output import emit_line, emit_table, json_line
from abe.errors import AbeError
from abe.types import KeyStats

__all__ = ["show_backends", "show_dead", "show_messages", "show_stats"]


def show_backends(*, check: bool, as_lines: bool) -> None:
    """Write what is installed, and which one is taken if none is named."""
    try:
        choice = choose_backend()
        chosen = choice.info.name
        why = f"without a name {chosen} is taken: {choice.reason}"
    except AbeError as error:
        chosen, why = "", f"without a name none would be taken: {error}"
    infos = list_backends(check=check)
    if as_lines:
        for info in infos:
            record = {**dataclasses.asdict(info), "chosen": info.name == chosen}
            emit_line(json_line(record))
        return
    emit_table(
        ("backend", "distribution", "class", "status", ""),
        ((*_row(info), "taken" if info.name == chosen else "") for info in infos),
    )
    emit_line("")
    flawed = [info for info in infos if info.error or info.deprecated]
    for text in (*(f"{info.name}: {info.error or info.deprecated}" for info in flawed), why):
        emit_line(cell(text, 1000))


def _row(info: BackendInfo) -> tuple[str, str, str, str]:
    return (
        cell(info.name),
        cell(f"{info.distribution} {info.version}".strip()),
        cell(info.target),
        "deprecated" if info.deprecated is not None else info.status,
    )


def show_stats(entries: Sequence[KeyStats], *, approximate: bool, as_lines: bool) -> None:
    """Write the backlog by key and group."""
    if as_lines:
        for entry in entries:
            emit_line(json_line({**dataclasses.asdict(entry), "approximate": approximate}))
        return
    emit_table(
        ("key", "group", "ready", "in flight", "delayed", "dead", "oldest"),
        (
            (
                cell(entry.key),
                "(default)" if entry.group is None else cell(entry.group),
                *map(_number, (entry.ready, entry.in_flight, entry.delayed, entry.dead)),
                _age(entry.oldest_age),
            )
            for entry in entries
        ),
    )
    if not entries:
        emit_line("nothing is waiting")
    elif approximate:
        emit_line("the broker only estimates these numbers")


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{math.floor(seconds / size)} {unit}"
    return f"{seconds:.0f} s"


def show_messages(messages: Iterable[BaseMessage], *, as_lines: bool) -> None:
    """Write messages that were only looked at: a line of JSON each, or a table."""
    if as_lines:
        _write_lines(messages)
        return
    emit_table(
        ("id", "key", "time", "attempt", "payload"),
        (
            (
                cell(message.id or ""),
                cell(message.key or ""),
                when(message.timestamp),
                str(message.attempt),
                preview(dict(message)),
            )
            for message in messages
        ),
    )


def _write_lines(messages: Iterable[BaseMessage]) -> None:
    for message in messages:
        emit_line(as_json(message))


def show_dead(messages: Sequence[BaseMessage], *, as_lines: bool) -> None:
    """Write dead letters and why they are."""
    if as_lines:
        _write_lines(messages)
        return
    emit_table(
        ("id", "key", "time", "attempts", "reason", "payload"),
        (
            (
                cell(message.id or ""),
                cell(message.key or ""),
                when(message.timestamp),
                cell(message.headers.get(f"{PREFIX}attempts", str(message.attempt))),
                cell(message.headers.get(f"{PREFIX}reason", "")),
                preview(dict(message)),
            )
            for message in messages
        ),
    )
