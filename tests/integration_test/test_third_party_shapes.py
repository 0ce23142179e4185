"""A backend that knows nothing of abe's classes works everywhere, in every shape it may have.

Each shape is a distribution of its own, on disk, found through its entry point. None of them
offers more than the three required methods; they are at least once in the simplest way: a message
counts as handled when the iterator is asked for the next one.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

import abe
from abe.types import MessageQueueBackendProtocol

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from tests.conftest import FakeDistribution

pytestmark = pytest.mark.usefixtures("no_providers", "shapes")

STORE = '''
"""What a stranger might write in an afternoon: a list, and a position for each group."""
import asyncio
import os

class Store:
    instances = []

    def __init__(self, label):
        self.label = label
        self.log = []
        self.position = {}
        self.changed = asyncio.Event()
        self.closed = 0
        Store.instances.append(self)

    @classmethod
    def from_env(cls):
        return cls(os.environ.get("THIRD_PARTY_LABEL", ""))

    async def publish(self, key, payload):
        self.log.append({**payload})
        self.changed.set()
        self.changed = asyncio.Event()

    async def read(self, group):
        while True:
            position = self.position.get(group, 0)
            while position >= len(self.log):
                await self.changed.wait()
            yield {**self.log[position]}
            self.position[group] = position + 1
'''

GENERATOR = """
from third_party_generator.store import Store

class Backend(Store):
    async def consume(self, *, group=None):
        async for message in self.read(group):
            yield message
"""

FUNCTION = """
from third_party_function.store import Store

class Messages:
    def __init__(self, source):
        self.source = source

    def __aiter__(self):
        return self

    async def __anext__(self):
        return await self.source.__anext__()

class Backend(Store):
    def consume(self, *, group=None):
        return Messages(self.read(group))
"""

COROUTINE = """
import asyncio
from third_party_coroutine.store import Store

class Backend(Store):
    async def consume(self, *, group=None):
        await asyncio.sleep(0)  # connecting
        return self.read(group)

    async def aclose(self):
        self.closed += 1
"""

SUBCLASS = """
from collections.abc import AsyncIterator
from typing import Any, Self
from abe.types import MessageQueueBackendProtocol
from third_party_subclass.store import Store

class Backend(MessageQueueBackendProtocol):
    def __init__(self) -> None:
        self.store = Store.from_env()

    @classmethod
    def from_env(cls) -> Self:
        return cls()

    async def publish(self, key: str, payload: dict[str, Any]) -> None:
        await self.store.publish(key, payload)

    async def consume(self, *, group: str | None = None) -> AsyncIterator[dict[str, Any]]:
        async for message in self.store.read(group):
            yield message
"""

SEVERAL = """
from third_party_several.store import Store

class One(Store):
    async def consume(self, *, group=None):
        async for message in self.read(group):
            yield message

class Two(Store):
    def consume(self, *, group=None):
        return self.read(group)
