"""``abe run``: a handler as a production worker, drained by the first signal."""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import json
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import typer

from abe.backends.message_queue.base import MAX_HOLD, MessageContext, log
from abe.backends.message_queue.client import AsyncBackend, aconnect
from abe.backends.message_queue.consumer import AsyncLoopConsumer, RetryPolicy
from abe.backends.message_queue.handling.handlers import check_handler
from abe.backends.message_queue.loader import choose_backend
from abe.cli import options
from abe.cli.output import say
from abe.cli.session import Target, search_working_directory
from abe.display.text import did_you_mean
from abe.errors import ConfigurationError, UnsupportedError
from abe.logging import LoggingConfig, LogLevel, setup_logging_from_config
from abe.types import EventHandlerFunc, MessageQueueBackendProtocol

logger = logging.getLogger(__name__)

GRACE = 2.0
"""Seconds for releasing messages after the second signal."""
HEALTH_INTERVAL = 5.0
"""Seconds between two health checks."""

MakeConsumer = Callable[[MessageQueueBackendProtocol], AsyncLoopConsumer]


# --- The command ----------------------------------------------------------------------------------


def run(
    ctx: typer.Context,
    handler: Annotated[
        str, typer.Argument(metavar="MODULE:HANDLER", help="E.g. shop.orders:handle.")
    ],
    group: options.Group = None,
    keys: options.KeyFilters = None,
    concurrency: options.Concurrency = 1,
    max_attempts: options.MaxAttempts = 5,
    dead_letter_key: options.DeadLetterKey = None,
    drain_timeout: options.DrainTimeout = 30.0,
    health_file: options.HealthFile = None,
    log_level: options.Level = LogLevel.INFO,
    json_logs: options.JsonLogs = False,
    backend: options.BackendName = None,
    env: options.Env = None,
) -> None:
    """Handle messages until SIGTERM or SIGINT.

    HANDLER is a function, async or not, or an object with handle_event; the working directory is
    searched for MODULE. A message is acked when the handler returns and redelivered later when it
    raises. After the first signal running handlers may finish, for --drain-timeout at most; after
    the second all messages are released at once.

    Exit status: 0 after a clean drain; 1 if the stream failed or a handler was cut off; 128 plus
    the number of the signal after a second signal.
    """
    try:
        function = load_handler(handler)
    except HandlerError as error:
        ctx.fail(str(error))
    where = options.target(backend, env)
    provider = choose_backend(where.name, env=where.env).info.target
    _set_up_logging(log_level, json_logs, handler, provider)

    make = partial(
        AsyncLoopConsumer,
        group=group or None,
        keys=keys or None,
        concurrency=concurrency,
        retry=RetryPolicy(max_attempts=max_attempts),
        dead_letter_key=dead_letter_key,
        drain_timeout=drain_timeout,
    )
    raise typer.Exit(work(function, where, make, health_file))


def _set_up_logging(level: LogLevel, json_logs: bool, *modules: str) -> None:
    """Log to standard error, whatever the application's loggers are called.

    An application that has set up the root logger itself keeps its handlers and their format, but
    for those of the console where JSON is asked for.
    """
    packages = {name.partition(":")[0].partition(".")[0] for name in modules} - {"abe"}
    config = LoggingConfig(level=level, use_json_formatter=json_logs)
    config.logger_levels = dict.fromkeys(packages, level)
    for handler in logging.root.handlers[:]:
        handler.addFilter(MessageContext())
        if json_logs and type(handler) is logging.StreamHandler:
            logging.root.removeHandler(handler)
    if logging.root.handlers and not json_logs:
        config.enable_console, config.propagate = False, True
    else:
        # What drivers say in DEBUG is not for a worker's log, and may hold credentials.
        config.logger_levels["root"] = max(level, LogLevel.INFO, key=_number)
    try:
        setup_logging_from_config(config, MessageContext())
    except ImportError as error:
        raise ConfigurationError(f"--json-logs: {error}") from None


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level]


class HandlerError(Exception):
    """``MODULE:HANDLER`` does not name a handler."""


def load_handler(name: str) -> EventHandlerFunc:
    """Import a handler; the working directory is searched first."""
    module_name, colon, path = name.partition(":")
    if not (colon and module_name and path):
        raise HandlerError(f"{name!r} must look like MODULE:HANDLER, e.g. shop.orders:handle")
    where = search_working_directory()
    module = _module(module_name, where)
    try:
        return check_handler(attrgetter(path)(module), name)
    except AttributeError as error:
        hint = did_you_mean(error.name or "", dir(error.obj))
        raise HandlerError(f"{name}: there is no {error.name!r}{hint}") from None
    except TypeError as error:
        raise HandlerError(str(error)) from None


def _module(name: str, where: str) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise HandlerError(f"no module {error.name!r} is installed or in {where}") from None
        failure: Exception = error
    except Exception as error:
        failure = error
    text = traceback.format_exception_only(failure)[-1].strip()
    last = traceback.extract_tb(failure.__traceback__)[-1]
    where = f"{last.filename}:{last.lineno}"
    if isinstance(failure, SyntaxError):
        where = f"{failure.filename}:{failure.lineno}"
    raise ConfigurationError(f"importing {name} failed: {text} ({where})") from failure


# --- Life -----------------------------------------------------------------------------------------


