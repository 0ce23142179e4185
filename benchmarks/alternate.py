"""CPU time of every path beside that of another checkout, in alternated processes.

    python benchmarks alternate OTHER_CHECKOUT [--pairs 20]

Prints, for each path on the memory backend, the median over the pairs of the other checkout's CPU
time divided by this one's: 2.0 means half the CPU time of the other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
COUNT = 5000
CALLS = 1000


class Watch:
    """CPU seconds of this process for each path, taken once each."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, path: str, run: Callable[[], Any]) -> None:
        """Run a path once."""
        started = time.process_time()
        run()
        self.seconds[path] = time.process_time() - started


def fill(q: Any) -> None:
    """Publish messages for a path to consume."""
    q.publish_many([{"n": n} for n in range(COUNT)], key="k")


async def read(q: Any, *, ack: bool) -> None:
    """Consume everything with ``async for``."""
    stream = q.consume()
    left = COUNT
    async for message in stream:
        left -= 1
        if ack or not left:
            await message.ack()
        if not left:
            break
    await stream.aclose()


async def handle(q: Any, concurrency: int) -> None:
    """Consume everything with a consumer."""
    import abe

    left = COUNT

    async def handler(message: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            stopping.append(asyncio.ensure_future(consumer.shutdown()))

    stopping: list[asyncio.Future[None]] = []
    consumer = abe.AsyncLoopConsumer(q, concurrency=concurrency)
    await consumer.run(handler)


def facade(watch: Watch, q: Any) -> None:
    """The paths of the synchronous side, and of its awaitable client."""
    watch.time("q.publish", lambda: [q.publish("k", {"n": n}) for n in range(CALLS)])
    watch.time("q.take(1)", lambda: [q.take(1) for _ in range(CALLS)])
    watch.time("q.publish_many", lambda: fill(q))
    watch.time("q.consume", lambda: sum(1 for _ in q.consume(limit=COUNT)))
    fill(q)
    watch.time("q.consume, m.ack()", lambda: [m.ack() for m in q.consume(limit=COUNT)])
    fill(q)
    watch.time("q.aio.consume", lambda: asyncio.run(read(q.aio, ack=False)))
    fill(q)
    watch.time("q.aio.consume, m.ack()", lambda: asyncio.run(read(q.aio, ack=True)))


async def direct(watch: Watch) -> None:
    """The paths of the asynchronous side."""
    import abe

    async def timed(path: str, awaitable: Any) -> None:
        started = time.process_time()
        await awaitable
        watch.seconds[path] = time.process_time() - started

    async def publish_each(q: Any) -> None:
        for n in range(COUNT):
            await q.publish("k", {"n": n})

    async with abe.aconnect("memory", env={"ABE_MEMORY_NAME": "direct"}) as q:
        await timed("publish", publish_each(q))
        await timed("async for", read(q, ack=False))
        for concurrency in (1, 16):
            await q.publish_many([{"n": n} for n in range(COUNT)], key="k")
            await timed(f"consumer of {concurrency}", handle(q, concurrency))


def measure() -> None:
    """Measure the abe that is imported, and print the seconds."""
    import abe

    logging.disable(logging.CRITICAL)
    watch = Watch()
    with abe.connect("memory") as q:
        facade(watch, q)
    asyncio.run(direct(watch))
    print(json.dumps(watch.seconds))


def run(checkout: Path) -> dict[str, float]:
    """Measure a checkout in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, str(Path(__file__).resolve()), "--measure"]
    done = subprocess.run(command, env=env, cwd=checkout, capture_output=True, check=True)
    seconds: dict[str, float] = json.loads(done.stdout)
    return seconds


def main(arguments: list[str]) -> None:
    """Compare two checkouts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path)
    parser.add_argument("--pairs", type=int, default=20)
    options = parser.parse_args(arguments)
    pairs = [(run(options.other.resolve()), run(HERE)) for _ in range(options.pairs)]
    print(f"| path | other, µs | here, µs | ratio, median of {options.pairs} |\n|---|---|---|---|")
    for path in pairs[0][1]:
        count = CALLS if path in {"q.publish", "q.take(1)"} else COUNT
        other, here = ([pair[side][path] / count * 1e6 for pair in pairs] for side in (0, 1))
        ratio = statistics.median(a / b for a, b in zip(other, here, strict=True))
        print(
            f"| {path} | {statistics.median(other):.1f} | {statistics.median(here):.1f}"
            f" | {ratio:.2f} |"
        )


if __name__ == "__main__":
    if sys.argv[1:] == ["--measure"]:
        measure()
    else:
        main(sys.argv[1:])
