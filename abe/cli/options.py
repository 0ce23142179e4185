"""The options of the commands, as typer reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from abe._redact import known
from abe.backends.message_queue.loader import list_backends, settings_of
from abe.cli.output import writes_to_terminal
from abe.cli.session import Target
from abe.display import options as shared
from abe.display.options import Option
from abe.display.prompt import ask_missing
from abe.logging import LogLevel


def _option(option: Option, complete: Callable[..., list[str]] | None = None) -> Any:
    def parse(value: Any) -> Any:
        try:
            return option.convert(value) if isinstance(value, str) else value
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return typer.Option(
        *filter(None, (option.long, option.short)),
        help=option.help,
        metavar=option.metavar or None,
        show_default=option.default or False,
        parser=parse if option.metavar else None,
        autocompletion=complete,
    )


def _backend_names() -> list[str]:
    return [info.name for info in list_backends()]


def _variable_names(ctx: typer.Context, incomplete: str) -> list[str]:
    names = (f"{setting.name}=" for setting in settings_of(ctx.params.get("backend")))
    return [name for name in names if name.startswith(incomplete)]


_BACKEND = Option(
    "--backend", "-b", "NAME", "The backend; without it QUEUE_BACKEND decides, see 'abe backends'."
)
BackendName = Annotated[str | None, _option(_BACKEND, _backend_names)]
Env = Annotated[list[Any] | None, _option(shared.ENV, _variable_names)]
_PING = Option("--timeout", "-t", "S", "Seconds to wait for the broker.", shared.seconds, "5")
PingTimeout = Annotated[float, _option(_PING)]
Check = Annotated[bool, _option(shared.CHECK)]

# --- Which messages -------------------------------------------------------------------------------

Group = Annotated[str | None, _option(shared.GROUP)]
SomeGroup = Annotated[str | None, _option(shared.SOME_GROUP)]
Keys = Annotated[
    list[str] | None, typer.Argument(metavar="KEYS", help=shared.KEYS, show_default="all keys")
]
_KEYS = Option("--keys", "-k", "KEYS", shared.KEYS, default="all keys", repeat=True)
KeyFilters = Annotated[list[str] | None, _option(_KEYS)]
Number = Annotated[int | None, _option(shared.NUMBER)]
DeadNumber = Annotated[int | None, _option(shared.DEAD_NUMBER)]
_FIRST = Option("--timeout", "-t", "S", "Seconds to wait for a message.", shared.seconds, "5")
Timeout = Annotated[float | None, _option(_FIRST)]
Quiet = Annotated[float | None, _option(shared.QUIET)]
_FOLLOW = Option("--follow", "-f", does="Continue until interrupted, or until -n, -t or -q.")
Follow = Annotated[bool, _option(_FOLLOW)]
Ids = Annotated[list[str] | None, _option(shared.ID)]
DeadAction = Annotated[
    Literal["list", "replay"], typer.Argument(help="List them, or deliver them again.")
]
Yes = Annotated[bool, _option(shared.YES)]

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
Header = Annotated[list[Any] | None, _option(shared.HEADER)]
Delay = Annotated[float, _option(shared.DELAY)]
InputFormat = Annotated[
    Literal["jsonl", "json"],
    typer.Option("--format", "-f", help="The input: one object a line, or one document."),
]
_FILE = Option("--file", "-F", "PATH", "Read this file instead.", Path)
File = Annotated[Path | None, _option(_FILE)]
_STREAM = Option("--stream", does="Publish each line as it arrives, for endless input.")
Stream = Annotated[bool, _option(_STREAM)]

# --- How to write ---------------------------------------------------------------------------------

Json = Annotated[bool, _option(Option("--json", does="Write JSON, one object a line."))]
MessageJson = Annotated[
    bool | None,
    _option(
        Option("--json/--text", does="The output format.", default="text on a terminal, else JSON")
    ),
]

# --- The worker and the contract ------------------------------------------------------------------

Concurrency = Annotated[int, _option(shared.CONCURRENCY)]
MaxAttempts = Annotated[int, _option(shared.MAX_ATTEMPTS)]
_DEAD_LETTER_KEY = Option(
    *("--dead-letter-key", "", "KEY"),
    "Key for messages that are given up, if the backend keeps no dead letters.",
)
DeadLetterKey = Annotated[str | None, _option(_DEAD_LETTER_KEY)]
_DRAIN = Option(
    *("--drain-timeout", "", "S"),
    "Seconds for running handlers after the first signal.",
    shared.seconds,
    "30",
)
DrainTimeout = Annotated[float, _option(_DRAIN)]
_LOG_LEVEL = Option(
    "--log-level", "", "LEVEL", "DEBUG, INFO, WARNING, ERROR or CRITICAL.", LogLevel.parse, "INFO"
)
Level = Annotated[LogLevel, _option(_LOG_LEVEL)]
JsonLogs = Annotated[bool, _option(Option("--json-logs", does="Log one JSON object a line."))]
_HEALTH_FILE = Option(
    *("--health-file", "", "PATH"),
    "Update this file every 5 seconds while the worker is healthy.",
    Path,
)
HealthFile = Annotated[Path | None, _option(_HEALTH_FILE)]
Select = Annotated[list[str] | None, _option(shared.SELECT)]


def target(backend: str | None, env: list[tuple[str, str | None]] | None) -> Target:
    """Return the backend that the options name; asks for values that were not given."""
    found = ask_missing(env or ())
    known.learn(found)
    return Target(backend, found)


def as_lines(json: bool | None) -> bool:
    """Return whether messages are written as JSON."""
    return not writes_to_terminal() if json is None else json