class Drain:
    """Ends a worker: the first signal drains it, the second releases all, the third exits.

    It is the signal handler itself, because a handler of messages may block the event loop.

    Attributes:
        received: The signals so far.
        late: How many handlers were cut off.
        act: Called on the first signal with False, on the second with True, to hurry.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.late = 0
        self.act: Callable[[bool], object] = lambda hurry: None
        self._task: asyncio.Task[None] | None = None

    def __call__(self, signum: int, frame: object) -> None:  # noqa: D102
        self.received.append(signum)
        second, third = len(self.received) == 2, len(self.received) > 2
        if third:
            os._exit(128 + signum)
        if second:
            _exit_soon(128 + signum)
        self.act(second)

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Handle the signals that end a process."""
        names = ("SIGINT", "SIGTERM", "SIGBREAK")
        before = {
            it: signal.signal(it, self) for name in names if (it := getattr(signal, name, None))
        }
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def attach(self, consumer: AsyncLoopConsumer, fields: dict[str, Any]) -> None:
        """Drain this consumer, which the current task runs."""
        main, loop = asyncio.current_task(), asyncio.get_running_loop()
        # A signal arrives in the context of the running code. In that of a handler, shutdown()
        # would take the handler for its caller and not wait for it.
        here = contextvars.copy_context()

        def act(hurry: bool) -> None:
            if hurry and main is not None:
                main.cancel()
            elif self._task is None:
                self._task = loop.create_task(self._drain(consumer, fields), name="abe-drain")

        self.act = lambda hurry: loop.call_soon_threadsafe(act, hurry, context=here)
        if self.received:
            act(False)

    async def _drain(self, consumer: AsyncLoopConsumer, fields: dict[str, Any]) -> None:
        def count_late() -> None:
            self.late = consumer.in_flight

        log(logger, logging.INFO, "draining: %d in flight", consumer.in_flight, extra=fields)
        timer = asyncio.get_running_loop().call_later(consumer.drain_timeout, count_late)
        try:
            await consumer.shutdown()
        finally:
            timer.cancel()

    async def finished(self) -> None:
        """Wait for the drain, if it has begun."""
        if self._task is not None:
            await self._task


def work(handler: EventHandlerFunc, target: Target, make: MakeConsumer, health: Path | None) -> int:
    """Handle messages until a signal comes, and return the exit status.

    0 after a clean drain or at the end of a plain backend; 1 if handlers had to be cut
    off; 128 + the signal's number after a second one.
    """
    drain = Drain()

    async def main() -> None:
        async with target.open(aconnect) as backend:
            consumer = make(backend.backend)
            fields = {"backend": backend.name, "group": consumer.group}
            drain.attach(consumer, fields)
            async with Health(backend, consumer).shown_in(health):
                text = "consuming from backend %s, group %s"
                log(logger, logging.INFO, text, *fields.values(), extra=fields)
                await consumer.run(handler)
                await drain.finished()
            counters = (consumer.processed, consumer.failed, consumer.dead)
            text = "stopped: %d processed, %d failed, %d dead"
            log(logger, logging.INFO, text, *counters, extra=fields)
        if drain.late:
            patience = f"{consumer.drain_timeout:g} s"
            say(
                f"abe: {drain.late} of the handlers did not finish within {patience}; "
                "their messages will be redelivered"
            )
            _exit_soon(1)  # threads that still run must not keep the process alive

    with drain.on_signals():
        try:
            asyncio.run(main())
        except asyncio.CancelledError:
            return 128 + drain.received[-1]
    return 1 if drain.late else 0


def _exit_soon(status: int) -> None:
    """End the process in `GRACE` seconds, if it has not ended by itself."""
    timer = threading.Timer(GRACE, os._exit, (status,))
    timer.daemon = True
    timer.start()


class Health:
    """Tells whether the worker is healthy.

    Healthy means: this event loop runs, ``ping`` answers (where the backend has one), and a
    handler has finished within the last `MAX_HOLD` seconds if all are busy; after that no lease
    is extended.
    """

    def __init__(self, backend: AsyncBackend, consumer: AsyncLoopConsumer) -> None:
        self._backend = backend
        self._consumer = consumer
        self._finished = -1
        self._since = 0.0

    @asynccontextmanager
    async def shown_in(self, path: Path | None) -> AsyncIterator[None]:
        """Renew a file while the worker is healthy, and remove it in the end."""
        if path is None:
            yield
            return
        if not path.parent.is_dir():
            raise ConfigurationError(f"--health-file: folder {path.parent} does not exist")
        _remove(path)  # of an earlier worker
        task = asyncio.create_task(self._watch(path), name="abe-health")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            _remove(path)

    async def _watch(self, path: Path) -> None:
        known = ""
        while True:
            problem = await self._look(path)
            if problem and not known:
                log(logger, logging.WARNING, "unhealthy: %s", problem)
            elif known and not problem:
                log(logger, logging.INFO, "healthy again")
            known = problem
            await asyncio.sleep(HEALTH_INTERVAL)

    async def _look(self, path: Path) -> str:
        """Update the file, or return the reason why the worker is unhealthy."""
        if self._stalled(time.monotonic()):
            return f"no handler has finished for {MAX_HOLD:g} s"
        try:
            with suppress(UnsupportedError):
                await self._backend.ping()
            names = ("processed", "failed", "retried", "dead", "in_flight")
            counters = {name: getattr(self._consumer, name) for name in names}
            fresh = path.with_name(f".{path.name}.{os.getpid()}")
            fresh.write_text(f"{json.dumps(counters)}\n", encoding="utf-8")
            fresh.replace(path)
        except Exception as error:  # the next check may succeed
            return str(error) or type(error).__name__
        return ""

    def _stalled(self, now: float) -> bool:
        consumer = self._consumer
        finished = consumer.processed + consumer.failed
        if finished != self._finished or consumer.in_flight < consumer.concurrency:
            self._finished, self._since = finished, now
        return now - self._since > MAX_HOLD


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
