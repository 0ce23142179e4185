"""Open the backend of one command, and run the command on an event loop of its own."""

from __future__ import annotations

import asyncio
import signal
import sys
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from abe.backends.message_queue.client import AsyncBackend, aconnect
from abe.cli.report import warn

__all__ = [
    "Target",
    "Terminated",
    "open_backend",
    "run",
    "search_working_directory",
    "with_backend",
]

T = TypeVar("T")


class Terminated(Exception):
    """The command was ended by SIGTERM, after releasing its messages."""


@dataclass(frozen=True, slots=True)
class Target:
    """The backend of a command.

    Attributes:
        name: Its name; ``None`` chooses as `abe.load_backend` does.
        env: Variables that configure it.
    """

    name: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)


def search_working_directory() -> str:
    """Have modules found in the working directory, before others, and return it."""
    where = str(Path.cwd())
    if where not in sys.path:
        sys.path.insert(0, where)
    return where


def open_backend(target: Target) -> AsyncBackend:
    """Create the backend; its warnings are printed in one line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        backend = aconnect(target.name, env=target.env or None)
    for warning in caught:
        if issubclass(warning.category, UserWarning | FutureWarning):
            warn(str(warning.message))
    return backend


def with_backend(target: Target | AsyncBackend, work: Callable[[AsyncBackend], Awaitable[T]]) -> T:
    """Open the backend, do the work and close the backend, whatever happens.

    Raises:
        KeyboardInterrupt: After Ctrl-C, once its messages are released.
        Terminated: After SIGTERM, likewise.
    """

    async def main() -> T:
        opened = open_backend(target) if isinstance(target, Target) else target
        async with opened as backend:
            return await work(backend)

    return run(main())


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that SIGINT and SIGTERM cancel."""
    with asyncio.Runner() as runner:
        return runner.run(_cancelled_by_sigterm(main))


async def _cancelled_by_sigterm(main: Coroutine[Any, Any, T]) -> T:
    task = asyncio.current_task()
    assert task is not None
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        task.cancel()

    # Only a main thread gets signals, and Windows has no SIGTERM to speak of.
    with suppress(NotImplementedError, RuntimeError, ValueError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
    try:
        return await main
    except asyncio.CancelledError:
        if terminated:
            raise Terminated from None
        raise
