"""The SQS backend beside raw aiobotocore, both against moto on this machine.

Run it as ``python benchmarks/sqs.py [--quick] [--rounds N] [--only WORD]``.

moto answers one request at a time and is itself the bottleneck, so these numbers compare what abe
adds to each call; they say nothing of AWS. The same payload of about 200 bytes of JSON, encoded and
decoded by every peer. Needs the dependency group ``test``.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _harness import Case, Stopwatch, Target, main
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session

from abe_backend_sqs.backend import SqsBackend
from abe_backend_sqs.link import Access
from abe_backend_sqs.testing import REGION, SqsServer

Run = Callable[[Path, Any], float]

KEY = "orders.eu.created"
BATCH = 10
COUNT = 1_000
PARALLEL = 8
server = SqsServer(longest_wait=1.0)
numbers = itertools.count()


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
async def raw() -> AsyncIterator[tuple[Any, str]]:
    """A client, warm, and the URL of an empty queue."""
    url = server.create_queue(f"raw-{next(numbers)}")
    async with get_session().create_client(
        "sqs",
        region_name=REGION,
        endpoint_url=server.endpoint,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        config=AioConfig(max_pool_connections=1000),
    ) as client:
        await client.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
        yield client, url


@asynccontextmanager
async def backend() -> AsyncIterator[SqsBackend]:
    """A backend on an empty queue, warm."""
    name = f"abe-{next(numbers)}"
    server.create_queue(name)
    access = Access(REGION, None, "testing", "testing")
    async with SqsBackend(name, endpoint=server.endpoint, access=access, wait=1) as made:
        await made.publish("warm", payload(0))
        await made.purge()
        yield made


def peer(measure: Callable[[Any, Any], Coroutine[Any, Any, int]]) -> Run:
    """Turn a coroutine function, which returns how many it did, into a peer."""

    def run(folder: Path, options: Any) -> float:
        watch = Stopwatch()
        count = asyncio.run(measure(options, watch))
        return float(watch.rate(count))

    return run


def parts(n: int) -> dict[str, Any]:
    """Return a message with a key and an id, as every peer sends them."""
    values = {"abe-key": KEY, "abe-id": f"{n}-{secrets.token_hex(8)}"}
    return {
        "MessageBody": json.dumps(payload(n)),
        "MessageAttributes": {
            name: {"DataType": "String", "StringValue": value} for name, value in values.items()
        },
    }


def entries(first: int) -> list[dict[str, Any]]:
    """Return a batch for ``SendMessageBatch``."""
    return [{"Id": str(n), **parts(n)} for n in range(first, first + BATCH)]


@peer
async def publish_one_by_one(options: Any, watch: Any) -> int:
    """``await publish`` in a loop."""
    count = options.size(COUNT)
    async with backend() as queue:
        with watch.timing():
            for n in range(count):
                await queue.publish(KEY, payload(n))
    return count


@peer
async def raw_one_by_one(options: Any, watch: Any) -> int:
    """``await send_message`` in a loop."""
    count = options.size(COUNT)
    async with raw() as (client, url):
        with watch.timing():
            for n in range(count):
                await client.send_message(QueueUrl=url, **parts(n))
    return count


@peer
async def publish_many(options: Any, watch: Any) -> int:
    """``await publish_many`` of everything."""
    count = options.size(COUNT)
    async with backend() as queue:
        with watch.timing():
            await queue.publish_many((payload(n) for n in range(count)), key=KEY)
    return count


@peer
async def raw_batches(options: Any, watch: Any) -> int:
    """``send_message_batch`` of ten, eight at a time."""
    count = options.size(COUNT)
    async with raw() as (client, url):
        starts = iter(range(0, count, BATCH))

        async def send() -> None:
            for first in starts:
                await client.send_message_batch(QueueUrl=url, Entries=entries(first))

        with watch.timing():
            await asyncio.gather(*(send() for _ in range(PARALLEL)))
    return count


def consume(prefetch: int | None) -> Run:
    """``async for``, every message acked and every ack accepted."""

    @peer
    async def run(options: Any, watch: Any) -> int:
        count = options.size(COUNT)
        async with backend() as queue, queue.consume(prefetch=prefetch) as stream:
            await queue.publish_many((payload(n) for n in range(count)), key=KEY)
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


@peer
async def raw_consume(options: Any, watch: Any) -> int:
    """``receive_message`` of ten, decode, ``delete_message_batch``."""
    count = options.size(COUNT)
    async with raw() as (client, url):
        for first in range(0, count, BATCH):
            await client.send_message_batch(QueueUrl=url, Entries=entries(first))
        with watch.timing():
            left = count
            while left:
                answer = await client.receive_message(
                    QueueUrl=url,
                    MaxNumberOfMessages=BATCH,
                    WaitTimeSeconds=1,
                    MessageAttributeNames=["All"],
                )
                found = answer.get("Messages", ())
                for message in found:
                    assert json.loads(message["Body"])["paid"]
                done = [
                    {"Id": str(n), "ReceiptHandle": message["ReceiptHandle"]}
                    for n, message in enumerate(found)
                ]
                await client.delete_message_batch(QueueUrl=url, Entries=done)
                left -= len(done)
    return count


RAW = "raw aiobotocore"
MOTO = "Against moto, which is the bottleneck: what abe adds to a call, not what AWS can do."
CASES = [
    Case(
        "SQS: publish, awaited one by one",
        RAW,
        {"abe": publish_one_by_one, RAW: raw_one_by_one},
        notes=f"{MOTO}\nraw: await send_message(...), with the same two attributes.",
    ),
    Case(
        "SQS: publish many",
        RAW,
        {"abe publish_many": publish_many, RAW: raw_batches},
        [Target("abe publish_many", 0.8, [RAW])],
        f"{MOTO}\nraw: send_message_batch of 10, 8 at a time, with the same two attributes.",
    ),
    Case(
        "SQS: consume with acks",
        RAW,
        {"abe, prefetch=20": consume(20), "abe": consume(None), RAW: raw_consume},
        [Target("abe, prefetch=20", 0.8, [RAW])],
        f"{MOTO}\nraw: receive_message of 10, json.loads, delete_message_batch of 10.\n"
        "abe without prefetch receives messages singly, so that a crash counts no attempts of "
        "others.",
    ),
]

if __name__ == "__main__":
    logging.disable(logging.WARNING)
    with server:
        main("SQS", CASES)
