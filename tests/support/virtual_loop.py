"""An event loop on a virtual clock: what is scheduled happens in order, and at once."""

from __future__ import annotations

import asyncio
import gc
import selectors
import sys
from collections.abc import Coroutine, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from abe.backends.message_queue.base.subscription import subscription as engine

T = TypeVar("T")

START = 1000.0
PATIENCE = 5.0
"""Real seconds to wait for another thread when nothing else can happen."""
END_OF_TIME = START + 1_000_000.0
MAX_TURNS = 100_000
"""Turns of the loop in which no time passes."""


class Deadlock(Exception):
    """Nothing will ever happen any more."""


class _Selector(selectors.DefaultSelector):
    """Lets virtual time pass instead of waiting."""

    loop: VirtualLoop
    turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        self.turns += 1
        if self.turns > MAX_TURNS:
            raise Deadlock("busy for ever")
        if ready or (timeout is not None and timeout <= 0):
            return ready
        self.turns = 0
        if timeout is not None:
            self.loop.pass_time(timeout)
            return ready
        ready = super().select(PATIENCE)
        if not ready:
            raise Deadlock("nothing is scheduled")
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer as soon as nothing else is to be done.

    Args:
        eager: Whether tasks begin at once, as `asyncio.eager_task_factory` lets them.
    """

    def __init__(self, *, eager: bool = False) -> None:
        self.now = START
        self.problems: list[str] = []
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)
        self.set_exception_handler(self._note)
        if eager and sys.version_info >= (3, 12):
            self.set_task_factory(asyncio.eager_task_factory)

    def time(self) -> float:
        return self.now

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        if self.now > END_OF_TIME:
            raise Deadlock("waiting for ever")

    def timers(self) -> list[asyncio.TimerHandle]:
        """Timers that would still fire."""
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return [timer for timer in scheduled if not timer.cancelled()]

    def _note(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.problems.append(f"{context['message']}: {context.get('exception')!r}")


@dataclass
class VirtualRun:
    """Runs a coroutine as `asyncio.run` does, on a `VirtualLoop`, and checks what it leaves."""

    eager: bool = False

    def __call__(self, main: Coroutine[Any, Any, T], *, debug: bool = True, tidy: bool = True) -> T:
        """Run ``main``.

        Args:
            main: The test.
            debug: Whether the loop is in debug mode.
            tidy: Whether it must have ended every task and timer by itself.
        """
        new_loop = partial(VirtualLoop, eager=self.eager)
        with asyncio.Runner(loop_factory=new_loop, debug=debug) as runner:
            loop = runner.get_loop()
            assert isinstance(loop, VirtualLoop)
            result = runner.run(self._checked(main, loop) if tidy else main)
        gc.collect(1)  # the young ones: a full collection takes longer than most tests
        assert loop.problems == []
        assert not [e for e in engine._live if e.loop is loop], "an engine outlived its loop"
        return result

    async def _checked(self, main: Coroutine[Any, Any, T], loop: VirtualLoop) -> T:
        result = await main
        for _ in range(3):
            await asyncio.sleep(0)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        assert not tasks, f"left behind: {tasks}"
        assert not loop.timers(), f"left behind: {loop.timers()}"
        return result


class Interrupted:
    """Awaits a coroutine and cancels the task at its ``k``-th suspension.

    Args:
        main: The coroutine.
        k: At which suspension, from 1.
        late: Cancel when what the task waits for is already there, not at once.
    """

    def __init__(self, main: Coroutine[Any, Any, Any], k: int, *, late: bool = False) -> None:
        self._main = main
        self._k = k
        self._late = late
        self.suspensions = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        thrown: list[BaseException] = []  # emptied, so that no frame refers to its own traceback
        while True:
            try:
                waiting = self._main.throw(thrown.pop()) if thrown else self._main.send(None)
            except StopIteration as end:
                return end.value
            self.suspensions += 1
            if self.suspensions == self._k:
                self._cancel(waiting)
            try:
                yield waiting
            except BaseException as error:
                thrown.append(error)

    def _cancel(self, waiting: object) -> None:
        # Not in __await__: its frame must not refer to the task, whose traceback refers to it.
        task = asyncio.current_task()
        assert task is not None
        if self._late and isinstance(waiting, asyncio.Future):
            waiting.add_done_callback(lambda _: task.cancel())
        else:
            task.cancel()
