"""``abe run``: a handler as a production worker, drained by the first signal."""

from __future__ import annotations

import asyncio
import contextvars
import difflib
import importlib
import json
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, cast

import typer

from abe.backends.message_queue.base import MAX_HOLD
from abe.backends.message_queue.client import AsyncBackend
from abe.backends.message_queue.consumer import AsyncLoopConsumer, RetryPolicy
from abe.backends.message_queue.handling.handlers import check_handler
from abe.backends.message_queue.loader import choose_backend
from abe.cli import options
from abe.cli.report import report
from abe.cli.session import Target, open_backend, search_working_directory
from abe.errors import ConfigurationError
from abe.types import EventHandlerFunc

__all__ = ["HandlerError", "Health", "load_handler", "run", "work"]

logger = logging.getLogger(__name__)

GRACE = 2.0
"""Seconds for releasing messages after the second signal."""
HEALTH_INTERVAL = 5.0
"""Seconds between two health checks."""

MakeConsumer = Callable[[AsyncBackend], AsyncLoopConsumer]


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
    log_level: options.LogLevel = "INFO",
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

    def make(q: AsyncBackend) -> AsyncLoopConsumer:
        return AsyncLoopConsumer(
            q.backend,
            group or None,
            keys=keys or None,
            concurrency=concurrency,
            retry=RetryPolicy(max_attempts=max_attempts),
            dead_letter_key=dead_letter_key,
            drain_timeout=options.seconds(drain_timeout, "--drain-timeout"),
        )

    status = work(function, where, make, health_file)
    raise typer.Exit(status)


def _set_up_logging(level: str, json_logs: bool, *modules: str) -> None:
    """Log to standard error, whatever the application's loggers are called.

    An application that has set up the root logger itself keeps its handlers and their format, but
    for those of the console where JSON is asked for.
    """
    from abe.backends.message_queue.base import MessageContext
    from abe.logging import LoggingConfig, LogLevel, setup_logging_from_config

    try:
        known = LogLevel.parse(level)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--log-level") from None
    packages = {name.partition(":")[0].partition(".")[0] for name in modules} - {"abe"}
    config = LoggingConfig(level=known, use_json_formatter=json_logs)
    config.logger_levels = dict.fromkeys(packages, known)
    for handler in logging.root.handlers[:]:
        handler.addFilter(MessageContext())
        if json_logs and type(handler) is logging.StreamHandler:
            logging.root.removeHandler(handler)
    if logging.root.handlers and not json_logs:
        config.enable_console, config.propagate = False, True
    else:
        # What drivers say in DEBUG is not for a worker's log, and may hold credentials.
        config.logger_levels["root"] = max(known, LogLevel.INFO, key=_number)
    try:
        setup_logging_from_config(config, MessageContext())
    except ImportError as error:
        raise ConfigurationError(f"--json-logs: {error}") from None


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level]


class HandlerError(Exception):
    """``MODULE:HANDLER`` does not name a handler."""


def load_handler(name: str) -> EventHandlerFunc:
    """Import a handler; the working directory is searched first.

    Raises:
        HandlerError: If nothing of that name exists, or it is not a handler.
        ConfigurationError: If importing its module fails.
    """
    module_name, colon, path = name.partition(":")
    if not (colon and module_name and path):
        raise HandlerError(f"{name!r} must look like MODULE:HANDLER, e.g. shop.orders:handle")
    where = search_working_directory()
    found = _attribute(_module(module_name, where), path, name)
    try:
        check_handler(found, name)
    except TypeError as error:
        raise HandlerError(str(error)) from None
    return cast(EventHandlerFunc, found)


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
    raise ConfigurationError(f"importing {name} failed: {text} ({_location(failure)})") from failure


def _location(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}:{last.lineno}"


