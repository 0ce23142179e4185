"""Handlers that run in threads."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from abe.backends.message_queue.base import Outcome, SyncMessage
from abe.backends.message_queue.consumer import AsyncLoopConsumer
from abe.errors import ConnectionLostError, UnsupportedError
from tests.unit_test.consumer.support import FAST, Plain, Recorder, memory, real, settled, until


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, None]], None]:
    """Run the tests in real time."""
    return real


async def test_a_sync_handler_sees_the_callers_context_and_may_settle_itself() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    outcomes: list[Any] = []

    def handler(message: SyncMessage) -> None:
        outcomes.extend((variable.get(), message.reject("by hand"), message.outcome))

    variable.set("seen")
    async with memory() as backend:
        await backend.publish("k", {})
        consumer = AsyncLoopConsumer(backend)
        await settled(consumer, handler, lambda: len(outcomes) == 3)
        (dead,) = await backend.dead_letters()
        assert dead.headers["abe-dead-reason"] == "by hand"
        assert (consumer.processed, consumer.failed) == (0, 0)
    assert outcomes == ["seen", True, Outcome.REJECT]


def test_a_message_settled_in_a_thread_after_the_loop_is_gone_is_lost() -> None:
    go, messages, results = threading.Event(), [], []

    def handler(message: SyncMessage) -> None:
        messages.append(message)
        go.wait(10)
        results.append(message.ack())
        go.clear()

    async def main() -> None:
        async with memory() as backend:
            await backend.publish("k", {})
            consumer = AsyncLoopConsumer(backend, drain_timeout=0.0)
            await settled(consumer, handler, lambda: messages)

    real(main())
    go.set()
    deadline = time.monotonic() + 10
    while not results and time.monotonic() < deadline:
        time.sleep(0.001)
    assert results == [False]


async def test_a_cancellation_raised_in_a_thread_is_a_failure() -> None:
    def handler(message: SyncMessage) -> None:
        raise asyncio.CancelledError

    async with memory() as backend:
        await backend.publish("k", {})
        consumer = AsyncLoopConsumer(backend, retry=FAST)
        await settled(consumer, handler, lambda: consumer.dead)
        assert consumer.failed == 3


async def test_where_no_thread_can_be_started_the_handling_fails_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The event loop's thread never does the work, which may block it."""
    start, refusals = threading.Thread.start, [RuntimeError("can't start new thread")] * 2
    threads: list[int] = []

    def limited(thread: threading.Thread) -> None:
        if thread.name.startswith("abe-handler") and refusals:
            raise refusals.pop()
        start(thread)

    def handler(message: SyncMessage) -> None:
        threads.append(threading.get_ident())

    monkeypatch.setattr(threading.Thread, "start", limited)
    async with memory() as backend:
        await backend.publish("k", {})
        consumer = AsyncLoopConsumer(backend, retry=FAST)
        await settled(consumer, handler, lambda: consumer.processed)
    assert (consumer.failed, consumer.retried, len(threads)) == (2, 2, 1)
    assert threads != [threading.get_ident()]
    assert isinstance(consumer.last_error, ConnectionLostError)


async def test_a_cancellation_while_a_thread_works_leaves_the_message_to_the_thread() -> None:
    go, started = threading.Event(), threading.Event()

    def handler(message: SyncMessage) -> None:
        started.set()
        go.wait(10)

    async with memory() as backend:
        await backend.publish("k", {})
        consumer = AsyncLoopConsumer(backend)
        task = asyncio.create_task(consumer.run(handler))
        await until(started.is_set, 0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await backend.stats()).total("in_flight") == 1
        backend._store.advance_time(30)
        (message,) = await backend.peek()
        assert message.attempt == 2
    go.set()


async def test_what_a_thread_has_finished_counts_even_if_the_cancellation_comes_first() -> None:
    loop = asyncio.get_running_loop()

    def cancel_at_the_worst_moment() -> None:
        # Meanwhile the thread returns and reports; only then is the run cancelled.
        returned.wait(10)
        time.sleep(0.02)
        task.cancel()

    def handler(message: SyncMessage) -> None:
        loop.call_soon_threadsafe(cancel_at_the_worst_moment)
        returned.set()

    returned = threading.Event()
    async with memory() as backend:
        await backend.publish("k", {})
        consumer = AsyncLoopConsumer(backend)
        task = asyncio.create_task(consumer.run(handler))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert consumer.processed == 1
        assert (await backend.stats()).entries == ()


