"""The background event loop: blocking calls, interrupts, forks, exit."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from types import FrameType
from typing import Any, TypeVar

import pytest

from abe.errors import BackendClosedError, ConnectionLostError, LoopError
from abe.sync.portal import get_portal
from abe.sync.portal.operation import Operation
from abe.sync.portal.thread import ThreadPortal

T = TypeVar("T")

LONG = 30.0


@pytest.fixture
def portal() -> Iterator[ThreadPortal]:
    """Another portal than the process's own, closed after the test."""
    portal = ThreadPortal()
    yield portal
    portal.close(grace=1.0)


def interrupt() -> None:
    """Press Ctrl-C, from any thread."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


def run_python(
    script: str, *, code: int = 0, stderr: str = "", options: tuple[str, ...] = ()
) -> str:
    """Run a script in a fresh interpreter where every warning is an error; return its output."""
    # Python 3.12 warns of every fork of a process that has threads.
    allowed = ("-W", "ignore:This process:DeprecationWarning")
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", *allowed, *options, "-c", dedent(script)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert stderr in done.stderr
    if not stderr:
        assert done.stderr == ""
    assert done.returncode == code, done.stderr
    return done.stdout


def dedent(script: str) -> str:
    head = """
        import asyncio, os, signal, sys, threading, time
        from abe.sync.portal import get_portal
    """
    return textwrap.dedent(head) + textwrap.dedent(script)


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return number * 2


async def fail() -> None:
    raise ValueError("on the portal")


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - set by another thread
        await asyncio.sleep(0.001)


# -- calling -------------------------------------------------------------------------------


def test_a_call_returns_the_result_and_raises_the_error(portal: ThreadPortal) -> None:
    """The simplest use."""
    assert portal.call(double(21)) == 42
    with pytest.raises(ValueError, match="on the portal"):
        portal.call(fail())


def test_there_is_one_portal_in_a_process() -> None:
    """Threads that ask at the same time get the same one."""
    with ThreadPoolExecutor(8) as pool:
        portals = set(pool.map(lambda _: get_portal(), range(64)))
    assert len(portals) == 1
    assert portals.pop().call(double(1)) == 2


def test_calls_from_many_threads_are_independent(portal: ThreadPortal) -> None:
    """Fifty threads at once get their own results."""
    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(lambda n: portal.call(double(n)), range(1000))) == [
            n * 2 for n in range(1000)
        ]


def test_a_call_works_under_a_running_event_loop(portal: ThreadPortal) -> None:
    """As in a notebook cell, or in code called by a coroutine."""

    async def main() -> int:
        return portal.call(double(4))

    assert asyncio.run(main()) == 8


def test_context_variables_are_seen_and_not_changed(portal: ThreadPortal) -> None:
    """So output of a background task goes to the cell that started it."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    variable.set("caller")

    async def change() -> str:
        seen = variable.get()
        variable.set("portal")
        return seen

    assert portal.call(change()) == "caller"
    assert variable.get() == "caller"
    assert portal.submit(change()).result(LONG) == "caller"


def test_blocking_work_on_the_portal_runs_in_threads_that_are_reused(portal: ThreadPortal) -> None:
    """As many as are needed at a time, daemons all of them."""
    together = threading.Barrier(20)

    def meet() -> tuple[int, bool]:
        together.wait(LONG)
        return threading.get_ident(), threading.current_thread().daemon

    async def crowd() -> set[tuple[int, bool]]:
        return set(await asyncio.gather(*(asyncio.to_thread(meet) for _ in range(20))))

    first, second = portal.call(crowd()), portal.call(crowd())
    assert len(first) == 20
    # A thread may hand over its result a moment before it is free again.
    assert len(first | second) < 30
    assert all(daemon for _, daemon in first)


