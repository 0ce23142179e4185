"""The options of the commands and the checks of their values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from abe._redact import Variables, known
from abe.cli.output import writes_to_terminal
from abe.cli.session import Target
from abe.display.prompt import ask_secret

__all__ = [
    "Action",
    "BackendName",
    "Check",
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
    "Header",
    "HealthFile",
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
    "Payload",
    "PeekNumber",
    "PingTimeout",
    "Quiet",
    "Select",
    "StatsGroup",
    "Stream",
    "Timeout",
    "Yes",
    "as_lines",
    "assignments",
    "seconds",
    "target",
]


def _option(
    *names: str,
    help: str,
    metavar: str = "",
    default: str | bool = True,
    complete: Callable[..., list[str]] | None = None,
) -> Any:
    """Return an option.

    Args:
        names: Its spellings.
        help: The text of ``--help``.
        metavar: Name of its value.
        default: Text of the default value; ``False`` shows none.
        complete: Completes its value.
    """
    return typer.Option(
        *names,
        help=help,
        metavar=metavar or None,
        show_default=default,
        autocompletion=complete,
    )


def _backend_names() -> list[str]:
    from abe.backends.message_queue.loader import list_backends

    return [info.name for info in list_backends()]


def _variable_names(ctx: typer.Context, incomplete: str) -> list[str]:
    from abe.backends.message_queue.loader import settings_of

    names = (f"{setting.name}=" for setting in settings_of(ctx.params.get("backend")))
    return [name for name in names if name.startswith(incomplete)]


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
    _option(
        *("--env", "-e"),
        metavar="K[=V]",
        help="Set a variable that configures the backend; K alone asks for its value. Repeatable.",
        default=False,
        complete=_variable_names,
    ),
]
PingTimeout = Annotated[
    float, _option("--timeout", "-t", metavar="S", help="Seconds to wait for the broker.")
]
Check = Annotated[bool, _option("--check", help="Import each, to find broken and deprecated ones.")]

# --- Which messages -------------------------------------------------------------------------------

_FILTER = "Only these keys; * matches one segment, a final ** one or more."
_MAXIMUM = "Maximum number of messages."

Group = Annotated[
    str | None,
    _option("--group", "-g", metavar="GROUP", help="The consumer group.", default="default group"),
]
StatsGroup = Annotated[
    str | None,
    _option(
        *("--group", "-g"),
        metavar="GROUP",
        help="Only this group; '' is the default group.",
        default="all groups",
    ),
]
Keys = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEYS", help=_FILTER, show_default="all keys"),
]
KeyFilters = Annotated[
    list[str] | None,
    _option("--keys", "-k", metavar="KEYS", help=f"{_FILTER} Repeatable.", default="all keys"),
]
Number = Annotated[
    int | None,
    typer.Option("--number", "-n", metavar="N", min=1, help=_MAXIMUM, show_default="10"),
]
PeekNumber = Annotated[int, typer.Option("--number", "-n", metavar="N", min=1, help=_MAXIMUM)]
DeadNumber = Annotated[
    int | None,
    typer.Option(
        *("--number", "-n"),
        metavar="N",
        min=1,
        help=_MAXIMUM,
        show_default="100 to list, all to replay",
    ),
]
Timeout = Annotated[
    float | None,
    _option("--timeout", "-t", metavar="S", help="Seconds to wait for a message.", default="5"),
]
Quiet = Annotated[
    float | None,
    _option(
        *("--quiet", "-q"),
        metavar="S",
        help="Seconds without a further message before it ends.",
        default="0.5",
    ),
]
Follow = Annotated[
    bool, _option("--follow", "-f", help="Continue until interrupted, or until -n, -t or -q.")
]
Ids = Annotated[
    list[str] | None,
    _option("--id", metavar="ID", help="Replay only this message. Repeatable.", default=False),
]


class Action(StrEnum):
    """What to do with dead letters."""

    LIST = "list"
    REPLAY = "replay"


DeadAction = Annotated[Action, typer.Argument(help="List them, or deliver them again.")]
Yes = Annotated[bool, _option("--yes", help="Confirm that messages are deleted.")]

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
    _option("--header", "-H", metavar="K=V", help="Text metadata. Repeatable.", default=False),
]
Delay = Annotated[
    float, _option("--delay", "-d", metavar="S", help="Seconds before delivery, at least.")
]


class Format(StrEnum):
    """How standard input is written."""

    JSONL = "jsonl"
    JSON = "json"


InputFormat = Annotated[
    Format, _option("--format", "-f", help="The input: one object a line, or one document.")
]
File = Annotated[
    Path | None,
    _option("--file", "-F", metavar="PATH", help="Read this file instead.", default=False),
]
Stream = Annotated[
    bool, _option("--stream", help="Publish each line as it arrives, for endless input.")
]

# --- How to write ---------------------------------------------------------------------------------

Json = Annotated[bool, _option("--json", help="Write JSON, one object a line.")]
MessageJson = Annotated[
    bool | None,
    _option("--json/--text", help="The output format.", default="text on a terminal, else JSON"),
]

# --- The worker -----------------------------------------------------------------------------------

Concurrency = Annotated[
    int,
    typer.Option(
        "--concurrency", "-c", metavar="N", min=1, help="Maximum number of concurrent handlers."
    ),
]
MaxAttempts = Annotated[
    int,
    typer.Option(
        "--max-attempts", metavar="N", min=1, help="Failures before a message is given up."
    ),
]
DeadLetterKey = Annotated[
    str | None,
    _option(
        "--dead-letter-key",
        metavar="KEY",
        help="Key for messages that are given up, if the backend keeps no dead letters.",
        default=False,
    ),
]
DrainTimeout = Annotated[
    float,
    _option(
        "--drain-timeout", metavar="S", help="Seconds for running handlers after the first signal."
    ),
]
LogLevel = Annotated[
    str, _option("--log-level", metavar="LEVEL", help="DEBUG, INFO, WARNING, ERROR or CRITICAL.")
]
JsonLogs = Annotated[bool, _option("--json-logs", help="Log one JSON object a line.")]
HealthFile = Annotated[
    Path | None,
    _option(
        "--health-file",
        metavar="PATH",
        help="Update this file every 5 seconds while the worker is healthy.",
        default=False,
    ),
]

# --- The contract ---------------------------------------------------------------------------------

Select = Annotated[
    list[str] | None,
    _option(
        *("--select", "-s"),
        metavar="PATTERN",
        help="Only cases whose name contains or matches PATTERN. Repeatable.",
        default=False,
    ),
]


# --- Values ---------------------------------------------------------------------------------------


def target(backend: str | None, env: Sequence[str] | None) -> Target:
    """Return the backend that the options name; asks for values that were not given."""
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
    """Return whether messages are written as JSON."""
    return not writes_to_terminal() if json is None else json
