"""The engine, the memory backend, the facade and the imports, beside their peers.

    python benchmarks/core.py [--quick] [--rounds N] [--only WORD] [--json FILE]

Needs the dependency group ``bench``.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _harness import Case, Options, Peer, Stopwatch, Target, main
from kombu import Connection, Exchange, Queue

import abe
from abe.backends.message_queue.base import (
    BaseBackend,
    Capabilities,
    Delivery,
    Message,
    MessageStream,
    SettleFailure,
    Settlement,
    Subscription,
)
from abe.backends.message_queue.service.memory import MemoryBackend
from abe.backends.message_queue.service.sqlite import SQLiteBackend
from abe.sync.portal import get_portal

KEY = "orders.eu.created"


def payload(n: int) -> dict[str, Any]:
    """Return an order, about 200 bytes of JSON."""
    return {
        "order": n,
        "customer": {"id": 48_151 + n % 1000, "name": "Ada Lovelace", "city": "Zürich"},
        "items": [{"sku": "AB-1234", "count": 2, "price": 12.5}, {"sku": "CD-9", "count": 1}],
        "total": 31.75,
        "paid": True,
    }


def timed(work: Callable[[int, Stopwatch], Coroutine[Any, Any, None]], size: int) -> Any:
    """Return a peer that runs ``work`` in an event loop and counts ``size`` operations."""

    def peer(folder: Path, options: Options) -> float:
        watch, count = Stopwatch(), options.size(size)
        asyncio.run(work(count, watch))
        return watch.rate(count)

    return peer


# -- memory ------------------------------------------------------------------------------------


async def abe_publish(count: int, watch: Stopwatch) -> None:
    """One awaited publish after the other."""
    payloads = [payload(n) for n in range(count)]
    async with MemoryBackend(uuid.uuid4().hex) as backend:
        with watch.timing():
            for item in payloads:
                await backend.publish(KEY, item)
        await backend.purge()


async def abe_publish_many(count: int, watch: Stopwatch) -> None:
    """One call for all."""
    payloads = [payload(n) for n in range(count)]
    async with MemoryBackend(uuid.uuid4().hex) as backend:
        with watch.timing():
            await backend.publish_many(payloads, key=KEY)
        await backend.purge()


async def abe_consume(count: int, watch: Stopwatch) -> None:
    """A plain loop, acking on resume; every message is a new copy."""
    async with MemoryBackend(uuid.uuid4().hex) as backend:
        await backend.publish_many([payload(n) for n in range(count)], key=KEY)
        seen = 0
        with watch.timing():
            async with backend.consume() as stream:
                async for message in stream:
                    seen += 1
                    if seen == count:
                        await message.ack()
                        break
        assert (await backend.stats()).total("ready") == 0


def kombu_publish(folder: Path, options: Options) -> float:
    """Through a Producer, JSON encoded."""
    watch, count = Stopwatch(), options.size(20_000)
    payloads = [payload(n) for n in range(count)]
    with Connection("memory://") as connection:
        queue = kombu_queue(connection)
        producer = connection.Producer(exchange=queue.exchange, serializer="json")
        with watch.timing():
            for item in payloads:
                producer.publish(item, routing_key=KEY)
        queue.purge()
    return watch.rate(count)


def kombu_consume(folder: Path, options: Options) -> float:
    """Through a Consumer with a callback: decode, ack."""
    watch, count = Stopwatch(), options.size(20_000)
    seen = 0

    def handle(body: Any, message: Any) -> None:
        nonlocal seen
        assert body["paid"]
        message.ack()
        seen += 1

    with Connection("memory://") as connection:
        queue = kombu_queue(connection)
        producer = connection.Producer(exchange=queue.exchange, serializer="json")
        for n in range(count):
            producer.publish(payload(n), routing_key=KEY)
        with connection.Consumer(queue, callbacks=[handle]), watch.timing():
            while seen < count:
                connection.drain_events(timeout=1)
    return watch.rate(count)


def kombu_queue(connection: Connection) -> Queue:
    """Return a queue of its own, declared."""
    name = uuid.uuid4().hex
    queue = Queue(name, Exchange(name), routing_key=KEY)(connection)
    queue.declare()
    return queue


def simple_put(folder: Path, options: Options) -> float:
    """Through a SimpleQueue, JSON encoded."""
    watch, count = Stopwatch(), options.size(20_000)
    payloads = [payload(n) for n in range(count)]
    with Connection("memory://") as connection:
        queue = connection.SimpleQueue(uuid.uuid4().hex)
        with watch.timing():
            for item in payloads:
                queue.put(item, serializer="json")
        queue.clear()
        queue.close()
    return watch.rate(count)


def simple_get(folder: Path, options: Options) -> float:
    """Through a SimpleQueue: get, decode, ack."""
    watch, count = Stopwatch(), options.size(20_000)
    with Connection("memory://") as connection:
        queue = connection.SimpleQueue(uuid.uuid4().hex)
        for n in range(count):
            queue.put(payload(n), serializer="json")
        with watch.timing():
            for _ in range(count):
                message = queue.get(block=True)
                assert message.payload["paid"]
                message.ack()
        queue.close()
    return watch.rate(count)


async def queue_put(count: int, watch: Stopwatch) -> None:
    """asyncio.Queue: references, no copies, no acks."""
    payloads = [payload(n) for n in range(count)]
    queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    with watch.timing():
        for item in payloads:
            await queue.put(item)


async def queue_get(count: int, watch: Stopwatch) -> None:
    """asyncio.Queue: references, no copies, no acks."""
    queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    for n in range(count):
        queue.put_nowait(payload(n))
    with watch.timing():
        for _ in range(count):
            await queue.get()


async def json_encode(count: int, watch: Stopwatch) -> None:
    """What encoding alone costs."""
    payloads = [payload(n) for n in range(count)]
    with watch.timing():
        for item in payloads:
            json.dumps(item, ensure_ascii=False, allow_nan=False)


async def json_decode(count: int, watch: Stopwatch) -> None:
    """What decoding alone costs."""
    texts = [json.dumps(payload(n)) for n in range(count)]
    with watch.timing():
        for text in texts:
            json.loads(text)


# -- the engine alone --------------------------------------------------------------------------


class Scripted:
    """A receiver that hands out ready-made messages and accepts everything."""

    lease: float | None = 30.0

    def __init__(self, count: int) -> None:
        self._left = count
        self._body = payload(0)

    async def open(self) -> None:
        """Nothing to open."""

    async def receive(self, max_messages: int, timeout: float) -> Sequence[Delivery]:
        """Return what is left."""
        count = min(max_messages, self._left)
        self._left -= count
        if not count:
            await asyncio.Event().wait()
        return [Delivery(Message(self._body, "id", KEY, 0.0), None) for _ in range(count)]

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleFailure]:
        """Accept."""
        return ()

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Delivery]:
        """Accept."""
        return ()

    def wake(self) -> None:
        """Not needed: a run ends before it waits."""

    async def aclose(self) -> None:
        """Nothing to close."""


async def engine_stream(count: int, watch: Stopwatch) -> None:
    """A loop over a `MessageStream` on a receiver that costs next to nothing."""
    can = Capabilities(redelivery="message", release=True, attempts="exact", lease=30.0)
    # One more than is consumed, so that nobody waits and the run can end.
    receiver = Scripted(count + 1024)
    subscription = Subscription(lambda: receiver, capabilities=can, backend="scripted")
    async with MessageStream(subscription) as stream:
        seen = 0
        with watch.timing():
            async for _ in stream:
                seen += 1
                if seen == count:
                    break
        receiver._left = 1 << 30


async def engine_construction(count: int, watch: Stopwatch) -> None:
    """Building the messages alone, as the scripted receiver does."""
    body = payload(0)
    with watch.timing():
        for _ in range(count):
            Delivery(Message(body, "id", KEY, 0.0), None)


# -- the facade --------------------------------------------------------------------------------


async def _nothing() -> None:
    """Do nothing, on the loop."""


def bare_round_trip(folder: Path, options: Options) -> float:
    """`run_coroutine_threadsafe` into a loop on a thread of its own, and back."""
    watch, count = Stopwatch(), options.size(10_000)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    with watch.timing():
        for _ in range(count):
            asyncio.run_coroutine_threadsafe(_nothing(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    return watch.rate(count)


def portal_round_trip(folder: Path, options: Options) -> float:
    """The facade's own call."""
    watch, count = Stopwatch(), options.size(10_000)
    portal = get_portal()
    with watch.timing():
        for _ in range(count):
            portal.call(_nothing())
    return watch.rate(count)