def test_blocking_work_may_fail_or_be_cancelled(portal: ThreadPortal) -> None:
    """The error reaches whoever awaits; the thread goes on."""

    def fail_in_thread() -> None:
        raise ValueError("in a thread")

    with pytest.raises(ValueError, match="in a thread"):
        portal.call(asyncio.to_thread(fail_in_thread))
    go_on = threading.Event()
    with pytest.raises(TimeoutError):
        portal.call(asyncio.wait_for(asyncio.to_thread(go_on.wait, LONG), 0.01))
    go_on.set()
    assert portal.call(asyncio.to_thread(lambda: 42)) == 42


def test_a_call_on_its_own_thread_raises_instead_of_waiting_for_ever(portal: ThreadPortal) -> None:
    """From a coroutine and from a plain callback."""
    seen: list[BaseException] = []

    def attempt() -> None:
        try:
            portal.call(double(1))
        except LoopError as error:
            seen.append(error)

    async def nested() -> None:
        attempt()

    portal.call(nested())
    called = threading.Event()
    portal.post(attempt)
    portal.post(called.set)
    assert called.wait(LONG)
    assert len(seen) == 2
    assert "q.aio.publish" in str(seen[0])


def test_what_a_coroutine_raises_beside_exceptions_does_not_end_the_portal(
    portal: ThreadPortal,
) -> None:
    """`sys.exit` in a handler must not take every other backend with it."""

    async def leave(error: BaseException) -> None:
        raise error

    for error in (SystemExit(3), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            portal.call(leave(error))
    assert portal.call(double(3)) == 6


def test_somebody_elses_cancellation_is_an_error_of_threads(portal: ThreadPortal) -> None:
    """asyncio's own would look like a cancellation of the caller's task."""

    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(CancelledError):
        portal.call(cancelled())


def test_the_traceback_shows_the_caller_and_the_cause(portal: ThreadPortal) -> None:
    """And nothing of `concurrent.futures`; the portal's own frames are marked as hidden."""
    with pytest.raises(ValueError, match="on the portal") as caught:
        portal.call(fail())
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert frames[0].name == "test_the_traceback_shows_the_caller_and_the_cause"
    assert frames[-1].name == "fail"
    assert not any("concurrent" in frame.filename for frame in frames)
    shown = [e for e in caught.traceback if not e.frame.f_locals.get("__tracebackhide__")]
    assert [entry.name for entry in shown] == [frames[0].name, "fail"]


# -- interrupts ----------------------------------------------------------------------------


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


# -- from event loops ----------------------------------------------------------------------


def test_a_coroutine_is_awaited_from_any_loop(portal: ThreadPortal) -> None:
    """Results and errors arrive; on the portal itself it is simply awaited."""

    async def main() -> None:
        assert await portal.bridge(double(5)) == 10
        with pytest.raises(ValueError, match="on the portal"):
            await portal.bridge(fail())

    asyncio.run(main())
    portal.call(main())


def test_a_cancelled_await_waits_for_the_outcome_and_keeps_it(portal: ThreadPortal) -> None:
    """As with an interrupt, a message that had arrived is not lost."""
    kept: list[str] = []
    started = threading.Event()

    async def answer() -> str:
        started.set()
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
        return "message"

    async def main() -> None:
        task = asyncio.create_task(portal.bridge(answer(), keep=kept.append))
        await asyncio.to_thread(started.wait, LONG)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await portal.bridge(double(0))
        assert kept == ["message"]

    asyncio.run(main())


def test_a_second_cancellation_does_not_wait(portal: ThreadPortal) -> None:
    """And the result is kept once it comes."""
    kept: list[str] = []
    cancelled, release = threading.Event(), threading.Event()

    async def answer() -> str:
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            cancelled.set()
        await until(release.is_set)
        return "message"

    async def main() -> None:
        task = asyncio.create_task(portal.bridge(answer(), keep=kept.append))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.to_thread(cancelled.wait, LONG)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert kept == []
        release.set()
        while not kept:
            await portal.bridge(double(0))

    asyncio.run(main())
    assert kept == ["message"]


def test_a_timeout_around_an_await_works(portal: ThreadPortal) -> None:
    """`asyncio.timeout` cancels, which reaches the portal."""

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await portal.bridge(asyncio.sleep(LONG))

    asyncio.run(main())


def test_a_callback_that_did_not_wake_its_loop_runs_soon(portal: ThreadPortal) -> None:
    """ipykernel's interrupt of an idle cell is such a callback (ipykernel#881)."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(portal.bridge(asyncio.sleep(LONG)))
        await asyncio.sleep(0)
        threading.Timer(0.05, lambda: loop.call_soon(task.cancel)).start()
        started = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - started

    assert asyncio.run(main(), debug=False) < 2.0


def test_uvloop_may_run_the_caller(portal: ThreadPortal) -> None:
    """A loop that nest-asyncio cannot patch is no obstacle."""
    uvloop = pytest.importorskip("uvloop")

    async def main() -> tuple[int, int]:
        return portal.call(double(1)), await portal.bridge(double(2))

    async def interrupted() -> None:
        async def wait() -> None:
            interrupt()
            await asyncio.sleep(LONG)

        with pytest.raises(KeyboardInterrupt):
            portal.call(wait())

    assert uvloop.run(main()) == (2, 4)
    uvloop.run(interrupted())


# -- processes -----------------------------------------------------------------------------


def test_a_forked_child_gets_a_portal_of_its_own() -> None:
    """What was opened before the fork says so; the parent is not disturbed by the child's exit."""
    out = run_python(
        """
        async def double(n): return n * 2
        before = get_portal()
        assert before.call(double(1)) == 2
        child = os.fork()
        if child == 0:
            try:
                before.call(double(1))
            except Exception as error:
                print(type(error).__name__, "fork" in str(error), before.post(print, "never"))
            assert get_portal() is not before
            print(get_portal().call(double(2)), flush=True)
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert get_portal() is before
        print(before.call(double(3)))
        """
    )
    assert out.split("\n")[:3] == ["LoopError True False", "4", "6"]


def test_a_child_forked_without_hooks_gets_a_portal_of_its_own() -> None:
    """C code forks without telling Python, whose locks and threads are then the parent's."""
    out = run_python(
        """
        import ctypes
        async def double(n): return n * 2
        before = get_portal()
        assert before.call(double(1)) == 2
        child = ctypes.PyDLL(None).fork()
        if child == 0:
            try:
                before.call(double(1))
            except Exception as error:
                print(type(error).__name__, before.post(print, "never"))
            print(get_portal().call(double(2)), flush=True)
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print(before.call(double(3)))
        """
    )
    assert out.split("\n")[:3] == ["LoopError False", "4", "6"]


def test_a_thread_that_cannot_start_is_an_error_that_may_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next attempt starts one; nothing is left of the first."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", refuse)
        with pytest.raises(ConnectionLostError, match="limit of processes"):
            ThreadPortal()
    portal = ThreadPortal()
    assert portal.call(double(1)) == 2
    portal.close()


