"""The thread that owns a SQLite connection: who shares a commit, and who is left out of it."""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from abe.backends.message_queue.service.sqlite import thread as _sqlite_thread
from abe.backends.message_queue.service.sqlite.worker import Job, Mode, Worker
from abe.errors import ConfigurationError, ConnectionLostError, LoopError

Connection = sqlite3.Connection


def with_worker(
    path: Path, main: Callable[[Worker], Awaitable[Any]], *, synchronous: str = "FULL"
) -> Any:
    """Run ``main`` with a worker whose file has a table ``t``, and close it."""

    async def run() -> Any:
        worker = Worker(path / "q.sqlite3", synchronous=synchronous, busy_timeout=5)
        try:
            await worker.run(lambda c: c.execute("CREATE TABLE t (x UNIQUE)").fetchall())
            async with asyncio.timeout(20):
                return await main(worker)
        finally:
            await worker.aclose()
            assert not threads()

    return asyncio.run(run())


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "abe-sqlite"]


def insert(x: object) -> Callable[[Connection], object]:
    return lambda c: c.execute("INSERT INTO t VALUES (?)", (x,)).fetchall()


def rows(c: Connection) -> list[object]:
    return [x for (x,) in c.execute("SELECT x FROM t ORDER BY x")]


class Statements:
    """What a worker's connection executes; and a gate that keeps it busy meanwhile."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.seen: list[str] = []
        self.gate = threading.Event()
        self.entered = threading.Event()

    async def hold(self) -> asyncio.Future[bool]:
        """Keep the thread busy, so that what is asked for next waits together."""

        def block(c: Connection) -> bool:
            self.entered.set()
            c.set_trace_callback(self.seen.append)
            return self.gate.wait(10)

        held = asyncio.ensure_future(self.worker.run(block, glance=block))
        await asyncio.to_thread(self.entered.wait, 10)
        return held

    async def release(self, held: asyncio.Future[bool]) -> None:
        """Let go on, and see which statements follow."""
        await asyncio.sleep(0)
        self.gate.set()
        assert await held

    def count(self, start: str) -> int:
        return sum(statement.startswith(start) for statement in self.seen)


def test_callers_who_wait_together_share_a_commit(tmp_path: Path) -> None:
    async def main(worker: Worker) -> None:
        statements = Statements(worker)
        held = await statements.hold()
        waiting = [asyncio.ensure_future(worker.run(insert(n))) for n in range(100)]
        await statements.release(held)
        await asyncio.gather(*waiting)
        assert statements.count("COMMIT") == 1
        assert await worker.run(rows, mode=Mode.READ) == [*range(100)]

    with_worker(tmp_path, main)


def test_a_job_that_fails_is_left_out_and_the_others_are_stored(tmp_path: Path) -> None:
    async def main(worker: Worker) -> None:
        statements = Statements(worker)
        held = await statements.hold()
        xs = [1, 2, 1, 3, 2, 4]
        waiting = [asyncio.ensure_future(worker.run(insert(x))) for x in xs]
        await statements.release(held)
        results = await asyncio.gather(*waiting, return_exceptions=True)
        failed = [n for n, result in enumerate(results) if isinstance(result, ConfigurationError)]
        assert failed == [2, 4]
        assert statements.count("COMMIT") == 1
        assert await worker.run(rows, mode=Mode.READ) == [1, 2, 3, 4]

    with_worker(tmp_path, main)


def test_only_what_is_to_be_durable_waits_for_the_disk(tmp_path: Path) -> None:
    def level(c: Connection) -> int:
        return int(c.execute("PRAGMA synchronous").fetchone()[0])

    async def main(worker: Worker) -> list[int]:
        modes = (Mode.DURABLE, Mode.WRITE, Mode.DURABLE, Mode.WRITE, Mode.DURABLE)
        return [await worker.run(level, mode=mode) for mode in modes]

    assert with_worker(tmp_path, main) == [2, 1, 2, 1, 2]
    (tmp_path / "n").mkdir()
    assert with_worker(tmp_path / "n", main, synchronous="NORMAL") == [1] * 5


def test_reading_takes_no_lock_and_sees_one_state(tmp_path: Path) -> None:
    async def main(worker: Worker) -> None:
        seen: list[str] = []
        await worker.run(lambda c: c.set_trace_callback(seen.append), mode=Mode.READ)
        seen.clear()
        await worker.run(rows, mode=Mode.READ)
        assert seen == ["BEGIN", "SELECT x FROM t ORDER BY x", "COMMIT"]

    with_worker(tmp_path, main)


def test_a_long_read_keeps_nobody_from_writing(tmp_path: Path) -> None:
    async def main(worker: Worker) -> None:
        begun, gate = threading.Event(), threading.Event()

        def read(c: Connection) -> list[object]:
            before = rows(c)
            begun.set()
            assert gate.wait(10)
            assert rows(c) == before
            return before

        reading = asyncio.ensure_future(worker.run(read, mode=Mode.READ))
        assert await asyncio.to_thread(begun.wait, 10)
        await worker.run(insert(1))
        await worker.run(insert(2), mode=Mode.WRITE)
        gate.set()
        assert await reading == []
        assert await worker.run(rows, mode=Mode.READ) == [1, 2]

    with_worker(tmp_path, main)


def test_a_glance_that_is_enough_takes_no_lock(tmp_path: Path) -> None:
    async def main(worker: Worker) -> None:
        statements = Statements(worker)
        held = await statements.hold()
        await statements.release(held)
        assert await worker.run(insert(1), glance=lambda c: ["enough"]) == ["enough"]
        assert not statements.seen
        assert await worker.run(insert(1), glance=lambda c: None) == []
        assert statements.count("BEGIN IMMEDIATE") == 1
        with pytest.raises(ZeroDivisionError):
            await worker.run(insert(2), glance=lambda c: 1 // 0)
        assert await worker.run(rows, mode=Mode.READ) == [1]

    with_worker(tmp_path, main)


def test_a_caller_cancelled_before_it_began_is_not_run(tmp_path: Path) -> None:
    async def main(worker: Worker) -> None:
        statements = Statements(worker)
        held = await statements.hold()
        waiting = [asyncio.ensure_future(worker.run(insert(n))) for n in range(3)]
        await asyncio.sleep(0)
        waiting[1].cancel()
        await statements.release(held)
        await asyncio.gather(*waiting, return_exceptions=True)
        assert await worker.run(rows, mode=Mode.READ) == [0, 2]

    with_worker(tmp_path, main)


def test_a_caller_cancelled_while_it_runs_harms_nobody(tmp_path: Path) -> None:
    async def main(worker: Worker) -> None:
        entered, gate = threading.Event(), threading.Event()

        def slow(c: Connection) -> None:
            entered.set()
            assert gate.wait(10)
            c.execute("INSERT INTO t VALUES (1)")

        task = asyncio.ensure_future(worker.run(slow))
        await asyncio.to_thread(entered.wait, 10)
        other = asyncio.ensure_future(worker.run(insert(2)))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        await other
        assert await worker.run(rows, mode=Mode.READ) == [1, 2]

    with_worker(tmp_path, main)


def test_callers_on_several_loops_share_the_connection(tmp_path: Path) -> None:
    async def main(worker: Worker) -> None:
        async def elsewhere(first: int) -> None:
            await asyncio.gather(*(worker.run(insert(first + n)) for n in range(50)))

        def in_own_loop(first: int) -> None:
            asyncio.run(elsewhere(first))

        await asyncio.gather(*(asyncio.to_thread(in_own_loop, 100 * n) for n in range(4)))
        assert len(await worker.run(rows, mode=Mode.WRITE)) == 200
        assert len(threads()) == 1

    with_worker(tmp_path, main)


def test_a_loop_that_is_gone_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async def main(worker: Worker) -> None:
        statements = Statements(worker)
        held = await statements.hold()
        messages: list[str] = []

        def abandon() -> None:
            loop = asyncio.new_event_loop()
            loop.set_exception_handler(lambda _, context: messages.append(context["message"]))
            task = loop.create_task(worker.run(insert(1)))
            loop.call_soon(loop.stop)
            loop.run_forever()
            assert not task.done()
            loop.close()  # neither waited for nor cancelled

        await asyncio.to_thread(abandon)
        waiting = asyncio.ensure_future(worker.run(insert(2)))
        await statements.release(held)
        await waiting
        assert await worker.run(rows, mode=Mode.WRITE) == [1, 2]
        gc.collect()
        assert messages == ["Task was destroyed but it is pending!"]

    with_worker(tmp_path, main)


def test_what_is_queued_is_done_before_the_thread_ends(tmp_path: Path) -> None:
    async def main(worker: Worker) -> None:
        statements = Statements(worker)
        held = await statements.hold()
        waiting = [asyncio.ensure_future(worker.run(insert(n))) for n in range(10)]
        closing = asyncio.ensure_future(worker.aclose())
        await statements.release(held)
        await asyncio.gather(closing, *waiting)
        assert not threads()

    with_worker(tmp_path, main)


def test_closing_may_be_cancelled_and_done_again(tmp_path: Path) -> None:
    async def main(worker: Worker) -> None:
        statements = Statements(worker)
        held = await statements.hold()
        waiting = asyncio.ensure_future(worker.run(insert(1)))
        closing = asyncio.ensure_future(worker.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await statements.release(held)
        await waiting
        await worker.aclose()

    with_worker(tmp_path, main)


def test_what_is_asked_for_after_closing_is_done_and_leaves_nothing_open(tmp_path: Path) -> None:
    async def main(worker: Worker) -> None:
        await worker.aclose()
        await asyncio.gather(*(worker.run(insert(n)) for n in range(5)))
        worker.post(Job(insert(5)))
        assert await worker.run(rows, mode=Mode.WRITE) == [0, 1, 2, 3, 4, 5]
        await worker.aclose()

    with_worker(tmp_path, main)


def test_a_forgotten_worker_ends_its_thread(tmp_path: Path) -> None:
    async def main() -> weakref.ref[Worker]:
        worker = Worker(tmp_path / "q.sqlite3", synchronous="FULL", busy_timeout=1)
        await worker.run(lambda c: c.execute("SELECT 1").fetchall(), mode=Mode.READ)
        return weakref.ref(worker)

    reference = asyncio.run(main())
    gc.collect()
    assert reference() is None
    for thread in threads():
        thread.join(10)
    assert not threads()
    assert {p.name for p in tmp_path.iterdir()} == {"q.sqlite3"}


class Ear:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.heard = threading.Event()

    def tell(self) -> None:
        self.times.append(time.monotonic())
        self.heard.set()


def both(path: Path, main: Callable[[Worker, Worker, Ear], Coroutine[Any, Any, None]]) -> None:
    async def run(worker: Worker) -> None:
        other = Worker(worker.path, synchronous="NORMAL", busy_timeout=5)
        ear = Ear()
        worker.listen(ear)
        try:
            await worker.run(rows, mode=Mode.WRITE)
            await main(worker, other, ear)
        finally:
            await other.aclose()

    with_worker(path, run)


def test_news_reach_listeners_of_every_worker_of_the_file(tmp_path: Path) -> None:
    async def main(worker: Worker, other: Worker, ear: Ear) -> None:
        for one in (worker, other):
            ear.heard.clear()
            await one.run(insert(id(one)), news=True)
            assert await asyncio.to_thread(ear.heard.wait, 5)

    both(tmp_path, main)


def test_what_another_connection_commits_is_noticed_soon(tmp_path: Path) -> None:
    async def main(worker: Worker, other: Worker, ear: Ear) -> None:
        await asyncio.sleep(0.3)  # until it looks as seldom as it ever does
        ear.heard.clear()
        await other.run(insert(1))
        assert await asyncio.to_thread(ear.heard.wait, 5)

    both(tmp_path, main)


def test_an_idle_worker_with_listeners_looks_seldom_and_one_without_never(tmp_path: Path) -> None:
    async def main(worker: Worker, other: Worker, ear: Ear) -> None:
        looks: list[str] = []
        enough = threading.Event()

        def seen(statement: str) -> None:
            looks.append(statement)
            if looks.count("PRAGMA data_version") == 20:
                enough.set()

        started = time.monotonic()
        await worker.run(lambda c: c.set_trace_callback(seen), mode=Mode.WRITE)
        assert await asyncio.to_thread(enough.wait, 30)
        # The first nine follow the run closely; then there is one every LAST_LOOK seconds.
        assert time.monotonic() - started >= 10 * _sqlite_thread.LAST_LOOK
        worker.unlisten(ear)
        await worker.run(rows, mode=Mode.WRITE)
        looks.clear()
        await asyncio.sleep(0.15)
        assert not looks

    both(tmp_path, main)


def test_a_worker_that_is_told_to_stop_does_not_stay_with_a_listener(tmp_path: Path) -> None:
    async def main(worker: Worker, other: Worker, ear: Ear) -> None:
        await worker.aclose()
        assert not [t for t in threads() if t.is_alive()]

    both(tmp_path, main)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_forked_child_opens_a_connection_of_its_own(tmp_path: Path) -> None:
    async def main(worker: Worker) -> None:
        await worker.run(insert(1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads are running: the point
            pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = asyncio.Runner().run(self_contained(worker))
            finally:
                os._exit(code)
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        await worker.run(insert(3))
        assert await worker.run(rows, mode=Mode.READ) == [1, 2, 3]

    async def self_contained(worker: Worker) -> int:
        await worker.run(insert(2))
        await worker.aclose()
        return 0

    with_worker(tmp_path, main)


def test_a_thread_that_cannot_start_is_an_error_that_may_pass(tmp_path: Path) -> None:
    async def main() -> None:
        worker = Worker(tmp_path / "q.sqlite3", synchronous="FULL", busy_timeout=5)
        with pytest.MonkeyPatch.context() as limited:
            limited.setattr(threading.Thread, "start", refuse)
            with pytest.raises(ConnectionLostError, match="limit of processes"):
                await worker.run(lambda c: None)
            worker.post(Job(lambda c: None))  # nobody waits for it, so nobody is told
            await worker.aclose()
        assert await worker.run(lambda c: 42) == 42
        await worker.aclose()

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    asyncio.run(main())


def test_a_connection_in_use_at_a_fork_without_hooks_is_not_touched(tmp_path: Path) -> None:
    """Nor is SQLite: another thread, which the child does not have, may hold its locks."""

    async def main(worker: Worker) -> None:
        statements = Statements(worker)
        held = await statements.hold()
        (thread,) = worker.threads
        with pytest.raises(LoopError, match="start a new process"):
            thread.close_inherited()
        await statements.release(held)

    with_worker(tmp_path, main)
