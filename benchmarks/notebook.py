"""The magics on the memory backend, and background handlers beside the same consumer in asyncio.

    python benchmarks/notebook.py [--quick] [--rounds N] [--only WORD] [--json FILE]

Needs the extra ``notebook`` and the dependency group ``bench``.
"""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _harness import Case, Options, Stopwatch, Target, main
from IPython.core.interactiveshell import InteractiveShell

import abe
from abe.backends.message_queue.service.memory import MemoryBackend

KEY = "orders.eu.created"
CALLS = 400
MESSAGES = 20_000
PAYLOAD = '{"order": 1, "customer": {"id": 48151, "name": "Ada"}, "total": 31.75, "paid": true}'


# -- magics ------------------------------------------------------------------------------------


@cache
def shell() -> InteractiveShell:
    """Return a shell with the magics, on a store of its own."""
    os.environ["IPYTHONDIR"] = tempfile.mkdtemp(prefix="abe-bench-")
    made = InteractiveShell.instance()
    made.history_manager.enabled = False
    run(made, "%load_ext abe")
    run(made, f"q = %abe_connect memory --env ABE_MEMORY_NAME={uuid.uuid4().hex}")
    return made


def run(made: InteractiveShell, code: str) -> None:
    """Run a cell as a kernel does, displaying its result, and raise what it raised."""
    with redirect_stdout(io.StringIO()):
        made.run_cell(code).raise_error()


def cells(code: str, prepare: Callable[[Any, int], None]) -> Callable[[Path, Options], float]:
    """Return a peer that runs a cell again and again."""

    def peer(folder: Path, options: Options) -> float:
        watch, count = Stopwatch(), options.size(CALLS)
        made = shell()
        q = made.user_ns["q"]
        prepare(q, count)
        run(made, code)
        for _ in range(count):
            with watch.timing():
                run(made, code)
        q.purge()
        return watch.rate(count)

    return peer


def nothing(q: Any, count: int) -> None:
    """Leave the queue empty."""


def fill(q: Any, count: int) -> None:
    """Let there be a message for every call, and one for the warm-up."""
    q.publish_many([{"order": n} for n in range(count + 1)], key=KEY)


def five_milliseconds(folder: Path, options: Options) -> float:
    """Not measured: what is aimed at."""
    return 200.0


MAGICS = Case(
    "a cell with one magic, memory backend",
    "q.publish(…)",
    {
        "%abe_publish": cells(f"%abe_publish {KEY} {PAYLOAD}", nothing),
        "q.publish(…)": cells(f"q.publish({KEY!r}, {{'order': 1}})", nothing),
        "%abe_consume -n 1": cells("%abe_consume -n 1", fill),
        "q.take(1)": cells("q.take(1)", fill),
        "the aim: 5 ms": five_milliseconds,
    },
    (
        Target("%abe_publish", 1.0, ["the aim: 5 ms"]),
        Target("%abe_consume -n 1", 1.0, ["the aim: 5 ms"]),
    ),
    "From the source of the cell to the text and HTML of its result, in a shell in this process.",
    unit="cells/s",
)


# -- Stop --------------------------------------------------------------------------------------

STOPS = 20
CELL = "got = %abe_consume -n 2 -t 60 -q 60"


def stopped(code: str) -> Callable[[Path, Options], float]:
    """Return a peer: a cell that waits, timed from SIGINT to its end."""

    def peer(folder: Path, options: Options) -> float:
        count, made = options.size(STOPS), shell()
        main, sent = threading.main_thread().ident or 0, [0.0]

        def interrupt() -> None:
            sent[0] = time.perf_counter()
            signal.pthread_kill(main, signal.SIGINT)

        waited = 0.0
        for _ in range(count):
            timer = threading.Timer(0.2, interrupt)
            timer.start()
            with redirect_stdout(io.StringIO()), suppress(KeyboardInterrupt):
                made.run_cell(code)
            waited += time.perf_counter() - sent[0]
            timer.join()
        return count / waited

    return peer


def half_a_second(folder: Path, options: Options) -> float:
    """Not measured: the aim."""
    return 2.0


STOP = Case(
    "Stop, on a cell that waits",
    "time.sleep(60)",
    {
        CELL.removeprefix("got = "): stopped(CELL),
        "time.sleep(60)": stopped("import time\ntime.sleep(60)"),
        "the aim: 0.5 s": half_a_second,
    },
    (Target(CELL.removeprefix("got = "), 1.0, ["the aim: 0.5 s"]),),
    "From SIGINT to the end of the cell, in a shell in this process.",
    unit="stops/s",
)


# -- handlers ----------------------------------------------------------------------------------


class Handler:
    """Counts messages; says when it has seen them all."""

    def __init__(self, count: int, done: Callable[[], object]) -> None:
        self._left = count
        self._done = done

    def sync(self, message: Any) -> None:
        """Handle one."""
        self._left -= 1
        if not self._left:
            self._done()

    async def aio(self, message: Any) -> None:
        """Handle one."""
        self.sync(message)


def messages(count: int) -> list[dict[str, int]]:
    """Return what is handled."""
    return [{"order": n} for n in range(count)]


def native(kind: str) -> Callable[[Path, Options], float]:
    """Return a peer: the consumer in an event loop of the main thread."""

    async def work(count: int, watch: Stopwatch) -> None:
        async with MemoryBackend(uuid.uuid4().hex) as backend:
            await backend.publish_many(messages(count), key=KEY)
            loop, done = asyncio.get_running_loop(), asyncio.Event()
            handler = Handler(count, lambda: loop.call_soon_threadsafe(done.set))
            consumer = abe.AsyncLoopConsumer(backend)
            with watch.timing():
                task = asyncio.create_task(consumer.run(getattr(handler, kind)))
                await done.wait()
            await consumer.shutdown()
            await task

    def peer(folder: Path, options: Options) -> float:
        watch, count = Stopwatch(), options.size(MESSAGES)
        asyncio.run(work(count, watch))
        return watch.rate(count)

    return peer


def worker(kind: str) -> Callable[[Path, Options], float]:
    """Return a peer: what ``%%abe_handler`` runs on."""

    def peer(folder: Path, options: Options) -> float:
        watch, count = Stopwatch(), options.size(MESSAGES)
        with abe.connect("memory", env={"ABE_MEMORY_NAME": uuid.uuid4().hex}) as q:
            q.publish_many(messages(count), key=KEY)
            done = threading.Event()
            handler = Handler(count, done.set)
            with watch.timing():
                running = q.worker(getattr(handler, kind))
                done.wait()
            running.stop()
        return watch.rate(count)

    return peer


HANDLERS = [
    Case(
        f"{text} handler, memory backend",
        "AsyncLoopConsumer, asyncio.run",
        {"AsyncLoopConsumer, asyncio.run": native(kind), "SyncBackend.worker": worker(kind)},
        (Target("SyncBackend.worker", 0.8, ["AsyncLoopConsumer, asyncio.run"]),),
        f"Until {MESSAGES:,} messages that wait are handled, one after the other.",
    )
    for kind, text in (("aio", "an async"), ("sync", "a sync"))
]

if __name__ == "__main__":
    main("Notebook toolkit", [MAGICS, STOP, *HANDLERS])