def test_a_child_of_multiprocessing_closes_its_portal() -> None:
    """Such children leave without the usual exit handlers."""
    out = run_python(
        """
        import multiprocessing

        async def closer():
            print("closed", flush=True)

        def child():
            get_portal().closers.add(closer)

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
        print(process.exitcode)
        """
    )
    assert out == "closed\n0\n"


def test_at_exit_everything_is_closed_in_silence() -> None:
    """Closers run, even such as need a thread; tasks and generators end; the loop is closed."""
    out = run_python(
        """
        import atexit

        async def closer():
            print("closing", await asyncio.to_thread(lambda: "in a thread"))

        async def ticks():
            try:
                while True:
                    yield 1
                    await asyncio.sleep(0)
            finally:
                print("generator closed")

        async def for_ever(generator):
            try:
                await anext(generator)
                await asyncio.sleep(100)
            finally:
                print("task cancelled")

        def last():
            print(portal.loop.is_closed(), portal._thread.is_alive(), portal.post(print))
            try:
                get_portal()
            except RuntimeError as error:
                print(type(error).__name__)

        atexit.register(last)
        from abe.sync.portal import process as module
        atexit.unregister(module._close_at_exit)
        atexit.register(module._close_at_exit)
        portal = get_portal()
        portal.closers.add(closer)
        generator = ticks()
        portal.submit(for_ever(generator))
        portal.call(asyncio.sleep(0.01))
        """
    )
    assert out.splitlines() == [
        "closing in a thread",
        "task cancelled",
        "generator closed",
        "True False False",
        "BackendClosedError",
    ]