async def test_shutdown_from_a_handler_in_a_thread() -> None:
    loop = asyncio.get_running_loop()

    def handler(message: SyncMessage) -> None:
        asyncio.run_coroutine_threadsafe(consumer.shutdown(), loop).result(5)

    async with memory() as backend:
        await backend.publish_many([{}, {}], key="k")
        consumer = AsyncLoopConsumer(backend)
        await consumer.run(handler)
        assert (consumer.processed, consumer.failed) == (1, 0)
        assert (await backend.stats()).total("ready") == 1


async def test_a_hanging_thread_keeps_its_message_until_the_lease_lapses() -> None:
    go, started = threading.Event(), threading.Event()

    def handler(message: SyncMessage) -> None:
        started.set()
        go.wait(10)

    async with memory() as backend:
        await backend.publish_many([{"n": 1}, {"n": 2}], key="k")
        consumer = AsyncLoopConsumer(backend, drain_timeout=0.01)
        task = asyncio.create_task(consumer.run(handler))
        await until(started.is_set, 0.001)
        await consumer.shutdown()
        assert task.done()
        await task
        stats = await backend.stats()
        assert (stats.total("in_flight"), stats.total("ready")) == (1, 1)
        backend._store.advance_time(30)
        assert [(m["n"], m.attempt) for m in await backend.peek()] == [(1, 2), (2, 1)]
    go.set()


HANG = """
import asyncio, threading
from abe.backends.message_queue.consumer import AsyncLoopConsumer
from abe.backends.message_queue.service.memory import MemoryBackend

started = threading.Event()

def hang(message):
    started.set()
    threading.Event().wait()

async def main():
    async with MemoryBackend() as backend:
        await backend.publish("k", {})
        consumer = AsyncLoopConsumer(backend, drain_timeout=0.01)
        task = asyncio.create_task(consumer.run(hang))
        while not started.is_set():
            await asyncio.sleep(0.001)
        await consumer.shutdown()
        await task

asyncio.run(main())
print("the end")
"""


def test_a_hanging_thread_does_not_keep_the_process_alive() -> None:
    command = [sys.executable, "-W", "error", "-c", HANG]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "the end\n", "")


async def test_what_the_backend_cannot_do_is_raised_in_the_thread_of_the_handler() -> None:
    refused: list[str] = []

    def handler(message: SyncMessage) -> None:
        with pytest.raises(UnsupportedError) as caught:
            message.reject("broken")
        refused.append(str(caught.value))

    backend = Plain({"n": 1}, ends=True)
    consumer = AsyncLoopConsumer(backend)
    await consumer.run(handler)
    assert consumer.processed == 1
    assert refused == ["backend 'Plain' does not support reject() (capability 'reject')"]


async def test_the_threads_of_a_run_end_with_it() -> None:
    threads: list[threading.Thread] = []

    def handler(message: SyncMessage) -> None:
        threads.append(threading.current_thread())

    await AsyncLoopConsumer(Plain({"n": 1}, ends=True)).run(handler)
    (thread,) = threads
    thread.join(10)
    assert not thread.is_alive()


async def test_sync_handlers_run_side_by_side_in_threads_that_are_reused() -> None:
    barrier = threading.Barrier(3, timeout=10)
    threads: set[str] = set()

    def handler(message: SyncMessage) -> None:
        threads.add(threading.current_thread().name)
        barrier.wait()

    async with memory() as backend:
        await backend.publish_many([{}] * 30, key="k")
        consumer = AsyncLoopConsumer(backend, concurrency=3)
        await settled(consumer, handler, lambda: consumer.processed == 30)
    assert threads == {"abe-handler-1", "abe-handler-2", "abe-handler-3"}


def test_numbers_can_be_read_from_another_thread_at_any_time() -> None:
    async def main() -> None:
        async with memory() as backend:
            await backend.publish_many([{}] * 500, key="k")
            consumer = AsyncLoopConsumer(backend, concurrency=4)
            # Many, so that reading them takes longer than a thread's turn.
            consumer._finished.extend([time.monotonic()] * 9_000)
            stop = threading.Event()
            problems: list[BaseException] = []

            def look() -> None:
                try:
                    while not stop.is_set():
                        assert consumer.rate > 0
                        assert 0 <= consumer.in_flight <= 4
                except BaseException as error:
                    problems.append(error)

            thread = threading.Thread(target=look)
            thread.start()
            await settled(consumer, Recorder(), lambda: consumer.processed == 500)
            stop.set()
            thread.join()
            assert problems == []
            assert consumer.rate == pytest.approx(950.0)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        real(main())
    finally:
        sys.setswitchinterval(interval)
