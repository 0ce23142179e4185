"""Counts the Python calls inside abe that one message costs, on the memory backend.

A resumed coroutine counts as a call. Needs Python 3.12, where every thread can be profiled.

python benchmarks calls
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

import abe
from abe.backends.message_queue.base.payload import encode_payload, freeze_payload

COUNT = 2_000
"""Messages of a measurement; publishing is preceded by a tenth of them, uncounted."""

HOME = str(Path(abe.__file__).parent)
ENCODERS = frozenset({encode_payload.__code__, freeze_payload.__code__})
_names = count()


class Meter:
    """Counts calls of abe's functions while it is on, in every thread."""

    def __init__(self) -> None:
        self.calls = 0
        self.encoded = 0

    @contextmanager
    def on(self) -> Iterator[None]:
        """Count inside the block."""
        threading.setprofile_all_threads(self._note)
        try:
            yield
        finally:
            threading.setprofile_all_threads(None)

    def _note(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(HOME):
            self.calls += 1
            self.encoded += frame.f_code in ENCODERS


def _connect() -> abe.SyncBackend:
    return abe.connect("memory", env={"ABE_MEMORY_NAME": f"calls-{next(_names)}"})


def _repeat(meter: Meter, once: Callable[[], object]) -> None:
    for _ in range(COUNT // 10):
        once()
    with meter.on():
        for _ in range(COUNT):
            once()


async def _repeat_awaiting(meter: Meter, once: Callable[[], Awaitable[object]]) -> None:
    for _ in range(COUNT // 10):
        await once()
    with meter.on():
        for _ in range(COUNT):
            await once()


async def _publish(meter: Meter) -> None:
    async with _async() as q:
        await _repeat_awaiting(meter, lambda: q.backend.publish("k", {"n": 1}))


def _facade_publish(meter: Meter) -> None:
    with _connect() as q:
        _repeat(meter, lambda: q.publish("k", {"n": 1}))


def _magic_publish(meter: Meter) -> None:
    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "abe")
    shell.user_ns["q"] = q = _connect()
    with q:
        shell.run_line_magic("abe_connect", "-i q")
        _repeat(meter, lambda: shell.run_line_magic("abe_publish", 'k {"n": 1}'))


def _async() -> abe.AsyncBackend:
    return abe.aconnect("memory", env={"ABE_MEMORY_NAME": f"calls-{next(_names)}"})


async def _iterate(q: abe.AsyncBackend, meter: Meter) -> None:
    """Count opening, receiving, settling and closing as well."""
    await q.publish_many(({"n": n} for n in range(COUNT)), key="k")
    left = COUNT
    with meter.on():
        async with q.consume() as stream:
            async for _ in stream:
                left -= 1
                if not left:
                    break


async def _async_for(meter: Meter) -> None:
    async with _async() as q:
        await _iterate(q, meter)


async def _aio(meter: Meter) -> None:
    with _connect() as q:
        await _iterate(q.aio, meter)  # type: ignore[arg-type]


def _facade_iteration(meter: Meter) -> None:
    with _connect() as q:
        q.publish_many(({"n": n} for n in range(COUNT)), key="k")
        with meter.on():
            for _ in q.consume(limit=COUNT):
                pass


async def _consumer(meter: Meter) -> None:
    async with _async() as q:
        await q.publish_many(({"n": n} for n in range(COUNT)), key="k")
        consumer = abe.AsyncLoopConsumer(q)
        left = COUNT

        async def handle(message: abe.Message) -> None:
            nonlocal left
            left -= 1
            if not left:
                await consumer.shutdown()

        with meter.on():
            await consumer.run(handle)


Measured = Callable[[Meter], Coroutine[Any, Any, None] | None]
PATHS: dict[str, tuple[Measured, float]] = {
    "publish": (_publish, 10),
    "publish through the facade": (_facade_publish, 26),
    "%abe_publish": (_magic_publish, 60),
    "async for": (_async_for, 12.5),
    "iteration through the facade": (_facade_iteration, 21),
    "q.aio": (_aio, 18),
    "AsyncLoopConsumer": (_consumer, 29),
}
"""What is measured, and how many calls it may take."""


def main() -> int:
    """Print the table; returns 1 if anything takes more calls, or encodings, than it may."""
    logging.disable(logging.WARNING)  # the memory backend is for development
    exceeded = False
    print("| path | calls | at most | encodings |\n|---|---|---|---|")
    for name, (measured, most) in PATHS.items():
        meter = Meter()
        work = measured(meter)
        if work is not None:
            asyncio.run(work)
        calls, encoded = meter.calls / COUNT, meter.encoded / COUNT
        exceeded |= calls > most or encoded > 1
        print(f"| {name} | {calls:.1f} | {most:g} | {encoded:g} |")
    return exceeded


if __name__ == "__main__":
    sys.exit(main())
