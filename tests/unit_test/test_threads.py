"""Threads for blocking calls: reused, never joined, never keeping what they handled."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import weakref

import pytest

from abe.backends.message_queue.base.threads import DaemonThreads


def test_results_errors_arguments_and_context() -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)

    def fail() -> None:
        raise KeyError("x")

    def stop() -> None:
        raise StopIteration

    async def main() -> None:
        threads = DaemonThreads("test")
        variable.set(5)
        assert await threads.submit(lambda a, b: a - b + variable.get(), 9, 4) == 10
        with pytest.raises(KeyError, match="x"):
            await threads.submit(fail)
        with pytest.raises(RuntimeError, match="StopIteration"):
            await threads.submit(stop)
        assert await threads.submit(threading.get_ident) != threading.get_ident()
        threads.close()

    asyncio.run(main())


def test_threads_are_reused_and_started_only_as_needed() -> None:
    async def main() -> None:
        threads = DaemonThreads("test")
        for _ in range(50):
            assert await threads.submit(lambda: threading.current_thread().name) == "test-1"
        barrier = threading.Barrier(4, timeout=10)
        await asyncio.gather(*(threads.submit(barrier.wait) for _ in range(4)))
        assert threads._executor._started == 4
        threads.close()

    asyncio.run(main())


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


def test_cancelling_ends_the_waiting_only_and_the_thread_serves_again() -> None:
    async def main() -> None:
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

    asyncio.run(main())


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


def test_an_idle_thread_holds_on_to_nothing() -> None:
    class Big:
        pass

    async def main() -> None:
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

    asyncio.run(main())
