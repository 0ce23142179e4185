"""Threads for blocking calls: reused, never joined, never keeping what they handled."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from abe.backends.message_queue.handling.threads import DaemonExecutor, DaemonThreads
from abe.errors import ConnectionLostError


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, None]], None]:
    """Run the tests in real time."""
    return asyncio.run


async def test_results_errors_arguments_and_context() -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)

    def fail() -> None:
        raise KeyError("x")

    def stop() -> None:
        raise StopIteration

    threads = DaemonThreads("test")
    variable.set(5)
    assert await threads.submit(lambda a, b: a - b + variable.get(), 9, 4) == 10
    with pytest.raises(KeyError, match="x"):
        await threads.submit(fail)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await threads.submit(stop)
    assert await threads.submit(threading.get_ident) != threading.get_ident()
    threads.close()


async def test_threads_are_reused_and_started_only_as_needed() -> None:
    threads = DaemonThreads("test")
    for _ in range(50):
        assert await threads.submit(lambda: threading.current_thread().name) == "test-1"
    barrier = threading.Barrier(4, timeout=10)
    await asyncio.gather(*(threads.submit(barrier.wait) for _ in range(4)))
    assert threads._executor._started == 4
    threads.close()


def test_they_end_once_closed_and_refuse_more() -> None:
    async def main() -> threading.Thread:
        threads = DaemonThreads("closing")
        thread = await threads.submit(threading.current_thread)
        threads.close()
        with pytest.raises(RuntimeError, match="the threads closing are closed"):
            await threads.submit(print)
        return thread

    thread = asyncio.run(main())
    assert thread.daemon
    thread.join(10)
    assert not thread.is_alive()


async def test_cancelling_ends_the_waiting_only_and_the_thread_serves_again() -> None:
    threads = DaemonThreads("test")
    go, ended = threading.Event(), threading.Event()

    def work() -> None:
        go.wait(10)
        ended.set()

    future = threads.submit(work)
    future.cancel()
    with pytest.raises(asyncio.CancelledError):
        await future
    assert not ended.is_set()
    go.set()
    assert await threads.submit(ended.wait, 10)
    threads.close()


def test_a_function_may_outlive_the_loop() -> None:
    go = threading.Event()

    def work() -> None:
        go.wait(10)

    async def main() -> threading.Thread:
        threads = DaemonThreads("test")
        thread = await threads.submit(threading.current_thread)
        future = threads.submit(work)
        threads.close()
        assert not future.done()
        return thread

    thread = asyncio.run(main())
    go.set()
    thread.join(10)
    assert not thread.is_alive()


async def test_an_idle_thread_holds_on_to_nothing() -> None:
    class Big:
        pass

    threads = DaemonThreads("test")
    big = Big()
    gone = weakref.ref(big)
    await threads.submit(lambda value: None, big)
    del big
    async with asyncio.timeout(5):
        while gone() is not None:
            gc.collect()
            await asyncio.sleep(0.001)
    threads.close()


def test_what_was_cancelled_before_it_began_never_runs() -> None:
    executor = DaemonExecutor("test")
    go, ran = threading.Event(), threading.Event()
    first = executor.submit(go.wait, 10)
    executor._idle.release()  # as if that one were idle: the next has to wait for it
    second = executor.submit(ran.set)
    assert second.cancel()
    go.set()
    assert first.result(10)
    assert executor.submit(ran.is_set).result(10) is False
    executor.shutdown()


def test_where_no_thread_can_be_started_for_now_it_is_an_error_that_may_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    executor = DaemonExecutor("test")
    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", refuse)
        with pytest.raises(ConnectionLostError, match="limit of processes"):
            executor.submit(threading.get_ident)
    assert executor.submit(threading.get_ident).result(10) != threading.get_ident()
    executor.shutdown()


def test_at_the_interpreters_exit_the_caller_does_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Python 3.12 and later refuse while they exit."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    executor = DaemonExecutor("test")
    assert executor.submit(threading.get_ident).result(0) == threading.get_ident()


def test_threads_that_run_take_what_no_new_one_can(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    executor = DaemonExecutor("test")
    go = threading.Event()
    first = executor.submit(go.wait, 10)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    second = executor.submit(lambda: threading.current_thread().name)
    go.set()
    assert first.result(10)
    assert second.result(10) == "test-1"
    executor.shutdown()
