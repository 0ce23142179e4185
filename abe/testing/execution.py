"""Running one case: in a thread and an event loop of its own, under a time limit, leaving nothing.

A thread, because a backend under test may block the event loop or ignore cancellation, and because
`asyncio.Runner` does not work where a loop is already running, as in a notebook.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import time
import traceback
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from abe.testing.case import Case
from abe.testing.context import CaseContext
from abe.testing.harness import Harness
from abe.testing.requirements import Skipped

__all__ = ["execute"]

GRACE = 1.0
"""Seconds, at least, for tasks and threads to end by themselves, and for a cancelled case to."""


def execute(case: Case, contract: object, harness: Harness) -> None:
    """Run ``case`` against a fresh namespace of ``harness``.

    Args:
        case: Which.
        contract: The instance of the contract class, for its sizes.
        harness: Makes the backend.

    Raises:
        Skipped: If the case does not apply.
        AssertionError: If the backend does not fulfil the obligation, or the time is up.
        Exception: Whatever else the backend raised.
    """
    __tracebackhide__ = True
    missing = [hook for hook in case.hooks if not harness.has(hook)]
    if missing:
        raise Skipped(f"harness has no {' and no '.join(missing)}")
    run = _Run(case, contract, harness)
    grace = max(GRACE, harness.patience / 2)
    before = _Resources()
    run.start(contextvars.copy_context())
    error = run.wait(case.limit * harness.patience + grace, grace)
    if error is None:
        left = before.left_behind(grace)
        if left:
            error = AssertionError(f"left behind after closing: {left}")
    if error is None:
        return
    if not isinstance(error, Skipped) and case.capabilities:
        error.add_note(f"capabilities tested here: {', '.join(case.capabilities)}")
    try:
        raise error
    finally:
        del error, run  # the traceback refers to this frame: a cycle that would keep streams alive


class _Run:
    """A case in its thread."""

    def __init__(self, case: Case, contract: object, harness: Harness) -> None:
        self._case = case
        self._harness = harness
        self._contract = contract
        self._context = CaseContext(case.needs, harness, f"c{uuid.uuid4().hex[:12]}")
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._error: BaseException | None = None
        self._background: list[BaseException] = []

    def start(self, context: contextvars.Context) -> None:
        self._thread = threading.Thread(
            target=context.run, args=(self._work,), name=f"abe-case-{self._case.id}", daemon=True
        )
        self._thread.start()

    def wait(self, limit: float, grace: float) -> BaseException | None:
        """Return how the case ended: ``None`` if it passed."""
        assert self._thread is not None
        try:
            self._thread.join(limit)
        except BaseException:
            self._cancel()
            self._thread.join(grace)
            raise
        if not self._thread.is_alive():
            return self._error
        where = self._stack()
        self._cancel()
        self._thread.join(grace)
        text = f"still running after {limit:g} s, waiting for {self._context.waiting_for}"
        if self._thread.is_alive():
            text += f", and it cannot be cancelled. It is at:\n{where}"
        return AssertionError(f"{text}; {self._context.account()}")

    def _cancel(self) -> None:
        if self._loop is not None and self._task is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._task.cancel)

    def _stack(self) -> str:
        assert self._thread is not None
        frame = sys._current_frames().get(self._thread.ident or 0)
        return "".join(traceback.format_stack(frame, limit=6)) if frame is not None else ""

    def _work(self) -> None:
        try:
            with asyncio.Runner() as runner:
                runner.run(self._main())
            if self._background:
                raise self._background[0]
        except BaseException as error:
            self._error = error

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._loop.set_exception_handler(self._unretrieved)
        context = self._context
        try:
            await context.start()
            await self._case.scenario(self._contract, context)
        except BaseException:
            with suppress(Exception):
                await context.close()
            raise
        await context.close()
        context.waiting_for = "the backend's tasks to end"
        await _no_tasks_left(max(GRACE, self._harness.patience / 2))

    def _unretrieved(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An error that no code has looked at is a defect of whoever started the task."""
        error = context.get("exception")
        if isinstance(error, Exception):
            error.add_note(f"nobody has handled this error: {context.get('message')}")
            self._background.append(error)


async def _no_tasks_left(grace: float) -> None:
    me = asyncio.current_task()
    tasks = {task for task in asyncio.all_tasks() if task is not me}
    if tasks:
        _, tasks = await asyncio.wait(tasks, timeout=grace)
    if tasks:
        names = ", ".join(sorted(f"{t.get_name()} ({t.get_coro()!r:.80})" for t in tasks))
        raise AssertionError(f"left behind after closing: {len(tasks)} tasks: {names}")


class _Resources:
    """The threads and sockets that existed before a case."""

    def __init__(self) -> None:
        self._threads = set(threading.enumerate())
        self._sockets = _sockets()

    def left_behind(self, grace: float) -> str:
        deadline = time.monotonic() + grace
        threads = set(threading.enumerate()) - self._threads
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        alive = sorted(thread.name for thread in threads if thread.is_alive())
        parts = [f"thread {name!r}" for name in alive]
        parts += [f"open socket {name}" for name in sorted(_sockets() - self._sockets)]
        return ", ".join(parts)


def _sockets() -> set[str]:
    """Name this process's open sockets, where the operating system tells them (Linux)."""
    found = set()
    folder = Path("/proc/self/fd")
    for link in folder.iterdir() if folder.is_dir() else ():
        with suppress(OSError):
            target = str(link.readlink())
            if target.startswith("socket:"):
                found.add(target)
    return found