def facade_iteration(folder: Path, options: Options) -> float:
    """``for message in q.consume()``."""
    watch, count = Stopwatch(), options.size(20_000)
    with abe.connect(MemoryBackend(uuid.uuid4().hex)) as q:
        q.publish_many([payload(n) for n in range(count)], key=KEY)
        with watch.timing():
            seen = sum(1 for _ in q.consume(limit=count))
        assert seen == count
    return watch.rate(count)


def facade_one_by_one(folder: Path, options: Options) -> float:
    """A round trip into the event loop for each message, as a naive facade would make."""
    watch, count = Stopwatch(), options.size(4_000)
    backend = MemoryBackend(uuid.uuid4().hex)
    portal = get_portal()

    async def opened() -> MessageStream:
        await backend.publish_many([payload(n) for n in range(count)], key=KEY)
        return backend.consume()

    stream = portal.call(opened())
    with watch.timing():
        for _ in range(count):
            portal.call(anext(stream))
    portal.call(stream.aclose())
    return watch.rate(count)


def in_memory(folder: Path) -> MemoryBackend:
    """Return an empty backend."""
    return MemoryBackend(uuid.uuid4().hex)


def in_file(folder: Path) -> SQLiteBackend:
    """Return an empty durable backend."""
    return SQLiteBackend(folder / "queue.sqlite3")


def one_by_one(q: abe.SyncBackend, payloads: list[dict[str, Any]]) -> None:
    """Publish in a loop."""
    for item in payloads:
        q.publish(KEY, item)


