"""Forks, exits and threads that outlive the main thread."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from abe.errors import BackendClosedError, ConnectionLostError
from abe.sync.portal.thread import ThreadPortal
from tests.unit_test.portal.support import double

if TYPE_CHECKING:
    from abe.sync.portal.operation import Operation


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