"""

SOURCES = {
    "generator": ({"generator": "Backend"}, GENERATOR),
    "function": ({"function": "Backend"}, FUNCTION),
    "coroutine": ({"coroutine": "Backend"}, COROUTINE),
    "subclass": ({"subclass": "Backend"}, SUBCLASS),
    "several": ({"several-one": "One", "several-two": "Two"}, SEVERAL),
}
NAMES = [name for names, _ in SOURCES.values() for name in names]
every_shape = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def shapes(fake_distribution: FakeDistribution) -> None:
    """Install one distribution for each shape."""
    for shape, (classes, source) in SOURCES.items():
        package = f"third_party_{shape}"
        fake_distribution(
            package.replace("_", "-"),
            {name: f"{package}.backend:{class_}" for name, class_ in classes.items()},
            {f"{package}/backend.py": source, f"{package}/store.py": STORE},
        )


async def messages_of(
    backend: MessageQueueBackendProtocol, group: str | None = None
) -> AsyncIterator[dict[str, Any]]:
    """Consume as any caller of the contract must: await what ``consume`` returns if need be."""
    source: Any = backend.consume(group=group)
    if inspect.isawaitable(source):
        source = await source
    async for message in source:
        yield message


async def publish_three(backend: Any) -> None:
    """Publish ``{"n": 0}`` to ``{"n": 2}``."""
    for n in range(3):
        await backend.publish("orders.created", {"n": n})


@every_shape
class TestLoader:
    """Discovery needs nothing but the three methods."""

    def test_is_listed_and_healthy(self, name: str) -> None:
        (info,) = [info for info in abe.list_backends(check=True) if info.name == name]
        assert (info.status, info.error, info.builtin) == ("loaded", None, False)

    def test_is_configured_by_env(self, name: str) -> None:
        backend: Any = abe.load_backend(name, env={"THIRD_PARTY_LABEL": "mine"})
        assert getattr(backend, "store", backend).label == "mine"

    def test_gives_each_group_every_message(self, name: str) -> None:
        async def scenario() -> list[list[dict[str, Any]]]:
            backend = abe.load_backend(name)
            await publish_three(backend)
            received = []
            for group in ("billing", "audit", None):
                source = messages_of(backend, group)
                received.append([await anext(source) for _ in range(3)])
            return received

        assert asyncio.run(scenario()) == [[{"n": 0}, {"n": 1}, {"n": 2}]] * 3


@every_shape
class TestClient:
    """``abe.aconnect`` adds messages and honest errors."""

    def test_messages_arrive_in_order(self, name: str) -> None:
        async def scenario() -> None:
            async with abe.aconnect(name) as queue:
                await publish_three(queue)
                async with queue.consume(group="billing") as stream:
                    taken = await stream.take(2, timeout=10)
                    assert taken == [{"n": 0}, {"n": 1}]
                    assert all(isinstance(message, abe.Message) for message in taken)
                    last = await anext(stream)
                    assert last == {"n": 2}
                    assert (last.id, last.key, last.timestamp, last.attempt) == (None,) * 3 + (1,)
                    assert await last.ack()

        asyncio.run(scenario())

    def test_leaving_the_loop_does_not_count_as_handled(self, name: str) -> None:
        async def scenario() -> None:
            async with abe.aconnect(name) as queue:
                await publish_three(queue)
                for _ in range(2):
                    async with queue.consume() as stream:
                        async for message in stream:
                            assert message == {"n": 0}
                            break
                async with queue.consume() as stream:
                    assert [dict(await anext(stream)) for _ in range(3)] == [
                        {"n": 0},
                        {"n": 1},
                        {"n": 2},
                    ]

        asyncio.run(scenario())


async def handle_three(
    name: str, make: Callable[[list[Any], Callable[[], None]], Any], **options: Any
) -> tuple[list[Any], abe.AsyncLoopConsumer]:
    """Publish three messages and run a consumer until the handler says that it is done."""
    backend = abe.load_backend(name)
    await publish_three(backend)
    seen: list[Any] = []
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    def finish() -> None:  # called in a worker thread by sync handlers
        loop.call_soon_threadsafe(done.set)

    handler = make(seen, finish)
    consumer = abe.AsyncLoopConsumer(backend, "billing", dead_letter_key="failed", **options)
    async with asyncio.TaskGroup() as group:
        group.create_task(consumer.run(handler))
        await done.wait()
        await consumer.shutdown()
    return seen, consumer


@every_shape
class TestConsumer:
    """`abe.AsyncLoopConsumer` brings its policy to any backend."""

    @pytest.mark.parametrize("kind", ["async", "sync", "object"])
    def test_every_kind_of_handler(self, name: str, kind: str) -> None:
        def make(seen: list[Any], finish: Callable[[], None]) -> Any:
            def sync(message: Any) -> None:
                seen.append(message["n"])
                if len(seen) == 3:
                    finish()

            async def coroutine(message: Any) -> None:
                sync(message)

            class Handler:
                async def handle_event(self, event: Any) -> None:
                    sync(event)

            return {"async": coroutine, "sync": sync, "object": Handler()}[kind]

        seen, consumer = asyncio.run(handle_three(name, make))
        assert seen == [0, 1, 2]
        assert (consumer.processed, consumer.failed) == (3, 0)

    def test_failures_are_retried_and_end_in_the_dead_letter_key(self, name: str) -> None:
        def make(seen: list[Any], finish: Callable[[], None]) -> Any:
            async def handler(message: abe.Message) -> None:
                seen.append((message["n"], message.attempt))
                if message["n"] == 1:
                    raise ValueError("cannot")
                if message["n"] == 2:
                    finish()

            return handler

        retry = abe.RetryPolicy(max_attempts=2, base=0.0)
        seen, consumer = asyncio.run(handle_three(name, make, retry=retry))
        assert seen == [(0, 1), (1, 1), (1, 2), (2, 1)]
        assert (consumer.processed, consumer.failed, consumer.dead) == (2, 2, 1)
        store: Any = getattr(consumer.backend, "store", consumer.backend)
        assert store.log[3:] == [{"n": 1}], "the dead letter is published to its key"


@every_shape
class TestFacade:
    """``abe.connect`` makes any backend synchronous."""

    def test_take_and_consume(self, name: str) -> None:
        with abe.connect(name) as queue:
            for n in range(3):
                queue.publish("orders.created", {"n": n})
            assert queue.take(2, timeout=10) == [{"n": 0}, {"n": 1}]
            assert list(queue.consume(limit=1, timeout=10)) == [{"n": 2}]
            assert list(queue.consume(group="audit", limit=3, timeout=10)) == [
                {"n": 0},
                {"n": 1},
                {"n": 2},
            ]

    def test_a_background_worker(self, name: str) -> None:
        done = threading.Event()
        seen: list[int] = []

        def handler(message: Any) -> None:
            seen.append(message["n"])
            if len(seen) == 3:
                done.set()

        with abe.connect(name) as queue:
            worker = queue.worker(handler, group="billing")
            queue.publish_many([{"n": 0}, {"n": 1}, {"n": 2}], key="orders")
            assert done.wait(10)
            worker.stop()
            assert seen == [0, 1, 2]
            assert worker.processed == 3


@pytest.mark.parametrize("opener", [abe.load_backend, abe.aconnect, abe.connect])
def test_a_warning_of_the_choice_points_at_the_callers_line(opener: Callable[[], Any]) -> None:
    """However many layers of abe lie between the caller and the loader."""
    with pytest.warns(UserWarning, match="several backends are installed") as caught:
        opened = opener()
    assert [warning.filename for warning in caught] == [__file__]
    if opener is abe.connect:
        opened.close()


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    """An IPython session of its own, without a history file."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    shell = InteractiveShell(config=Config(HistoryManager={"enabled": False}))
    shell.run_line_magic("load_ext", "abe")
    yield shell
    shell.run_line_magic("unload_ext", "abe")


@every_shape
class TestMagics:
    """The magics know no more than the facade."""

    def test_publish_and_consume(self, name: str, shell: InteractiveShell) -> None:
        shell.run_line_magic("abe_connect", name)
        for n in range(3):
            shell.run_line_magic("abe_publish", f'orders.created {{"n": {n}}}')
        taken = shell.run_line_magic("abe_consume", "-g audit -n 2 -t 10")
        assert list(taken) == [{"n": 0}, {"n": 1}]
        shell.run_line_magic("abe_consume", "-g audit -n 1 -t 10 -o rest")
        assert list(shell.user_ns["rest"]) == [{"n": 2}]