def _attribute(module: object, path: str, name: str) -> object:
    found = module
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            public = [it for it in dir(found) if not it.startswith("_")]
            near = difflib.get_close_matches(part, public, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            owner = name.removesuffix(part).rstrip(".:")
            raise HandlerError(f"{owner} has no {part!r}{hint}") from None
    return found


# --- Life -----------------------------------------------------------------------------------------


@dataclass
class Stop:
    """The signal handler of the worker: it counts and escalates.

    Attributes:
        signals: Number of signals received.
        last: The last one.
        on_first: Called on the first: drain.
        on_second: Called on the second: release everything.
    """

    signals: int = 0
    last: int = 0
    on_first: Callable[[], object] = lambda: None
    on_second: Callable[[], object] = lambda: None

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        # Not through the event loop alone, which a handler may block.
        self.signals += 1
        self.last = signum
        if self.signals == 1:
            self.on_first()
        elif self.signals == 2:
            _exit_soon(128 + signum)
            self.on_second()
        else:
            os._exit(128 + signum)


@contextmanager
def _signals(stop: Stop) -> Iterator[None]:
    before = {}
    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
        if hasattr(signal, name):
            signum = getattr(signal, name)
            before[signum] = signal.signal(signum, stop)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def work(handler: EventHandlerFunc, target: Target, make: MakeConsumer, health: Path | None) -> int:
    """Handle messages until a signal comes, and return the exit status.

    0 after a clean drain or at the end of a plain backend; 1 if handlers had to be cut
    off; 128 + the signal's number after a second one.

    Raises:
        AbeError: If the stream failed permanently.
    """
    stop = Stop()
    with _signals(stop), asyncio.Runner() as runner:
        try:
            return runner.run(_work(handler, target, make, health, stop))
        except asyncio.CancelledError:
            return 128 + stop.last


async def _work(
    handler: EventHandlerFunc, target: Target, make: MakeConsumer, health: Path | None, stop: Stop
) -> int:
    async with open_backend(target) as backend:
        consumer = make(backend)
        fields = {"backend": backend.name, "group": consumer.group}
        drain = Drain(consumer, stop, fields)
        watch = Health(backend, consumer, health)
        watch.start()
        logger.info("consuming from backend %s, group %s", *fields.values(), extra=fields)
        try:
            await consumer.run(handler)
            await drain.finished()
        finally:
            await watch.stop()
        return drain.status()


class Drain:
    """Shuts the consumer down when the first signal comes.

    Args:
        consumer: The consumer.
        stop: The signal handler.
        fields: Fields of the log records.
    """

    def __init__(self, consumer: AsyncLoopConsumer, stop: Stop, fields: dict[str, Any]) -> None:
        self._consumer = consumer
        self._fields = fields
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._late = 0
        main = asyncio.current_task()
        assert main is not None
        # A signal arrives in the context of the running code. In that of a handler, shutdown()
        # would take the handler for its caller and not wait for it.
        here = contextvars.copy_context()
        stop.on_first = lambda: self._loop.call_soon_threadsafe(self._begin, context=here)
        stop.on_second = lambda: self._loop.call_soon_threadsafe(main.cancel)
        if stop.signals:
            self._begin()

    def _begin(self) -> None:
        if self._task is None:
            self._task = self._loop.create_task(self._drain(), name="abe-drain")

    async def _drain(self) -> None:
        consumer = self._consumer
        logger.info("draining: %d in flight", consumer.in_flight, extra=self._fields)
        timer = self._loop.call_later(consumer.drain_timeout, self._count_late)
        try:
            await consumer.shutdown()
        finally:
            timer.cancel()

    def _count_late(self) -> None:
        self._late = self._consumer.in_flight

    async def finished(self) -> None:
        """Wait for the drain, if it has begun."""
        if self._task is not None:
            await self._task

    def status(self) -> int:
        """Log the counters and return the exit status."""
        consumer = self._consumer
        counters = (consumer.processed, consumer.failed, consumer.dead)
        text = "stopped: %d processed, %d failed, %d dead"
        logger.info(text, *counters, extra=self._fields)
        if not self._late:
            return 0
        report(
            f"{self._late} of the handlers did not finish within {consumer.drain_timeout:g} s; "
            "their messages will be redelivered"
        )
        # Threads that still run must not keep the process alive.
        _exit_soon(1)
        return 1


def _exit_soon(status: int) -> None:
    """End the process in `GRACE` seconds, if it has not ended by itself."""
    timer = threading.Timer(GRACE, os._exit, (status,))
    timer.daemon = True
    timer.start()


class Health:
    """Updates a file while the worker is healthy.

    Healthy means: this event loop runs, ``ping`` answers (where the backend has one), and a
    handler has finished within the last `MAX_HOLD` seconds if all are busy; after that no lease
    is extended.

    Args:
        backend: The backend to ping.
        consumer: The consumer of the handlers.
        path: The file; ``None`` for no file.
    """

    def __init__(
        self, backend: AsyncBackend, consumer: AsyncLoopConsumer, path: Path | None
    ) -> None:
        self._backend = backend
        self._consumer = consumer
        self._path = path
        self._task: asyncio.Task[None] | None = None
        self._finished = -1
        self._since = 0.0

    def start(self) -> None:
        """Start the checks, after removing the file of an earlier worker.

        Raises:
            ConfigurationError: If the folder of the file does not exist.
        """
        if self._path is None:
            return
        if not self._path.parent.is_dir():
            raise ConfigurationError(f"--health-file: folder {self._path.parent} does not exist")
        self._remove()
        self._task = asyncio.create_task(self._watch(self._path), name="abe-health")

    async def stop(self) -> None:
        """End the checks and remove the file."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._remove()

    async def _watch(self, path: Path) -> None:
        known = ""
        while True:
            problem = await self._look(path)
            if problem and not known:
                logger.warning("unhealthy: %s", problem)
            elif known and not problem:
                logger.info("healthy again")
            known = problem
            await asyncio.sleep(HEALTH_INTERVAL)

    async def _look(self, path: Path) -> str:
        """Update the file, or return the reason why the worker is unhealthy."""
        if self._stalled(time.monotonic()):
            return f"no handler has finished for {MAX_HOLD:g} s"
        try:
            if hasattr(self._backend.backend, "ping"):
                await self._backend.ping()
            _touch(path, self._counters())
        except Exception as error:  # the next check may succeed
            return str(error) or type(error).__name__
        return ""

    def _stalled(self, now: float) -> bool:
        consumer = self._consumer
        finished = consumer.processed + consumer.failed
        if finished != self._finished or consumer.in_flight < consumer.concurrency:
            self._finished, self._since = finished, now
        return now - self._since > MAX_HOLD

    def _counters(self) -> dict[str, int]:
        names = ("processed", "failed", "retried", "dead", "in_flight")
        return {name: getattr(self._consumer, name) for name in names}

    def _remove(self) -> None:
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink()


def _touch(path: Path, counters: dict[str, int]) -> None:
    """Replace the file atomically."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(f"{json.dumps(counters)}\n", encoding="utf-8")
    fresh.replace(path)
