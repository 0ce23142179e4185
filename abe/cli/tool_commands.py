"""The commands that look at the installation, run a worker and help provider authors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from abe.backends.message_queue.client import AsyncBackend
from abe.backends.message_queue.consumer import AsyncLoopConsumer, RetryPolicy
from abe.backends.message_queue.loader import choose_backend, list_backends
from abe.cli.options import (
    BackendName,
    Concurrency,
    DeadLetterKey,
    DrainTimeout,
    Env,
    Group,
    HealthFile,
    Json,
    JsonLogs,
    KeyFilters,
    LogLevel,
    MaxAttempts,
    PingTimeout,
    seconds,
    target,
)
from abe.cli.output import emit_line, emit_table
from abe.display.lines import json_line
from abe.display.results import Backends
from abe.errors import AbeError, ConfigurationError

__all__ = ["COMMANDS"]


def backends(
    check: Annotated[
        bool, typer.Option("--check", help="Import each, to see which is broken or deprecated.")
    ] = False,
    json: Json = False,
) -> None:
    """List the installed backends.

    Also says which one is taken if none is named, and why.
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


def doctor(
    backend: BackendName = None,
    env: Env = None,
    timeout: PingTimeout = 5.0,
    json: Json = False,
) -> None:
    """Say what is installed and whether it works.

    That is: which Python, which abe, which backends, which one is selected and why, and whether
    its broker answers.

    Exit status: 0 if the selected backend answers, 1 if it does not.
    """
    from abe.cli.doctor import examine, show

    found = examine(target(backend, env), seconds(timeout, "--timeout"))
    show(found, as_lines=json)
    if found.problems:
        raise typer.Exit(1)


def run(
    ctx: typer.Context,
    handler: Annotated[
        str, typer.Argument(metavar="MODULE:HANDLER", help="E.g. shop.orders:handle.")
    ],
    group: Group = None,
    keys: KeyFilters = None,
    concurrency: Concurrency = 1,
    max_attempts: MaxAttempts = 5,
    dead_letter_key: DeadLetterKey = None,
    drain_timeout: DrainTimeout = 30.0,
    health_file: HealthFile = None,
    log_level: LogLevel = "INFO",
    json_logs: JsonLogs = False,
    backend: BackendName = None,
    env: Env = None,
) -> None:
    """Handle messages until SIGTERM or SIGINT.

    HANDLER is a function, async or not, or an object with handle_event; the working directory is
    searched for MODULE. Each message that it returns for is acked, each that it raises for comes
    again later. The first signal lets handlers in flight finish, for --drain-timeout at most; the
    second gives everything back at once.

    Exit status: 0 after a clean drain; 1 if the stream failed or a handler was cut off; 128 and
    the signal's number after a second signal.
    """
    from abe.cli import worker

    try:
        function = worker.load_handler(handler)
    except worker.HandlerError as error:
        ctx.fail(str(error))
    where = target(backend, env)
    provider = choose_backend(where.name, env=where.env).info.target
    _set_up_logging(log_level, json_logs, handler, provider)

    def make(q: AsyncBackend) -> AsyncLoopConsumer:
        return AsyncLoopConsumer(
            q.backend,
            group or None,
            keys=keys or None,
            concurrency=concurrency,
            retry=RetryPolicy(max_attempts=max_attempts),
            dead_letter_key=dead_letter_key,
            drain_timeout=seconds(drain_timeout, "--drain-timeout"),
        )

    status = worker.work(function, where, make, health_file)
    raise typer.Exit(status)


def _set_up_logging(level: str, json_logs: bool, *modules: str) -> None:
    """Log to standard error, the packages of the handler and of the backend included."""
    from abe.logging import LoggingConfig, LogLevel, setup_logging_from_config

    packages = {name.partition(":")[0].partition(".")[0] for name in modules}
    try:
        known = LogLevel.parse(level)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--log-level") from None
    config = LoggingConfig(level=known, use_json_formatter=json_logs)
    config.logger_levels = dict.fromkeys(packages - {"abe"}, known)
    try:
        setup_logging_from_config(config)
    except ImportError as error:
        raise ConfigurationError(f"--json-logs: {error}") from None


def contract(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="An installed backend, or MODULE:ATTRIBUTE, a class or a harness."
        ),
    ],
    select: Annotated[
        list[str] | None,
        typer.Option(
            "--select",
            "-s",
            metavar="PATTERN",
            help="Only cases whose name contains PATTERN or matches it. Repeatable.",
            show_default=False,
        ),
    ] = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Run the contract suite on a backend.

    It shows whether the backend does what its capabilities say. The working directory is searched
    for MODULE. In the values of --env {namespace} stands for what keeps the cases apart, {folder}
    for a temporary folder.

    Exit status: 0 if no case failed, 1 otherwise. In JSON each line is an object with case,
    obligation, outcome, reason and seconds.
    """
    from abe.cli.contract import prove

    if not prove(name, select or (), target(name, env).env, as_lines=json):
        raise typer.Exit(1)


def new_provider(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What QUEUE_BACKEND will call it, e.g. nats.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where to create the project.")
    ] = Path(),
) -> None:
    """Create the project of a new provider.

    The folder abe-backend-NAME is complete: a typed backend on a broker in memory, which you
    replace step by step by yours, and tests that pass, the contract suite among them. Nothing is
    overwritten.
    """
    from abe.cli.scaffold import create

    path = create(name, output)
    emit_line(f"created {path}")
    emit_line(f"next: read {path / 'README.md'}")


COMMANDS: Sequence[Callable[..., None]] = (
    backends,
    doctor,
    run,
    contract,
    new_provider,
)
