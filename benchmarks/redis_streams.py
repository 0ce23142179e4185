"""The Redis backend beside raw redis.asyncio, FastStream, kombu and taskiq-redis.

Run it as ``python benchmarks/redis_streams.py [--quick] [--rounds N] [--only WORD]``.

One server for all (``appendonly yes``, ``appendfsync everysec``), the same payload of about 200
bytes of JSON, encoded and decoded by every peer. Needs the dependency group ``bench``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import random
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import redis.asyncio
from _harness import Case, Stopwatch, Target, main

from abe_backend_redis.backend import RedisBackend
from abe_backend_redis.testing import RedisServer

Run = Callable[[Path, Any], float]

KEY = "orders.eu.created"
BATCH = 500
PUBLISHERS = 100
COUNT = 20_000
SINGLE = 5_000
server = RedisServer(options={"appendfsync": "everysec"})


def payload(n: int) -> dict[str, Any]:
    """Return an order, about 200 bytes of JSON."""
    return {
        "order": n,
        "customer": {"id": 48_151 + n % 1000, "name": "Ada Lovelace", "city": "Zürich"},
        "items": [{"sku": "AB-1234", "count": 2, "price": 12.5}, {"sku": "CD-9", "count": 1}],
        "total": 31.75,
        "paid": True,
    }


@asynccontextmanager
async def raw() -> AsyncIterator[redis.asyncio.Redis]:
    """A client on an empty server."""
    client = redis.asyncio.Redis.from_url(server.url)
    try:
        await client.flushall()
        yield client
    finally:
        await client.aclose()


@asynccontextmanager
async def backend() -> AsyncIterator[RedisBackend]:
    """A backend on an empty server, warm."""
    async with raw():
        pass
    async with RedisBackend(server.url) as made:
        await made.publish("warm", payload(0))
        await made.purge()
        yield made


def server_cpu() -> float:
    """Return the CPU seconds of all threads of the server; on Linux, else not a number."""
    if sys.platform != "linux":
        return math.nan
    threads = Path(f"/proc/{server.pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def peer(measure: Callable[[Any, Any], Coroutine[Any, Any, int]]) -> Run:
    """Turn a coroutine function, which returns how many it did, into a peer."""

    def run(folder: Path, options: Any) -> float:
        watch = Stopwatch(server_cpu)
        count = asyncio.run(measure(options, watch))
        return watch.rate(count)

    return run


# -- publishing ----------------------------------------------------------------------------


@peer
async def publish_one_by_one(options: Any, watch: Any) -> int:
    """``await publish`` in a loop."""
    count = options.size(SINGLE)
    async with backend() as queue:
        with watch.timing():
            for n in range(count):
                await queue.publish(KEY, payload(n))
    return count


@peer
async def raw_one_by_one(options: Any, watch: Any) -> int:
    """``await xadd`` in a loop."""
    count = options.size(SINGLE)
    async with raw() as client:
        with watch.timing():
            for n in range(count):
                await client.xadd(KEY, {"p": json.dumps(payload(n))})
    return count


def publish_many(keys: int) -> Run:
    """``await publish_many`` of 500 at a time."""

    @peer
    async def run(options: Any, watch: Any) -> int:
        count = options.size(COUNT)
        async with backend() as queue:
            with watch.timing():
                for first in range(0, count, BATCH):
                    numbers = range(first, first + BATCH)
                    if keys == 1:
                        await queue.publish_many(map(payload, numbers), key=KEY)
                    else:
                        items = ((f"{KEY}.{n % keys}", payload(n)) for n in numbers)
                        await queue.publish_many(items)
        return count

    return run


@peer
async def raw_pipelines(options: Any, watch: Any) -> int:
    """Pipelines of 500 XADD."""
    count = options.size(COUNT)
    async with raw() as client:
        with watch.timing():
            for first in range(0, count, BATCH):
                pipe = client.pipeline(transaction=False)
                for n in range(first, first + BATCH):
                    pipe.xadd(KEY, {"p": json.dumps(payload(n))})
                await pipe.execute()
    return count


@peer
async def publish_concurrently(options: Any, watch: Any) -> int:
    """A hundred tasks, each awaiting one publish at a time."""
    each = options.size(COUNT) // PUBLISHERS

    async with backend() as queue:

        async def publisher(first: int) -> None:
            for n in range(first, first + each):
                await queue.publish(KEY, payload(n))

        with watch.timing():
            await asyncio.gather(*(publisher(i * each) for i in range(PUBLISHERS)))
    return PUBLISHERS * each


@peer
async def raw_concurrently(options: Any, watch: Any) -> int:
    """A hundred tasks, each awaiting one XADD at a time, on the driver's pool."""
    each = options.size(COUNT) // PUBLISHERS
    async with raw() as client:

        async def publisher(first: int) -> None:
            for n in range(first, first + each):
                await client.xadd(KEY, {"p": json.dumps(payload(n))})

        with watch.timing():
            await asyncio.gather(*(publisher(i * each) for i in range(PUBLISHERS)))
    return PUBLISHERS * each


