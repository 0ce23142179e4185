"""The options of the commands, and what their values may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from abe._redact import Variables, known
from abe.cli.output import writes_to_terminal
from abe.cli.session import Target
from abe.display.prompt import ask_secret

__all__ = [
    "Action",
    "BackendName",
    "Concurrency",
    "DeadAction",
    "DeadLetterKey",
    "DeadNumber",
    "Delay",
    "DrainTimeout",
    "Env",
    "File",
    "Follow",
    "Format",
    "Group",
    "HealthFile",
    "Header",
    "Ids",
    "InputFormat",
    "Json",
    "JsonLogs",
    "Key",
    "KeyFilters",
    "Keys",
    "LogLevel",
    "MaxAttempts",
    "MessageJson",
    "Number",
    "Patience",
    "Payload",
    "PeekNumber",
    "PingTimeout",
    "Quiet",
    "StatsGroup",
    "Stream",
    "Yes",
    "as_lines",
    "assignments",
    "seconds",
    "target",
]


def _backend_names() -> list[str]:
    from abe.backends.message_queue.loader import list_backends

    return [info.name for info in list_backends()]


# --- Which backend --------------------------------------------------------------------------------

BackendName = Annotated[
    str | None,
    typer.Option(
        "--backend",
        "-b",
        metavar="NAME",
        help="The backend; without it QUEUE_BACKEND decides, see 'abe backends'.",
        autocompletion=_backend_names,
        show_default=False,
    ),
]
Env = Annotated[
    list[str] | None,
    typer.Option(
        "--env",
        "-e",
        metavar="K[=V]",
        help="Set a variable that configures the backend; K alone asks for it. Repeatable.",
        show_default=False,
    ),
]
PingTimeout = Annotated[
    float, typer.Option("--timeout", "-t", metavar="S", help="Longest wait for the broker.")
]

# --- Which messages -------------------------------------------------------------------------------

Group = Annotated[
    str | None,
    typer.Option(
        "--group", "-g", metavar="GROUP", help="The consumer group.", show_default="the default one"
    ),
]
StatsGroup = Annotated[
    str | None,
    typer.Option(
        "--group",
        "-g",
        metavar="GROUP",
        help="Only this group; '' is the default one.",
        show_default="all groups",
    ),
]
Keys = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEYS",
        help="Only these keys; * stands for one segment, a final ** for one or more.",
        show_default="all keys",
    ),
]
KeyFilters = Annotated[
    list[str] | None,
    typer.Option(
        "--keys",
        "-k",
        metavar="KEYS",
        help="Only these keys; * stands for one segment, a final ** for one or more. Repeatable.",
        show_default="all keys",
    ),
]
Number = Annotated[
    int | None,
    typer.Option("--number", "-n", metavar="N", min=1, help="Most messages.", show_default="10"),
]
PeekNumber = Annotated[
    int, typer.Option("--number", "-n", metavar="N", min=1, help="Most messages.")
]
DeadNumber = Annotated[
    int | None,
    typer.Option(
        "--number",
        "-n",
        metavar="N",
        min=1,
        help="Most messages.",
        show_default="100 to list, all to replay",
    ),
]
Patience = Annotated[
    float | None,
    typer.Option(
        "--timeout", "-t", metavar="S", help="Longest wait for the first message.", show_default="5"
    ),
]
Quiet = Annotated[
    float | None,
    typer.Option(
        "--quiet", "-q", metavar="S", help="Longest wait for a further one.", show_default="0.5"
    ),
]
Follow = Annotated[
    bool,
    typer.Option("--follow", "-f", help="Go on until interrupted, or until -n, -t or -q."),
]
Ids = Annotated[
    list[str] | None,
    typer.Option(
        "--id", metavar="ID", help="Replay only this message. Repeatable.", show_default=False
    ),
]


class Action(StrEnum):
    """What to do with dead letters."""

    LIST = "list"
    REPLAY = "replay"


DeadAction = Annotated[Action, typer.Argument(help="Show them, or deliver them again.")]
Yes = Annotated[bool, typer.Option("--yes", help="Really drop them.")]

# --- What to publish ------------------------------------------------------------------------------

Key = Annotated[str, typer.Argument(metavar="KEY", help="The routing key.")]
Payload = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PAYLOAD",
        help="A JSON object, or a list of objects; without it standard input is read.",
        show_default=False,
    ),
]
Header = Annotated[
    list[str] | None,
    typer.Option(
        "--header", "-H", metavar="K=V", help="Text metadata. Repeatable.", show_default=False
    ),
]
Delay = Annotated[
    float, typer.Option("--delay", "-d", metavar="S", help="Deliver after S seconds.")
]


class Format(StrEnum):
    """How standard input is written."""

    JSONL = "jsonl"
    JSON = "json"


InputFormat = Annotated[
    Format,
    typer.Option("--format", "-f", help="The input: one object a line, or one document."),
]
File = Annotated[
    Path | None,
    typer.Option(
        "--file",
        "-F",
        metavar="PATH",
        help="Read this file instead.",
        show_default=False,
    ),
]
Stream = Annotated[
    bool, typer.Option("--stream", help="Publish each line as it comes, for endless input.")
]

# --- How to write ---------------------------------------------------------------------------------

Json = Annotated[bool, typer.Option("--json", help="Write JSON, one object a line.")]
MessageJson = Annotated[
    bool | None,
    typer.Option(
        "--json/--text", help="How to write.", show_default="text on a terminal, else JSON"
    ),
]

# --- The worker -----------------------------------------------------------------------------------

Concurrency = Annotated[
    int, typer.Option("--concurrency", "-c", metavar="N", min=1, help="Most handlers at a time.")
]
MaxAttempts = Annotated[
    int,
    typer.Option(
        "--max-attempts", metavar="N", min=1, help="Deliveries before a message is given up."
    ),
]
DeadLetterKey = Annotated[
    str | None,
    typer.Option(
        "--dead-letter-key",
        metavar="KEY",
        help="Where messages that are given up go, if the backend keeps no dead letters.",
        show_default=False,
    ),
]
DrainTimeout = Annotated[
    float,
    typer.Option(
        "--drain-timeout", metavar="S", help="Longest wait for handlers after the first signal."
    ),
]
LogLevel = Annotated[
    str,
    typer.Option("--log-level", metavar="LEVEL", help="DEBUG, INFO, WARNING, ERROR or CRITICAL."),
]
JsonLogs = Annotated[bool, typer.Option("--json-logs", help="Log one JSON object a line.")]
HealthFile = Annotated[
    Path | None,
    typer.Option(
        "--health-file",
        metavar="PATH",
        help="Renew this file every 5 seconds while the worker is well.",
        show_default=False,
    ),
]


# --- Values ---------------------------------------------------------------------------------------


def target(backend: str | None, env: Sequence[str] | None) -> Target:
    """Return which backend is meant; asks for values that were not given."""
    found = Variables()
    for text in env or ():
        name, equals, value = text.partition("=")
        if not (name.isascii() and name.isidentifier()):
            problem = "must look like NAME=VALUE, or NAME to be asked for the value"
            raise typer.BadParameter(problem, param_hint="--env")
        found[name] = value if equals else ask_secret(name)
    known.learn(found)
    return Target(backend, found)


def assignments(texts: Sequence[str] | None, option: str) -> dict[str, str]:
    """Return ``K=V`` texts as a dict."""
    found: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not (name and equals):
            # Not echoed: what stands there may be a secret.
            raise typer.BadParameter("must look like NAME=VALUE", param_hint=option)
        found[name] = value
    return found


def seconds(value: float, option: str) -> float:
    """Return a number of seconds."""
    if not (value >= 0 and math.isfinite(value)):
        raise typer.BadParameter("must be a number of seconds, 0 or more", param_hint=option)
    return value


def as_lines(json: bool | None) -> bool:
    """Whether messages are written as JSON."""
    return not writes_to_terminal() if json is None else json
