"""Calls from threads to the portal's event loop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import traceback
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from abe.errors import LoopError
from abe.sync.portal import get_portal
from tests.unit_test.portal.support import LONG, double, fail

if TYPE_CHECKING:
    from abe.sync.portal.thread import ThreadPortal


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