# -- consuming -----------------------------------------------------------------------------


def consume(keys: int) -> Run:
    """``async for``, every message acked and every ack accepted."""

    @peer
    async def run(options: Any, watch: Any) -> int:
        count = options.size(COUNT)
        async with backend() as queue, queue.consume() as stream:
            await queue.publish_many((f"{KEY}.{n % keys}", payload(n)) for n in range(count))
            with watch.timing():
                left = count
                async for message in stream:
                    assert message["paid"]
                    left -= 1
                    if not left:
                        await message.ack()
                        break
                await stream.flush()
        return count

    return run


async def _fill(client: redis.asyncio.Redis, count: int) -> None:
    for first in range(0, count, BATCH):
        pipe = client.pipeline(transaction=False)
        for n in range(first, min(first + BATCH, count)):
            pipe.xadd(KEY, {"p": json.dumps(payload(n))})
        await pipe.execute()


def raw_consume(*, delete: bool) -> Run:
    """XREADGROUP of 500, decode, XACK all."""

    @peer
    async def run(options: Any, watch: Any) -> int:
        count = options.size(COUNT)
        async with raw() as client:
            await client.xgroup_create(KEY, "g", id="0", mkstream=True)
            await _fill(client, count)
            with watch.timing():
                left = count
                while left:
                    answer: Any = await client.xreadgroup("g", "c", {KEY: ">"}, count=BATCH)
                    streams = answer.items() if isinstance(answer, dict) else answer
                    for _, entries in streams:
                        if entries and isinstance(entries[0], list):
                            (entries,) = entries
                        ids = []
                        for id_, fields in entries:
                            assert json.loads(fields[b"p"])["paid"]
                            ids.append(id_)
                        await client.xack(KEY, "g", *ids)
                        if delete:
                            await client.xdel(KEY, *ids)
                        left -= len(ids)
        return count

    return run


@peer
async def faststream(options: Any, watch: Any) -> int:
    """A subscriber of a stream in a group, as the documentation shows it."""
    from faststream import AckPolicy
    from faststream.redis import RedisBroker, StreamSub

    count = options.size(2_000)
    done = asyncio.Event()
    broker = RedisBroker(server.url, logger=None)
    left = count

    @broker.subscriber(
        stream=StreamSub(KEY, group="g", consumer="c", last_id=">"), ack_policy=AckPolicy.ACK
    )
    async def handle(message: dict[str, Any]) -> None:
        nonlocal left
        assert message["paid"]
        left -= 1
        if not left:
            done.set()

    async with raw() as client:
        await client.xgroup_create(KEY, "g", id="0", mkstream=True)
        async with broker:
            for n in range(count):
                await broker.publish(payload(n), stream=KEY)
            with watch.timing():
                await broker.start()
                await done.wait()
    return count


