"""`aconnect`: every extra typed, on any backend, and never a silent no-op."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Self

import pytest

import abe
from abe.backends.message_queue.base import Capabilities, Message, MessageStream
from abe.backends.message_queue.client import AsyncBackend, aconnect
from abe.backends.message_queue.service.memory import MemoryBackend
from abe.errors import (
    BackendClosedError,
    ConfigurationError,
    ConnectionLostError,
    InvalidKeyError,
    PayloadError,
    PublishError,
    UnknownBackendError,
    UnsupportedError,
)
from abe.types import MessageQueueBackendProtocol, QueueStats


class Plain:
    """A backend with the three required methods only, which keeps what it is given as it is."""

    def __init__(self, fail_at: int | None = None, error: Exception | None = None) -> None:
        self.published: list[tuple[Any, ...]] = []
        self.opened: list[dict[str, Any]] = []
        self.fail_at = fail_at
        self.error = error or OSError("disk full")

    @classmethod
    def from_env(cls) -> Self:
        return cls()

    async def publish(self, *args: Any, **extras: Any) -> None:
        if len(self.published) == self.fail_at:
            raise self.error
        self.published.append((*args, extras) if extras else args)

    def consume(self, *, group: str | None = None, **extras: Any) -> Any:
        self.opened.append({"group": group, **extras})
        return self.iterate()

    async def iterate(self) -> AsyncIterator[dict[str, Any]]:
        for _, payload in self.published:
            yield payload


class Generator(Plain):
    """``consume`` is an async generator."""

    async def consume(self, *, group: str | None = None) -> Any:  # type: ignore[override]
        self.opened.append({"group": group})
        for _, payload in self.published:
            yield payload


class Iterator:
    """An async iterator that is no generator: it cannot be closed."""

    def __init__(self, payloads: list[dict[str, Any]]) -> None:
        self.payloads = deque(payloads)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> dict[str, Any]:
        if not self.payloads:
            raise StopAsyncIteration
        return self.payloads.popleft()


class Function(Plain):
    """``consume`` is a plain function that returns an iterator without ``aclose``."""

    def consume(self, *, group: str | None = None) -> Any:  # type: ignore[override]
        self.opened.append({"group": group})
        return Iterator([payload for _, payload in self.published])


class Iterable(Plain):
    """``consume`` returns something iterable that is not its own iterator."""

    def consume(self, *, group: str | None = None) -> Any:  # type: ignore[override]
        self.opened.append({"group": group})
        outer = self

        class Messages:
            def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
                return outer.iterate()

        return Messages()


class Connecting(Plain):
    """``consume`` is a coroutine function that returns an iterator, and it can be closed."""

    closed = 0

    async def consume(self, *, group: str | None = None) -> Any:  # type: ignore[override]
        self.opened.append({"group": group})
        await asyncio.sleep(0)
        return self.iterate()

    async def aclose(self) -> None:
        self.closed += 1


class Typed(MessageQueueBackendProtocol):
    """Subclasses the protocol explicitly."""

    def __init__(self) -> None:
        self.inner = Plain()

    @property
    def opened(self) -> list[dict[str, Any]]:
        return self.inner.opened

    @classmethod
    def from_env(cls) -> Self:
        return cls()

    async def publish(self, key: str, payload: dict[str, Any]) -> None:
        await self.inner.publish(key, payload)

    def consume(self, *, group: str | None = None) -> AsyncIterator[dict[str, Any]]:
        iterator: AsyncIterator[dict[str, Any]] = self.inner.consume(group=group)
        return iterator


SHAPES = [Plain, Generator, Function, Iterable, Connecting, Typed]
every_shape = pytest.mark.parametrize("shape", SHAPES)

_names = (f"client.{n}" for n in itertools.count())


def memory(**settings: Any) -> MemoryBackend:
    return MemoryBackend(next(_names), **settings)


# -- aconnect --------------------------------------------------------------------------------


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, None]], None]:
    """Run the tests in real time."""
    return asyncio.run


async def test_by_name_with_variables_of_its_own() -> None:
    async with (
        aconnect("memory", env={"ABE_MEMORY_NAME": "client.a"}) as one,
        aconnect("memory", env={"ABE_MEMORY_NAME": "client.b"}) as two,
    ):
        assert isinstance(one, AsyncBackend)
        assert (one.name, repr(one)) == ("memory", "<AsyncBackend memory>")
        await one.publish("k", {"n": 1})
        assert await one.peek() == [{"n": 1}]
        assert await two.peek() == []
    assert repr(one) == "<AsyncBackend memory closed>"


async def test_what_it_opens_is_a_backend_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """So it fits wherever the protocol is asked for, a consumer included."""
    monkeypatch.setenv("QUEUE_BACKEND", "memory")
    monkeypatch.setenv("ABE_MEMORY_NAME", "client.itself")
    backend: MessageQueueBackendProtocol = AsyncBackend.from_env()
    assert isinstance(backend, MessageQueueBackendProtocol)
    async with aconnect() as q:
        await backend.publish("k", {"n": 1})
        consumer = abe.AsyncLoopConsumer(q)

        async def handle(message: Message) -> None:
            assert message == {"n": 1}
            await consumer.shutdown()

        await consumer.run(handle)
        assert consumer.processed == 1


def test_none_chooses_as_load_backend_does(
    monkeypatch: pytest.MonkeyPatch, no_providers: None
) -> None:
    monkeypatch.setenv("QUEUE_BACKEND", "memory")
    monkeypatch.setenv("ABE_MEMORY_NAME", "client.chosen")
    assert isinstance(aconnect().backend, MemoryBackend)
    assert aconnect().backend.store_name == "client.chosen"
    assert aconnect(env={"ABE_MEMORY_NAME": "client.other"}).backend.store_name == "client.other"


def test_what_cannot_be_loaded_fails_at_once() -> None:
    with pytest.raises(UnknownBackendError):
        aconnect("no-such-backend")
    with pytest.raises(ConfigurationError, match="ABE_MEMORY_MAXSIZE"):
        aconnect("memory", env={"ABE_MEMORY_MAXSIZE": "x"})


def test_an_object_is_used_as_it_is_and_takes_no_variables() -> None:
    backend = memory()
    opened = aconnect(backend)
    assert opened.backend is backend
    assert aconnect(opened) is opened
    assert opened.capabilities is backend.capabilities
    with pytest.raises(ConfigurationError, match="env configures a backend by name"):
        aconnect(backend, env={})
    assert aconnect is abe.aconnect


@pytest.mark.parametrize("take", [aconnect, abe.AsyncLoopConsumer])
@pytest.mark.parametrize(
    ("wrong", "text"),
    [(Plain, "this is the class Plain: call it, or its from_env()"), (42, "this is int")],
)
def test_what_is_no_backend_is_refused_at_once(take: Any, wrong: object, text: str) -> None:
    with pytest.raises(TypeError) as caught:
        take(wrong)
    assert str(caught.value) == f"a backend has an async publish() and a consume(); {text}"


async def test_closing_closes_the_backend_once_and_then_everything_is_refused() -> None:
    backend: Any = Connecting()
    async with aconnect(backend) as queue:
        pass
    await queue.aclose()
    assert backend.closed == 1
    calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
        lambda: queue.publish("k", {}),
        lambda: queue.publish_many([]),
        queue.peek,
        queue.stats,
        queue.dead_letters,
        queue.replay,
        queue.groups,
        lambda: queue.delete_group("g"),
        queue.purge,
        queue.ping,
        queue.__aenter__,
    ]
    for call in calls:
        with pytest.raises(BackendClosedError, match="backend 'Connecting' is closed"):
            await call()
    with pytest.raises(BackendClosedError):
        queue.consume()


async def test_closing_closes_the_streams_of_a_first_party_backend() -> None:
    async with aconnect(memory()) as queue:
        await queue.publish("k", {"n": 1})
        stream = queue.consume(group="g")
        assert await anext(stream) == {"n": 1}
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


# -- plain backends --------------------------------------------------------------------------


@every_shape
async def test_every_shape_publishes_and_consumes(shape: type[Plain]) -> None:
    backend = shape()
    async with aconnect(backend) as queue:
        assert queue.capabilities == Capabilities()
        assert queue.name == shape.__name__
        await queue.publish("k", {"n": 1}, headers={}, delay=0.0)
        assert await queue.publish_many([("a", {"n": 2}), ["b", {"n": 3}]]) == 2
        stream = queue.consume(group="g", prefetch=10)
        assert isinstance(stream, MessageStream)
        async with stream:
            messages = [message async for message in stream]
        assert messages == [{"n": 1}, {"n": 2}, {"n": 3}]
        assert {type(m) for m in messages} == {Message}
        assert backend.opened == [{"group": "g"}]


async def test_a_plain_backend_is_given_nothing_but_key_and_payload() -> None:
    backend = Plain()
    async with aconnect(backend) as queue:
        await queue.publish("k", {"n": 1}, headers=None, delay=0)
        assert await queue.publish_many([{"n": 2}], key="many") == 1
    assert backend.published == [("k", {"n": 1}), ("many", {"n": 2})]


EXTRAS: dict[str, tuple[Callable[[AsyncBackend], Any], str]] = {
    "headers": (lambda q: q.publish("k", {}, headers={"a": "b"}), "publish(headers=…)"),
    "delay": (lambda q: q.publish("k", {}, delay=1.0), "publish(delay=…)"),
    "keys": (lambda q: q.consume("a.*"), "consume(keys=…)"),
    "peek": (lambda q: q.peek(), "peek()"),
    "stats": (lambda q: q.stats(), "stats()"),
    "dead_letters": (lambda q: q.dead_letters(), "dead_letters()"),
    "dead_letters ": (lambda q: q.replay(), "replay()"),
    "admin": (lambda q: q.groups(), "groups()"),
    "admin ": (lambda q: q.delete_group("g"), "delete_group()"),
    "admin  ": (lambda q: q.purge(), "purge()"),
    "ping": (lambda q: q.ping(), "ping()"),
}


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("declares", [False, True], ids=["plain", "declares nothing"])
async def test_what_a_backend_cannot_is_unsupported_before_anything_is_sent(
    extra: str, declares: bool
) -> None:
    backend: Any = Plain()
    if declares:
        backend.capabilities = Capabilities()
        backend.name = "modest"
    queue = aconnect(backend)
    call, what = EXTRAS[extra]
    with pytest.raises(UnsupportedError) as caught:
        await call(queue)
    name = "modest" if declares else "Plain"
    assert str(caught.value) == (
        f"backend {name!r} does not support {what} (capability {extra.strip()!r})"
    )
    assert isinstance(caught.value, NotImplementedError)
    assert (backend.published, backend.opened) == ([], [])


async def test_a_backend_that_offers_what_it_does_not_declare_is_not_asked() -> None:
    class Sloppy(Plain):
        async def peek(self, *args: Any, **options: Any) -> list[Any]:
            raise AssertionError("not declared")

    with pytest.raises(UnsupportedError):
        await aconnect(Sloppy()).peek()


async def test_ping_needs_no_capability_only_the_method() -> None:
    class Answers(Plain):
        async def ping(self, timeout: float = 5.0) -> None:
            asked.append(timeout)

    asked: list[float] = []
    await aconnect(Answers()).ping(2.0)
    assert asked == [2.0]


async def test_keys_groups_and_payloads_are_checked_for_backends_that_do_not() -> None:
    backend = Plain()
    queue = aconnect(backend)
    with pytest.raises(InvalidKeyError):
        await queue.publish("a b", {})
    with pytest.raises(PayloadError, match=r'payload\["a"\]\[0\]: set is not JSON'):
        await queue.publish("k", {"a": [{1}]})
    with pytest.raises(InvalidKeyError, match="group"):
        queue.consume(group="a b")
    assert (backend.published, backend.opened) == ([], [])


async def test_the_caller_may_change_a_payload_even_if_the_backend_keeps_it() -> None:
    backend = Plain()
    async with aconnect(backend) as queue:
        payload: dict[str, Any] = {"a": [1]}
        await queue.publish("k", payload)
        payload["a"].append(2)
        row: dict[str, Any] = {}

        def rows() -> Any:
            for n in range(3):
                row["n"] = n
                yield row

        assert await queue.publish_many(rows(), key="k") == 3
    assert [payload for _, payload in backend.published] == [
        {"a": [1]},
        {"n": 0},
        {"n": 1},
        {"n": 2},
    ]


# -- publish_many where the backend cannot ---------------------------------------------------


@pytest.mark.parametrize(
    ("items", "key", "error", "text"),
    [
        ([("k", {}), ("", {})], None, InvalidKeyError, "item 1: key '' is empty"),
        ([("k", {}), ("k", {"a": b""})], None, PayloadError, 'item 1: payload["a"]: bytes is'),
        ([{}, {"a": {1}}], "k", PayloadError, 'item 1: payload["a"]: set is not JSON'),
        ([("k", {}), {"a": 1}], None, PayloadError, "item 1: not a (key, payload) pair; pass"),
        ([("k", {}), ("k", {}, 3)], None, PayloadError, "item 1: not a (key, payload) pair"),
        ([("k", {}), "ab"], None, PayloadError, "item 1: not a (key, payload) pair"),
        ([{"a": 1, "b": 2}], None, PayloadError, "item 0: not a (key, payload) pair; pass key"),
        ([{}], "a b", InvalidKeyError, "key 'a b' contains ' '"),
        ([], "a b", InvalidKeyError, "key 'a b' contains ' '"),
    ],
)
async def test_everything_is_checked_before_anything_is_sent(
    items: list[Any], key: str | None, error: type[Exception], text: str
) -> None:
    plain, native = Plain(), memory()
    backend: Any
    for backend in plain, native:
        with pytest.raises(error) as caught:
            await aconnect(backend).publish_many(items, key=key)
        assert str(caught.value).startswith(text)
    assert plain.published == []
    assert (await native.stats()).entries == ()


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (OSError("disk full"), False),
        (ConnectionLostError("away"), True),
        (ConnectionResetError("reset"), True),
        (TimeoutError("slow"), True),
        (PublishError("full", retryable=True), True),
        (PublishError("too large"), False),
    ],
)
@pytest.mark.parametrize("fail_at", [0, 2, 4])
async def test_a_partial_failure_says_exactly_what_was_published(
    fail_at: int, error: Exception, retryable: bool
) -> None:
    backend = Plain(fail_at, error)
    with pytest.raises(PublishError) as caught:
        await aconnect(backend).publish_many([{"n": n} for n in range(5)], key="k")
    assert str(caught.value) == f"published {fail_at} of 5; item {fail_at} failed: {error}"
    assert list(caught.value.published) == list(range(fail_at))
    assert caught.value.failed == {
        fail_at: str(error),
        **dict.fromkeys(range(fail_at + 1, 5), "not sent"),
    }
    assert caught.value.retryable is retryable
    assert caught.value.__cause__ is error
    assert [payload["n"] for _, payload in backend.published] == list(range(fail_at))


async def test_a_cancelled_publish_many_is_cancelled() -> None:
    class Slow(Plain):
        async def publish(self, *args: Any, **extras: Any) -> None:
            await super().publish(*args)
            await asyncio.sleep(1000)

    backend = Slow()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await aconnect(backend).publish_many([{}, {}], key="k")
    assert len(backend.published) == 1


# -- first-party backends --------------------------------------------------------------------


async def test_every_extra_reaches_a_backend_that_has_it() -> None:
    async with aconnect(memory()) as queue:
        await queue.ping()
        await queue.publish("a.x", {"n": 1}, headers={"h": "1"}, delay=0.001)
        assert await queue.publish_many([("a.y", {"n": 2}), ("b", {"n": 3})]) == 2
        async with queue.consume("a.*", group="g", prefetch=1) as stream:
            messages = sorted(await stream.take(2, timeout=5), key=lambda m: m["n"])
            assert [(m["n"], m.key, m.headers) for m in messages] == [
                (1, "a.x", {"h": "1"}),
                (2, "a.y", {}),
            ]
            await messages[0].reject("no")
        assert await queue.groups() == ["g"]
        assert await queue.peek(["b", "c"], group="g", limit=5) == [{"n": 3}]
        (dead,) = await queue.dead_letters(group="g", limit=1)
        stats = await queue.stats()
        assert isinstance(stats, QueueStats)
        assert (stats.total("ready", group="g"), stats.total("dead", group="g")) == (1, 1)
        assert dead.id is not None
        assert await queue.replay(group="g", ids=[dead.id], limit=1) == 1
        assert await queue.purge("a.*", group="g") == 1
        assert await queue.purge(group="g") == 1
        await queue.delete_group("g")
        assert await queue.groups() == []


async def test_errors_of_a_first_party_backend_pass_through() -> None:
    async with aconnect(memory(maxsize=1, publish_timeout=0.0)) as queue:
        with pytest.raises(PublishError) as caught:
            await queue.publish_many([{}, {}], key="k")
        assert list(caught.value.published) == [0]
        for delay in (-1, float("nan")):
            with pytest.raises(ConfigurationError, match=f"delay is {delay}"):
                await queue.publish("k", {}, delay=delay)
        with pytest.raises(UnsupportedError, match="longest is"):
            await queue.publish("k", {}, delay=1e12)
        with pytest.raises(PayloadError):
            await queue.publish("k", {}, headers={"": ""})
        with pytest.raises(InvalidKeyError):
            queue.consume([])