def at_once(q: abe.SyncBackend, payloads: list[dict[str, Any]]) -> None:
    """Publish with one call."""
    q.publish_many(payloads, key=KEY)


def facade(work: Callable[..., None], make: Callable[[Path], BaseBackend], size: int) -> Peer:
    """Return a peer: ``work`` through the facade of the backend that ``make`` returns."""

    def peer(folder: Path, options: Options) -> float:
        watch, count = Stopwatch(), options.size(size)
        payloads = [payload(n) for n in range(count)]
        with abe.connect(make(folder)) as q:
            with watch.timing():
                work(q, payloads)
            q.purge()
        return watch.rate(count)

    return peer


# -- starting up -------------------------------------------------------------------------------


def process(*code: str) -> Callable[[Path, Options], float]:
    """Return a peer that reports the milliseconds which a fresh interpreter takes for ``code``."""

    def peer(folder: Path, options: Options) -> float:
        times = []
        for _ in range(options.size(20)):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", "\n".join(code)], check=True)
            times.append((time.perf_counter() - started) * 1000)
        return statistics.median(times)

    return peer


SHELL = (
    "from IPython.core.interactiveshell import InteractiveShell",
    "shell = InteractiveShell.instance()",
)

KOMBU = "kombu memory://"
SIMPLE = "kombu memory://, SimpleQueue"
COPIES = (
    "A message is copied once in and once out, so that nobody can change what another receives: by"
    " abe after a check that it is JSON, by kombu as JSON. The peer is kombu with its Producer and"
    " Consumer, as a service uses it; SimpleQueue, built on them, is for comparison."
)

CASES = [
    Case(
        "Publish, in memory",
        KOMBU,
        {
            "abe memory": timed(abe_publish, 20_000),
            KOMBU: kombu_publish,
            SIMPLE: simple_put,
            "asyncio.Queue (no copy, no ack)": timed(queue_put, 20_000),
            "json.dumps alone": timed(json_encode, 20_000),
        },
        [Target("abe memory", 4.0, [KOMBU]), Target("abe memory", 1.0, ["json.dumps alone"])],
        COPIES,
    ),
    Case(
        "Consume with ack, in memory",
        KOMBU,
        {
            "abe memory": timed(abe_consume, 20_000),
            KOMBU: kombu_consume,
            SIMPLE: simple_get,
            "asyncio.Queue (no copy, no ack)": timed(queue_get, 20_000),
            "json.loads alone": timed(json_decode, 20_000),
        },
        [Target("abe memory", 4.0, [KOMBU])],
        COPIES,
    ),
    Case(
        "The engine alone",
        "building messages",
        {
            "stream over a scripted receiver": timed(engine_stream, 100_000),
            "building messages": timed(engine_construction, 100_000),
        },
        notes="No JSON, no broker. The difference is what the engine costs.",
    ),
    Case(
        "A blocking call",
        "run_coroutine_threadsafe().result()",
        {
            "facade": portal_round_trip,
            "run_coroutine_threadsafe().result()": bare_round_trip,
        },
        [Target("facade", 1 / 1.2, ["run_coroutine_threadsafe().result()"])],
        unit="calls/s",
    ),
    Case(
        "Iterate through the facade",
        "a round trip for each",
        {
            "for message in q.consume()": facade_iteration,
            "a round trip for each": facade_one_by_one,
            "async for": timed(abe_consume, 20_000),
        },
        [
            Target("for message in q.consume()", 5.0, ["a round trip for each"]),
            Target("for message in q.consume()", 0.6, ["async for"]),
        ],
    ),
    Case(
        "Publish 10,000 through the facade, in memory",
        "a loop of publish",
        {
            "publish_many": facade(at_once, in_memory, 10_000),
            "a loop of publish": facade(one_by_one, in_memory, 10_000),
            "publish_many, async": timed(abe_publish_many, 10_000),
        },
        [
            Target("publish_many", 20.0, ["a loop of publish"]),
            Target("publish_many", 0.9, ["publish_many, async"]),
        ],
        "What remains of publish_many is to check and copy the payloads.",
    ),
    Case(
        "Publish 10,000 through the facade, in a file",
        "a loop of publish",
        {
            "publish_many": facade(at_once, in_file, 10_000),
            "a loop of publish": facade(one_by_one, in_file, 1_000),
        },
        [Target("publish_many", 20.0, ["a loop of publish"])],
        "The loop publishes 1,000, each of them durable before the next.",
    ),
    Case(
        "Starting up",
        "python -c pass",
        {
            "python -c pass": process("pass"),
            "import abe": process("import abe"),
            "import abe; abe.connect": process("import abe", "abe.connect"),
            "an IPython shell": process(*SHELL),
            "an IPython shell, %load_ext abe": process(
                *SHELL, "shell.run_line_magic('load_ext', 'abe')"
            ),
        },
        notes="Targets: `import abe` at most 30 ms over `pass`; `%load_ext abe` at most 150 ms.",
        unit="ms",
    ),
]

if __name__ == "__main__":
    main("The core of abe", CASES)