@peer
async def taskiq(options: Any, watch: Any) -> int:
    """``listen`` of RedisStreamBroker, acking each message."""
    from taskiq import BrokerMessage
    from taskiq_redis import RedisStreamBroker

    count = options.size(2_000)
    async with raw():
        pass
    broker = RedisStreamBroker(server.url, queue_name="tasks")
    await broker.startup()
    for n in range(count):
        body = json.dumps(payload(n)).encode()
        await broker.kick(BrokerMessage(task_id=str(n), task_name="t", message=body, labels={}))
    with watch.timing():
        left = count
        async for message in broker.listen():
            assert json.loads(message.data)["paid"]
            await message.ack()
            left -= 1
            if not left:
                break
    await broker.shutdown()
    return count


def kombu(folder: Path, options: Any) -> float:
    """``get`` and ``ack`` of SimpleQueue: Redis lists, synchronous."""
    from kombu import Connection

    count = options.size(2_000)
    watch = Stopwatch(server_cpu)

    async def empty() -> None:
        async with raw():
            pass

    asyncio.run(empty())
    with Connection(server.url) as connection:
        queue = connection.SimpleQueue("orders")
        for n in range(count):
            queue.put(payload(n), serializer="json")
        with watch.timing():
            for _ in range(count):
                message = queue.get()
                assert message.payload["paid"]
                message.ack()
        queue.close()
    return watch.rate(count)


# -- latency -------------------------------------------------------------------------------


@peer
async def latency(options: Any, watch: Any) -> int:
    """From publish to receipt, both in this process, one message at a time."""
    count = options.size(2_000)
    async with backend() as queue, queue.consume() as stream:
        with watch.timing():
            for n in range(count):
                await queue.publish(KEY, payload(n))
                await anext(stream)
    return count


RAW = "raw redis.asyncio"
RAW_DELETES = "raw, and XDEL"
MANY = "abe publish_many(500)"
MANY_KEYS = f"{MANY}, 1,000 keys"
CASES = [
    Case(
        "Publish, awaited one by one",
        RAW,
        {"abe": publish_one_by_one, RAW: raw_one_by_one},
        [Target("abe", 0.9, [RAW])],
        "raw: await xadd(...).",
    ),
    Case(
        "Publish many",
        RAW,
        {MANY: publish_many(1), MANY_KEYS: publish_many(1000), RAW: raw_pipelines},
        [
            Target(MANY, 0.9, [RAW]),
            Target(MANY, 1.5, [RAW], server=True),
            Target(MANY_KEYS, 1.5, [RAW], server=True),
        ],
        "raw: pipelines of 500 XADD.",
    ),
    Case(
        "Publish, 100 concurrent publishers",
        RAW,
        {"abe": publish_concurrently, RAW: raw_concurrently},
        [Target("abe", 1.5, [RAW])],
        "raw: gather of 100 tasks, each awaiting one xadd at a time.",
    ),
    Case(
        "Consume with acks",
        RAW,
        {
            "abe": consume(1),
            "abe, 1,000 keys": consume(1000),
            RAW: raw_consume(delete=False),
            RAW_DELETES: raw_consume(delete=True),
            "FastStream": faststream,
            "taskiq-redis": taskiq,
            "kombu": kombu,
        },
        [
            Target("abe", 0.9, [RAW]),
            Target("abe", 20, ["FastStream"]),
            Target("abe, 1,000 keys", 0.9, ["abe"]),
            Target("abe", 1.4, [RAW_DELETES], server=True),
            Target("abe, 1,000 keys", 1.4, [RAW_DELETES], server=True),
        ],
        "raw: XREADGROUP of 500, json.loads, XACK of 500. abe also deletes what is settled.\n"
        "kombu has no streams: lists, synchronous.",
    ),
    Case(
        "Publish and receive one message at a time",
        "abe",
        {"abe": latency},
        unit="round trips/s",
    ),
]

if __name__ == "__main__":
    logging.disable(logging.WARNING)
    os.environ.setdefault("PYTHONHASHSEED", "0")
    random.seed()
    with server:
        main("Redis", CASES)