def test_an_exit_by_exception_or_interrupt_closes_too() -> None:
    """Whatever ends the main thread."""
    for end, code in (("sys.exit(3)", 3), ("os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT)):
        out = run_python(
            f"""
            async def closer():
                print("closed", flush=True)
            get_portal().closers.add(closer)
            {end}
            time.sleep(30)
            """,
            code=code,
            stderr="" if code > 0 else "KeyboardInterrupt",
        )
        assert out == "closed\n"


def test_threads_that_outlive_the_main_thread_go_on_working() -> None:
    """Only when they have ended does the portal close."""
    out = run_python(
        """
        async def in_thread():
            return await asyncio.to_thread(lambda: "still here")

        async def closer():
            print("closed")

        portal = get_portal()
        portal.closers.add(closer)
        portal.call(in_thread())

        def work():
            threading.main_thread().join()
            print(portal.call(in_thread()))

        threading.Thread(target=work).start()
        """
    )
    assert out == "still here\nclosed\n"


@pytest.mark.parametrize("bridged", [False, True])
def test_nothing_is_begun_once_everything_is_closed(
    portal: ThreadPortal, monkeypatch: pytest.MonkeyPatch, bridged: bool
) -> None:
    """The loop may stop before the first step; here the call was posted just before the end."""
    begin = portal._begin

    def begin_late(operation: Operation[Any]) -> None:
        begin(operation)
        portal.refuses = True

    monkeypatch.setattr(portal, "_begin", begin_late)
    portal.post(time.sleep, 0.05)  # so that the portal looks only after that
    with pytest.raises(BackendClosedError):
        asyncio.run(portal.bridge(double(1))) if bridged else portal.call(double(1))
    portal.refuses = False


def test_nothing_that_hangs_keeps_the_process() -> None:
    """Neither a closer that waits, nor a thread that never ends, nor a task that blocks."""
    out = run_python(
        """
        async def waits():
            await asyncio.sleep(100)

        portal = get_portal()
        portal.closers.add(waits)
        portal.submit(asyncio.to_thread(time.sleep, 100))
        portal.close(grace=0.05)
        print("left", portal.loop.is_closed())
        """
    )
    assert out == "left True\n"
    out = run_python(
        """
        from abe.sync.portal import thread as module

        module.LAST_CHANCE = 0.05

        async def blocks():
            time.sleep(100)

        get_portal().submit(blocks())
        get_portal().close(grace=0.05)
        print("left")
        """
    )
    assert out == "left\n"


def test_nesters_of_event_loops_may_be_applied() -> None:
    """By the user, before or after; the portal is not patched into deadlock."""
    pytest.importorskip("nest_asyncio2")
    for order in (
        "nest(); first = use(); print(first, use())",
        "first = use(); nest(); print(first, use())",
    ):
        out = run_python(
            f"""
            import nest_asyncio2

            async def double(n):
                await asyncio.sleep(0)
                return n * 2

            async def main():
                portal = get_portal()
                return portal.call(double(1)), await portal.bridge(double(2))

            nest = nest_asyncio2.apply

            def use():
                loop = asyncio.new_event_loop()
                try:
                    return loop.run_until_complete(main())
                finally:
                    loop.close()

            {order}
            """,
            options=("-W", "ignore::DeprecationWarning"),
        )
        assert out == "(2, 4) (2, 4)\n"
