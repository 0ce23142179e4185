"""How the cost of a message on Redis grows with what else is there.

Run it as ``python benchmarks/redis_growth.py [--quick] [--rounds N] [--only WORD]``.

For each number of groups, of keys, of messages that wait, and of messages that a filter leaves out:
CPU time of the server and of the client for each message published, and for each consumed. The
exponent is that of the power law fitted to all numbers of a row: 0 is flat, 1 would grow as the
number does.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from redis_streams import KEY, backend, payload, server, server_cpu

from abe_backend_redis.backend import RedisBackend

MEASURED = 10_000
FILL = 5_000
SIZES = {
    "groups": (1, 10, 100),
    "keys": (1, 1_000, 100_000),
    "backlog": (1_000, 30_000, 1_000_000),
    "left out by a filter": (1_000, 10_000, 100_000),
}
COSTS = ("publish, server", "publish, client", "consume, server", "consume, client")


class Meter:
    """CPU time in µs for each message that a block handles."""

    def __init__(self) -> None:
        self.costs: list[float] = []

    def __enter__(self) -> None:
        self._before = server_cpu(), time.process_time()

    def __exit__(self, *_: object) -> None:
        now = server_cpu(), time.process_time()
        pairs = zip(now, self._before, strict=True)
        self.costs += [(after - before) / MEASURED * 1e6 for after, before in pairs]


async def fill(queue: RedisBackend, keys: Sequence[str]) -> None:
    """Publish one message under each of ``keys``."""
    for first in range(0, len(keys), FILL):
        await queue.publish_many((key, payload(0)) for key in keys[first : first + FILL])


async def measure(what: str, number: int) -> list[float]:
    """Return the four costs of a message beside ``number`` of ``what``."""
    meter = Meter()
    keys = [f"{KEY}.{n % number}" if what == "keys" else KEY for n in range(MEASURED)]
    pattern: list[str] | None = None
    async with backend() as queue, AsyncExitStack() as stack:
        if what == "groups":
            for n in range(1, number):
                async with queue.consume(group=f"group-{n}"):
                    pass
        if what == "left out by a filter":
            pattern = [f"{KEY.partition('.')[0]}.**"]
            stream = await stack.enter_async_context(queue.consume(keys=pattern))
            await fill(queue, [f"user.u{n}" for n in range(number)])
            busy = server_cpu()
            while not await stream.take(1, timeout=1) and server_cpu() > busy + 0.05:
                busy = server_cpu()  # it still puts them aside
        else:
            stream = await stack.enter_async_context(queue.consume())
        if what == "keys":  # all are there, also those that are not measured
            await fill(queue, [f"{KEY}.{n}" for n in range(number)])
        if what == "backlog":
            await fill(queue, [KEY] * number)
        with meter:
            await fill(queue, keys)
        with meter:
            left = MEASURED
            async for message in stream:
                left -= 1
                if not left:
                    await message.ack()
                    break
            await stream.flush()
    return meter.costs


def exponent(numbers: Sequence[int], costs: Sequence[float]) -> float:
    """Return that of the power law that fits best."""
    logs = [math.log(n) for n in numbers]
    return statistics.linear_regression(logs, [math.log(cost) for cost in costs]).slope


def main() -> None:
    """Print one table for each thing that grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="no number above 10,000, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="what contains this")
    options = parser.parse_args()
    print("# Redis: cost of a message, µs of CPU time")
    for what, sizes in SIZES.items():
        if options.only not in what:
            continue
        numbers = [n for n in sizes if not options.quick or n <= 10_000]
        rounds = [
            [asyncio.run(measure(what, n)) for n in numbers]
            for _ in range(1 if options.quick else options.rounds)
        ]
        print(f"\n| {what} | {' | '.join(f'{n:,}' for n in numbers)} | exponent |")
        print(f"|---|{'---:|' * (len(numbers) + 1)}")
        for row, name in enumerate(COSTS):
            medians = [
                statistics.median(costs[column][row] for costs in rounds)
                for column in range(len(numbers))
            ]
            cells = " | ".join(f"{cost:.1f}" for cost in medians)
            print(f"| {name} | {cells} | {exponent(numbers, medians):+.2f} |", flush=True)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    with server:
        main()
