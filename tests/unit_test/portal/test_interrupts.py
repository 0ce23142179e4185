"""Interrupts and other signals during a call."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from abe.sync.portal.operation import Operation
from tests.unit_test.portal.support import LONG, double, interrupt, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from abe.sync.portal.thread import ThreadPortal


class Stubborn:
    """A coroutine that answers a cancellation with a result, when it is let go."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.cancelled = threading.Event()

    async def run(self) -> str:
        try:
            interrupt()
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            self.cancelled.set()
        await until(self.release.is_set)
        return "message"


def test_an_interrupt_cancels_and_waits_for_the_outcome(portal: ThreadPortal) -> None:
    """Nothing is left running, and the handler that was there is there again."""
    events: list[str] = []

    async def wait() -> None:
        interrupt()
        try:
            await asyncio.sleep(LONG)
        finally:
            await asyncio.sleep(0.01)
            events.append("cleaned up")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        portal.call(wait())
    assert events == ["cleaned up"]
    assert signal.getsignal(signal.SIGINT) is before
    assert portal.call(double(1)) == 2


def test_a_result_that_won_against_the_interrupt_is_kept(portal: ThreadPortal) -> None:
    """It is kept before anything that the caller starts next."""
    stubborn, kept = Stubborn(), list[str]()
    stubborn.release.set()
    with pytest.raises(KeyboardInterrupt):
        portal.call(stubborn.run(), keep=kept.append)

    async def look() -> list[str]:
        return list(kept)

    assert portal.call(look()) == ["message"]


def test_a_second_interrupt_returns_at_once_and_still_loses_nothing(portal: ThreadPortal) -> None:
    """The coroutine ends later, and its result is kept then."""
    stubborn, kept = Stubborn(), list[str]()

    def press_again() -> None:
        assert stubborn.cancelled.wait(LONG)
        interrupt()

    helper = threading.Thread(target=press_again)
    helper.start()
    with pytest.raises(KeyboardInterrupt):
        portal.call(stubborn.run(), keep=kept.append)
    helper.join()
    assert kept == []
    stubborn.release.set()
    portal.call(asyncio.wait_for(until(lambda: bool(kept)), LONG))
    assert kept == ["message"]


def test_a_result_is_kept_only_once(portal: ThreadPortal) -> None:
    """Also if its waiter leaves between the end of the task and the news of it."""
    kept: list[int] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        operation = Operation(double(1), kept.append, lambda: None)
        operation.start()
        await asyncio.sleep(0)  # the first of the two steps of double()
        loop.call_soon(operation.abandon)
        assert operation._task is not None
        await operation._task
        await asyncio.sleep(0)

    asyncio.run(main())
    assert kept == [2]


def test_a_cancellation_reaches_a_task_that_handles_a_timeout_of_its_own(
    portal: ThreadPortal,
) -> None:
    """Which has asked the task to cancel itself just before."""

    async def main() -> str:
        loop = asyncio.get_running_loop()
        rounds = 0

        async def patient() -> str:  # like a publisher while the broker is away
            nonlocal rounds
            while rounds < 20:
                rounds += 1
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(deadline := loop.time() + 0.01):
                        if rounds == 1:  # in the turn of the loop in which the time is over
                            loop.call_at(deadline, operation.cancel)
                        await asyncio.Event().wait()
            return "gave up by itself"

        ended = asyncio.Event()
        operation = Operation(patient(), None, ended.set)
        operation.start()
        await ended.wait()
        return operation.outcome()

    with pytest.raises(CancelledError):
        portal.call(main())


def test_a_handler_of_the_program_that_returns_leaves_the_call_alone(portal: ThreadPortal) -> None:
    """A service that sets a flag on Ctrl-C goes on waiting, as with any blocking call."""
    flags: list[int] = []
    with handler_for(signal.SIGINT, lambda number, frame: flags.append(number)):

        async def interrupted() -> str:
            interrupt()
            await asyncio.sleep(0.05)
            return "undisturbed"

        assert portal.call(interrupted()) == "undisturbed"
    assert flags == [signal.SIGINT]


def test_a_handler_of_the_program_decides_what_is_raised(portal: ThreadPortal) -> None:
    """Its exception arrives after the outcome, like `KeyboardInterrupt`."""

    class Stop(Exception):
        pass

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stop

    stubborn, kept = Stubborn(), list[str]()
    stubborn.release.set()
    with handler_for(signal.SIGINT, stop), pytest.raises(Stop):
        portal.call(stubborn.run(), keep=kept.append)
    portal.call(double(0))
    assert kept == ["message"]


def test_ignored_interrupts_stay_ignored(portal: ThreadPortal) -> None:
    """As in a child that its parent started with SIGINT ignored."""
    with handler_for(signal.SIGINT, signal.SIG_IGN):

        async def interrupted() -> str:
            interrupt()
            await asyncio.sleep(0.02)
            return "undisturbed"

        assert portal.call(interrupted()) == "undisturbed"


def test_another_signals_exception_comes_at_once_and_loses_nothing(portal: ThreadPortal) -> None:
    """E.g. a SIGALRM that enforces a time limit."""

    class Alarm(Exception):
        pass

    def ring(number: int, frame: FrameType | None) -> None:
        raise Alarm

    stubborn, kept = Stubborn(), list[str]()
    main = threading.main_thread().ident
    assert main is not None

    async def run() -> str:
        signal.pthread_kill(main, signal.SIGUSR1)
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            stubborn.cancelled.set()
        return "message"

    with handler_for(signal.SIGUSR1, ring), pytest.raises(Alarm):
        portal.call(run(), keep=kept.append)
    assert stubborn.cancelled.wait(LONG)
    portal.call(double(0))
    portal.call(double(0))
    assert kept == ["message"]


def test_an_interrupt_ends_a_call_made_inside_asyncio_run(portal: ThreadPortal) -> None:
    """asyncio's handler would only cancel a task of the loop that the call blocks."""
    started = time.monotonic()
    caught: list[str] = []

    async def main() -> None:
        async def wait() -> None:
            interrupt()
            await asyncio.sleep(LONG)

        try:
            portal.call(wait())
        except KeyboardInterrupt:
            caught.append("in the coroutine that called")

    asyncio.run(main())
    assert caught == ["in the coroutine that called"]
    assert time.monotonic() - started < LONG / 2


def test_an_interrupt_does_not_concern_other_threads(portal: ThreadPortal) -> None:
    """Only the main thread's call is cancelled."""
    go_on = threading.Event()

    async def quiet() -> str:
        await until(go_on.is_set)
        return "done"

    async def noisy() -> None:
        interrupt()
        await asyncio.sleep(LONG)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(portal.call, quiet())
        with pytest.raises(KeyboardInterrupt):
            portal.call(noisy())
        go_on.set()
        assert other.result(LONG) == "done"


def test_interrupt_main_is_noticed_too(portal: ThreadPortal) -> None:
    """It sets a flag without a real signal, which would not end a wait for a lock."""
    import _thread

    async def wait() -> None:
        _thread.interrupt_main()
        await asyncio.sleep(LONG)

    with pytest.raises(KeyboardInterrupt):
        portal.call(wait())


class handler_for:
    """Install a signal handler for the duration of a block."""

    def __init__(self, number: int, handler: Callable[[int, FrameType | None], Any] | int) -> None:
        self._number, self._handler = number, handler

    def __enter__(self) -> None:
        self._before = signal.signal(self._number, self._handler)

    def __exit__(self, *_: object) -> None:
        signal.signal(self._number, self._before)
