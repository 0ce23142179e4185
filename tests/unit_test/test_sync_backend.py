"""The synchronous facade over the memory backend: every method, and what is settled when."""

from __future__ import annotations

import asyncio
import gc
import inspect
import itertools
import json
import pickle
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Self

import pytest

import abe
from abe.backends.message_queue.base import (
    BaseBackend,
    Capabilities,
    Delivery,
    KeyFilter,
    SyncMessage,
)
from abe.backends.message_queue.client import AsyncBackend
from abe.backends.message_queue.service.memory import MemoryBackend, MemoryReceiver
from abe.sync import SyncBackend, pool
from abe.types import KeyStats

LONG = 30.0
_names = itertools.count()


def open_store(name: str = "", **variables: str) -> SyncBackend:
    """Connect to a memory store, a fresh one unless it is named."""
    name = name or f"sync-{next(_names)}"
    return abe.connect("memory", env={"ABE_MEMORY_NAME": name, **variables})


@pytest.fixture
def queue() -> Iterator[SyncBackend]:
    """A connection to a memory store of its own."""
    with open_store() as queue:
        yield queue


def fill(queue: SyncBackend, count: int, key: str = "orders.created") -> None:
    """Publish ``{"n": 0}``, ``{"n": 1}`` …"""
    queue.publish_many([{"n": n} for n in range(count)], key=key)


def numbers(queue: SyncBackend, group: str | None = None) -> KeyStats:
    """The numbers of the one key in use."""
    entries = [entry for entry in queue.stats().entries if entry.group == group]
    return entries[0] if entries else KeyStats("", group, 0, 0, 0, 0)


def ready(queue: SyncBackend, group: str | None = None) -> int | None:
    """Number of messages that anybody could take."""
    return numbers(queue, group).ready


# -- publishing ----------------------------------------------------------------------------


def test_what_was_published_is_taken(queue: SyncBackend) -> None:
    """With its metadata, as a dict."""
    queue.publish("orders.created", {"n": 1}, headers={"trace": "abc"})
    (message,) = queue.take()
    assert message == {"n": 1}
    assert isinstance(message, SyncMessage)
    assert (message.key, message.attempt, dict(message.headers)) == (
        "orders.created",
        1,
        {"trace": "abc"},
    )
    assert message.timestamp is not None
    assert json.dumps(message) == '{"n": 1}'


def test_a_delayed_message_comes_later(queue: SyncBackend) -> None:
    """``delay`` reaches the backend."""
    queue.publish("orders", {"n": 1}, delay=0.3)
    assert queue.take(timeout=0) == []
    assert queue.take(timeout=LONG) == [{"n": 1}]


def test_refusals_come_from_the_backend(queue: SyncBackend) -> None:
    """Before anything is sent."""
    with pytest.raises(abe.InvalidKeyError):
        queue.publish("no spaces", {})
    with pytest.raises(abe.PayloadError, match="set is not JSON"):
        queue.publish("orders", {"a": {1}})
    with pytest.raises(abe.PayloadError, match="item 1"):
        queue.publish_many([{}, {"a": {1}}], key="orders")
    assert queue.stats().entries == ()


def test_publish_many_takes_pairs_or_payloads(queue: SyncBackend) -> None:
    """From any iterable, which is read in the caller's thread."""
    here = threading.get_ident()

    def pairs() -> Iterator[tuple[str, dict[str, int]]]:
        assert threading.get_ident() == here
        yield "a", {"n": 1}
        yield "b", {"n": 2}

    assert queue.publish_many(pairs()) == 2
    assert queue.publish_many(({"n": n} for n in (3, 4)), key="c") == 2
    assert [(m.key, m["n"]) for m in queue.take(4)] == [("a", 1), ("b", 2), ("c", 3), ("c", 4)]


def test_progress_is_told_in_the_callers_thread(queue: SyncBackend) -> None:
    """And everything is still checked before anything is sent."""
    told: list[tuple[int, int]] = []
    here = threading.get_ident()

    def progress(done: int) -> None:
        told.append((done, threading.get_ident()))

    items = [{"n": n} for n in range(1200)]
    assert queue.publish_many(items, key="orders", progress=progress) == 1200
    counts = [count for count, _ in told]
    assert counts == sorted(set(counts))
    assert len(counts) > 1
    assert told[-1] == (1200, here)
    assert {thread for _, thread in told} == {here}
    with pytest.raises(abe.PayloadError, match="item 1100"):
        queue.publish_many(
            [*items[:1100], {"n": {1}}], key="orders", progress=lambda done: pytest.fail("sent")
        )
    with pytest.raises(abe.PayloadError, match="item 0: not a"):
        queue.publish_many(items, progress=progress)
    assert ready_retained(queue) == 1200


def ready_retained(queue: SyncBackend) -> int:
    return queue.stats().total("ready")


def test_a_failure_with_progress_speaks_of_positions_in_the_whole() -> None:
    """Not of those in a chunk."""
    with open_store(ABE_MEMORY_MAXSIZE="600", ABE_MEMORY_PUBLISH_TIMEOUT="0.01") as queue:
        told: list[int] = []
        items = [{"n": n} for n in range(1200)]
        with pytest.raises(abe.PublishError) as caught:
            queue.publish_many(items, key="orders", progress=told.append)
        assert told == sorted(set(told))
        assert 0 < told[-1] <= 600
        assert list(caught.value.published) == list(range(600))
        assert list(caught.value.failed) == list(range(600, 1200))
        assert caught.value.retryable


# -- consume -------------------------------------------------------------------------------


def test_a_limit_ends_the_loop_and_acks_the_last(queue: SyncBackend) -> None:
    """What was received beyond it is with the others again."""
    fill(queue, 10)
    assert [m["n"] for m in queue.consume(limit=3)] == [0, 1, 2]
    assert (ready(queue), numbers(queue).in_flight) == (7, 0)
    assert [m["n"] for m in queue.consume(limit=0)] == []
    assert [m["n"] for m in queue.consume(limit=100, timeout=0)] == [3, 4, 5, 6, 7, 8, 9]
    assert queue.stats().entries == ()


def test_a_timeout_ends_the_loop(queue: SyncBackend) -> None:
    """It is the longest wait for the *next* message; 0 takes what is there."""
    fill(queue, 3)
    started = time.monotonic()
    assert [m["n"] for m in queue.consume(timeout=0)] == [0, 1, 2]
    assert time.monotonic() - started < LONG
    assert queue.stats().entries == ()


def test_asking_for_the_next_acks_the_previous(queue: SyncBackend) -> None:
    """And nothing else does, however many came across in one go."""
    fill(queue, 200)
    stream = queue.consume()
    for n in range(100):
        assert next(stream) == {"n": n}
    settled_by = time.monotonic() + LONG
    while held(queue, None) != 101:
        assert time.monotonic() < settled_by
    stream.close()
    assert (ready(queue), numbers(queue).in_flight) == (101, 0)
    assert [m["n"] for m in queue.take(200, timeout=0)] == list(range(99, 200))


def test_a_break_releases_the_message_in_hand(queue: SyncBackend) -> None:
    """At once, not counted as an attempt, and in order."""
    fill(queue, 100)
    for message in queue.consume():
        if message["n"] == 5:
            break
    assert (ready(queue), numbers(queue).in_flight) == (95, 0)
    assert [(m["n"], m.attempt) for m in queue.take(2)] == [(5, 1), (6, 1)]


def test_an_exception_releases_the_message_in_hand(queue: SyncBackend) -> None:
    """As soon as nothing refers to the iterator any more."""
    fill(queue, 3)
    with pytest.raises(ZeroDivisionError):
        fail_at_the_second(queue)
    assert ready(queue) == 2
    assert [(m["n"], m.attempt) for m in queue.take(2)] == [(1, 1), (2, 1)]


def fail_at_the_second(queue: SyncBackend) -> None:
    for message in queue.consume():
        _ = 1 / (1 - message["n"])


def test_an_ack_before_the_break_keeps_the_message(queue: SyncBackend) -> None:
    """It blocks, and says whether it was settled differently before."""
    fill(queue, 3)
    for message in queue.consume():
        assert message.ack() is True
        assert message.ack() is True
        assert message.nack() is False
        break
    assert [m["n"] for m in queue.take(3, timeout=0)] == [1, 2]


def test_each_settlement_does_what_it_says(queue: SyncBackend) -> None:
    """Also when the loop goes on and would ack."""
    fill(queue, 4)
    seen: list[int] = []
    for message in queue.consume(timeout=0):
        if message["n"] == 0:
            assert message.nack(delay=0.3)
        elif message["n"] == 1 and 1 not in seen:
            assert message.release()
        elif message["n"] == 2:
            assert message.reject("spoilt")
        seen.append(message["n"])
        assert message.attempt == 1
    assert sorted(seen) == [0, 1, 1, 2, 3]
    assert [(m["n"], m.attempt) for m in queue.take(timeout=LONG)] == [(0, 2)]
    (dead,) = queue.dead_letters()
    assert dead == {"n": 2}
    assert "spoilt" in dead.headers.values()


def test_an_iterator_goes_on_after_its_loop_was_left(queue: SyncBackend) -> None:
    """As long as somebody refers to it; the next step acks."""
    fill(queue, 3)
    stream = queue.consume()
    for message in stream:
        assert message["n"] == 0
        break
    assert next(stream) == {"n": 1}
    stream.close()
    stream.close()
    assert list(stream) == []
    assert ready(queue) == 2


def test_the_with_statement_creates_the_group_and_closes(queue: SyncBackend) -> None:
    """Before anything is published, for brokers that keep no backlog."""
    with queue.consume(group="audit") as stream:
        assert queue.groups() == ["audit"]
        fill(queue, 2)
        assert next(stream) == {"n": 0}
    assert ready(queue, "audit") == 2


def test_keys_are_filtered(queue: SyncBackend) -> None:
    """A str or a list; the rest stays for others."""
    queue.publish("orders.eu", {"n": 1})
    queue.publish("orders.us", {"n": 2})
    queue.publish("billing.eu", {"n": 3})
    assert [m["n"] for m in queue.consume("orders.*", timeout=0)] == [1, 2]
    assert queue.take(keys=["billing.*", "other"]) == [{"n": 3}]


def test_arguments_are_checked_at_the_call(queue: SyncBackend) -> None:
    """Not at the first step of a loop far away."""
    methods: list[Callable[..., object]] = [queue.consume, queue.take, queue.aio.consume]
    for method, wrong in itertools.product(methods, ({"group": "a b"}, {"keys": "a*"})):
        with pytest.raises(abe.InvalidKeyError):
            method(**wrong)
    for wrong_call in (
        lambda: queue.consume(limit=-1),
        lambda: queue.consume(timeout=-1),
        lambda: queue.take(0),
        lambda: queue.take(timeout=float("nan")),
        lambda: queue.batch(0),
    ):
        with pytest.raises(abe.ConfigurationError):
            wrong_call()


def test_two_threads_cannot_wait_on_one_iterator(queue: SyncBackend) -> None:
    """Whose message would be acked?"""
    stream = queue.consume()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, stream)
        deadline = time.monotonic() + LONG
        while queue.groups() == []:
            assert time.monotonic() < deadline
        with pytest.raises(RuntimeError, match="call consume"):
            next(stream)
        queue.publish("orders", {"n": 1})
        assert waiting.result(LONG) == {"n": 1}


def test_a_slow_reader_does_not_hoard() -> None:
    """What it has not asked for goes back to the group after part of a lease."""
    with open_store(ABE_MEMORY_LEASE="0.4") as queue:
        fill(queue, 300)
        stream = queue.consume()
        for _ in range(100):
            next(stream)
        assert (numbers(queue).in_flight or 0) > 1
        deadline = time.monotonic() + LONG
        while numbers(queue).in_flight != 1:
            assert time.monotonic() < deadline
        assert queue.take(1, timeout=LONG) == [{"n": 100}]
        assert next(stream) == {"n": 101}
        stream.close()


def test_a_nack_takes_back_what_must_not_overtake_it() -> None:
    """With an ordering per key, the successors of a failed message wait for it."""
    backend = MemoryBackend(f"sync-{next(_names)}")
    backend.capabilities = replace(backend.capabilities, ordering="key")
    with abe.connect(backend) as queue:
        fill(queue, 300)
        stream = queue.consume()
        message = [next(stream) for _ in range(130)][-1]
        message.nack()
        assert next(stream) == {"n": 129}
        assert next(stream) == {"n": 130}
        stream.close()


# -- take ----------------------------------------------------------------------------------


def test_take_acks_before_it_returns(queue: SyncBackend) -> None:
    """And holds nothing that others could have."""
    fill(queue, 10)
    assert [m["n"] for m in queue.take(3)] == [0, 1, 2]
    assert (ready(queue), numbers(queue).in_flight) == (7, 0)
    (message,) = queue.take()
    assert message.ack() is True
    assert message.release() is False


def test_take_waits_at_most_its_timeout_in_total(queue: SyncBackend) -> None:
    """And then returns what has come."""
    fill(queue, 2)
    started = time.monotonic()
    assert [m["n"] for m in queue.take(3, timeout=0.2)] == [0, 1]
    assert 0.15 < time.monotonic() - started < LONG
    assert queue.stats().entries == ()


def test_take_waits_for_what_is_yet_to_come(queue: SyncBackend) -> None:
    """As many as it was asked for, however they arrive."""

    def publish() -> None:
        for n in range(5):
            queue.publish("orders", {"n": n})

    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(queue.take, 5, timeout=None)
        publish()
        assert [m["n"] for m in taken.result(LONG)] == [0, 1, 2, 3, 4]


def test_take_leaves_nothing_behind_that_swallows_messages(queue: SyncBackend) -> None:
    """One that timed out does not go on waiting in the background."""
    assert queue.take(5, timeout=0) == []
    fill(queue, 3)
    assert ready(queue) == 3
    with open_store(queue._pool.backend.backend.store_name) as other:
        assert [m["n"] for m in other.take(3)] == [0, 1, 2]


def test_a_loop_after_take_receives_ahead(
    queue: SyncBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[int] = []
    receive = MemoryReceiver.receive

    async def counted(self: MemoryReceiver, most: int, timeout: float) -> Sequence[Delivery]:
        deliveries = await receive(self, most, timeout)
        received.append(len(deliveries))
        return deliveries

    monkeypatch.setattr(MemoryReceiver, "receive", counted)
    fill(queue, 101)
    assert len(queue.take()) == 1
    assert sum(1 for _ in queue.consume(limit=100)) == 100
    assert len(received) < 30


def test_take_from_many_threads_gives_each_message_once(queue: SyncBackend) -> None:
    """While fifty threads publish."""
    with ThreadPoolExecutor(60) as pool:
        takers = [pool.submit(queue.take, 50, timeout=LONG) for _ in range(10)]
        list(pool.map(lambda n: queue.publish("orders", {"n": n}), range(500)))
        taken = [m["n"] for taker in takers for m in taker.result(LONG)]
    assert sorted(taken) == list(range(500))
    assert queue.stats().entries == ()


# -- batch ---------------------------------------------------------------------------------


def test_a_batch_is_acked_on_a_clean_exit(queue: SyncBackend) -> None:
    """Not before."""
    fill(queue, 3)
    with queue.batch(2) as messages:
        assert [m["n"] for m in messages] == [0, 1]
        assert numbers(queue).in_flight == 2
    assert (ready(queue), numbers(queue).in_flight) == (1, 0)


def test_a_batch_is_released_on_an_exception(queue: SyncBackend) -> None:
    """Whole, in order, and not counted."""
    fill(queue, 3)
    with pytest.raises(ZeroDivisionError), queue.batch(2) as messages:
        _ = 1 / messages[0]["n"]
    assert (ready(queue), numbers(queue).in_flight) == (3, 0)
    assert [(m["n"], m.attempt) for m in queue.take(3)] == [(0, 1), (1, 1), (2, 1)]


def test_a_batch_leaves_alone_what_was_settled_inside(queue: SyncBackend) -> None:
    """Each message may have a fate of its own."""
    fill(queue, 3)
    with queue.batch(3) as messages:
        messages[0].reject("spoilt")
        messages[1].nack()
    assert [(m["n"], m.attempt) for m in queue.take(3, timeout=0)] == [(1, 2)]
    assert len(queue.dead_letters()) == 1


def test_a_batch_may_be_small_or_empty(queue: SyncBackend) -> None:
    """After its timeout."""
    fill(queue, 1)
    with queue.batch(2, timeout=0) as messages:
        assert messages == [{"n": 0}]
    with queue.batch(2, timeout=0) as messages:
        assert messages == []


def test_a_batch_is_open_once_at_a_time(queue: SyncBackend) -> None:
    """It can be used again, and a forgotten one is released."""
    fill(queue, 2)
    batch = queue.batch(1)
    with batch, pytest.raises(RuntimeError, match="already open"):
        batch.__enter__()
    assert batch.__enter__() == [{"n": 1}]
    del batch
    gc.collect()
    assert ready(queue) == 1


# -- looking and cleaning up ---------------------------------------------------------------


def test_looking_takes_nothing(queue: SyncBackend) -> None:
    """And what was looked at cannot be settled."""
    fill(queue, 12)
    peeked = queue.peek()
    assert [m["n"] for m in peeked] == list(range(10))
    assert isinstance(peeked[0], SyncMessage)
    with pytest.raises(abe.UnsupportedError, match="peek"):
        peeked[0].ack()
    assert [m["n"] for m in queue.peek("orders.*", limit=2)] == [0, 1]
    assert ready_retained(queue) == 12


def test_dead_letters_are_replayed(queue: SyncBackend) -> None:
    """All or some; their attempts begin anew."""
    fill(queue, 2)
    for message in queue.consume(limit=2):
        message.reject("spoilt")
    first, second = queue.dead_letters()
    assert first.id is not None
    assert queue.replay(ids=[first.id]) == 1
    assert [(m["n"], m.attempt) for m in queue.take(2, timeout=0)] == [(0, 1)]
    assert queue.dead_letters() == [second]


def test_groups_are_listed_deleted_and_purged(queue: SyncBackend) -> None:
    """Cleaning up a notebook."""
    queue.take(timeout=0, group="audit")
    fill(queue, 3)
    assert queue.groups() == ["audit"]
    assert queue.purge("other", group="audit") == 0
    assert queue.purge(group="audit") == 3
    queue.delete_group("audit")
    assert queue.groups() == []
    queue.ping()


# -- life ----------------------------------------------------------------------------------


def test_closing_twice_is_fine_and_using_it_then_is_not() -> None:
    """Every method says so."""
    queue = open_store()
    assert repr(queue) == "<SyncBackend memory>"
    queue.close()
    queue.close()
    assert queue.closed
    assert repr(queue) == "<SyncBackend memory closed>"
    calls: list[Callable[[], object]] = [
        lambda: queue.publish("a", {}),
        lambda: queue.publish_many([], key="a"),
        queue.consume,
        queue.take,
        lambda: queue.batch(1),
        lambda: queue.worker(print),
        queue.peek,
        queue.stats,
        queue.dead_letters,
        queue.replay,
        queue.groups,
        lambda: queue.delete_group("a"),
        queue.purge,
        queue.ping,
        queue.__enter__,
        queue.aio.consume,
    ]
    for call in calls:
        with pytest.raises(abe.BackendClosedError, match=r"abe\.connect\(\)"):
            call()


def test_closing_gives_everything_back() -> None:
    """Messages in hand, in a batch and buffered; and ends who is waiting."""
    queue = open_store()
    name = queue._pool.backend.backend.store_name
    fill(queue, 50)
    stream = queue.consume(group="a")
    next(stream)
    batch = queue.batch(2, group="b").__enter__()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(list, queue.consume(group="c", limit=51))
        with open_store(name) as other:
            deadline = time.monotonic() + LONG
            while "c" not in other.groups() or held(other, "c") > 0:
                assert time.monotonic() < deadline
            queue.close()
            assert len(waiting.result(LONG)) == 50
            assert [numbers(other, group).in_flight for group in ("a", "b")] == [0, 0]
            assert [ready(other, group) for group in ("a", "b")] == [50, 50]
    assert list(stream) == []
    assert [message.outcome for message in batch] == ["release", "release"]


def held(queue: SyncBackend, group: str | None) -> int:
    stats = queue.stats()
    return stats.total("ready", group=group) + stats.total("in_flight", group=group)


def test_a_forgotten_connection_is_closed_quietly() -> None:
    """Notebooks run ``q = abe.connect()`` again and again."""
    queue = open_store()
    queue.publish("orders", {"n": 1})
    next(queue.consume())
    home = queue._pool
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del queue
        gc.collect()
        home.portal.call(home.aclose())
    assert home.closed
    assert home.aclose not in home.portal.closers
    with pytest.raises(abe.BackendClosedError):
        home.check_open()


def test_an_iterator_keeps_its_connection() -> None:
    """``for m in abe.connect(…).consume()`` works."""
    name = f"sync-{next(_names)}"
    with open_store(name) as queue:
        fill(queue, 3)
    stream = open_store(name).consume(limit=3)
    gc.collect()
    assert [m["n"] for m in stream] == [0, 1, 2]


def test_a_message_does_not_keep_its_stream_or_connection() -> None:
    """A list of messages is only that; they can be pickled."""
    queue = open_store()
    fill(queue, 2)
    kept = [next(queue.consume()), *queue.take()]
    gone = weakref.ref(queue)
    del queue
    gc.collect()
    assert gone() is None
    assert pickle.loads(pickle.dumps(kept)) == kept


# -- connect -------------------------------------------------------------------------------


class Bound(BaseBackend):
    """A backend that belongs to the event loop that first uses it."""

    name = "bound"

    def __init__(self) -> None:
        super().__init__()
        self.capabilities = Capabilities()

    @classmethod
    def from_env(cls) -> Self:
        return cls()

    async def _send(self, items: object) -> None:
        self.sent = items

    def _receiver(self, group: str | None, keys: KeyFilter) -> Any:
        raise NotImplementedError


def test_a_backend_in_use_on_another_loop_is_refused() -> None:
    """At once, with what to do about it."""
    backend = Bound()

    async def main() -> None:
        await backend.publish("orders", {})
        with pytest.raises(abe.LoopError, match="another event loop"):
            abe.connect(backend)

    asyncio.run(main())
    with pytest.raises(abe.LoopError):
        abe.connect(backend)


def test_a_connected_backend_cannot_be_used_on_another_loop() -> None:
    """The portal owns it from ``connect`` on; `aio` is the way."""
    backend = Bound()
    with abe.connect(backend) as queue:
        with pytest.raises(abe.LoopError, match="aio"):
            asyncio.run(backend.publish("orders", {}))
        asyncio.run(queue.aio.publish("orders", {}))


def test_only_backends_can_be_connected(queue: SyncBackend) -> None:
    """The text says what to do instead."""
    for wrong, text in (
        (queue, "already"),
        (Bound, "this is the class Bound: call it"),
        (42, "this is int"),
        ({}, "this is dict"),
    ):
        with pytest.raises(TypeError, match=text):
            abe.connect(wrong)  # type: ignore[arg-type]
    with pytest.raises(abe.UnknownBackendError):
        abe.connect("no-such-backend")


@pytest.mark.parametrize("take", [abe.aconnect, abe.AsyncLoopConsumer])
def test_a_blocking_backend_is_none_for_asyncio(queue: SyncBackend, take: Any) -> None:
    """It would publish first and fail then."""
    with pytest.raises(TypeError, match=r"a SyncBackend, whose methods block: see its aio"):
        take(queue)


class Plain:
    """A backend as a third party may write it."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.closed = 0

    @classmethod
    def from_env(cls) -> Self:
        return cls()

    async def publish(self, key: str, payload: dict[str, Any]) -> None:
        self.sent.put_nowait(dict(payload))

    async def consume(self, *, group: str | None = None) -> AsyncIterator[dict[str, Any]]:
        while True:
            yield await self.sent.get()

    async def aclose(self) -> None:
        self.closed += 1


def test_a_plain_backend_works_and_loses_nothing_that_arrived() -> None:
    """Even one that never delivers again: what is not settled stays with its stream."""
    backend = Plain()
    with abe.connect(backend) as queue:
        assert queue.name == "Plain"
        queue.publish_many([{"n": n} for n in range(6)], key="orders")
        for message in queue.consume():
            assert message == {"n": 0}
            break
        assert queue.take(2) == [{"n": 0}, {"n": 1}]
        with pytest.raises(ZeroDivisionError), queue.batch(2):
            _ = 1 / 0
        assert list(queue.consume(limit=2)) == [{"n": 2}, {"n": 3}]
        assert queue.take(5, timeout=0) == [{"n": 4}, {"n": 5}]
        queue.publish("orders", {"n": 6})
        assert queue.take() == [{"n": 6}]
        with pytest.raises(abe.UnsupportedError):
            queue.consume("orders.*")
        with pytest.raises(abe.UnsupportedError):
            queue.stats()
    assert backend.closed == 1


def test_a_plain_backends_other_readers_are_not_robbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that waited in vain is closed soon; one that holds something is not."""
    monkeypatch.setattr(pool, "KEEP_OPEN", 0.01)
    with abe.connect(Plain()) as queue:
        assert queue.take(timeout=0) == []
        assert list(queue.consume(timeout=0)) == []
        resting = queue._pool._idle
        deadline = time.monotonic() + LONG
        while any(resting.values()):
            assert time.monotonic() < deadline
        seen = threading.Event()
        with queue.worker(lambda message: seen.set(), dead_letter_key="dead"):
            queue.publish("orders", {"n": 1})
            assert seen.wait(LONG)
        queue.publish("orders", {"n": 2})
        next(queue.consume())
        queue._pool.portal.call(asyncio.sleep(0.05))
        assert queue.take() == [{"n": 2}]


# -- threads and loops ---------------------------------------------------------------------


def test_fifty_threads_publish_while_a_loop_consumes(queue: SyncBackend) -> None:
    """Under a running event loop too, as in a notebook cell."""

    async def cell() -> list[int]:
        with ThreadPoolExecutor(50) as pool:
            futures = [pool.submit(queue.publish, "orders", {"n": n}) for n in range(500)]
            found = [m["n"] for m in queue.consume(limit=500, timeout=LONG)]
            for future in futures:
                future.result()
        return found

    assert sorted(asyncio.run(cell())) == list(range(500))


def test_an_error_shows_the_callers_line(queue: SyncBackend) -> None:
    """With the frames of the facade hidden, as IPython and pytest do."""
    with pytest.raises(abe.InvalidKeyError) as caught:
        queue.publish("no spaces", {})
    shown = [e for e in caught.traceback if not e.frame.f_locals.get("__tracebackhide__")]
    assert shown[0].name == "test_an_error_shows_the_callers_line"
    assert not any("/abe/sync/" in str(entry.path) for entry in shown)
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert not any("concurrent" in frame.filename for frame in frames)


# -- parity --------------------------------------------------------------------------------

# What differs from the async side, and why.
ONLY_SYNC = {
    "take": "a stream's method there",
    "batch": "a stream's method there: async with … take()",
    "worker": "AsyncLoopConsumer there",
    "aio": "the way there",
    "close": "aclose there",
    "closed": "",
}
ONLY_ASYNC = {
    "aclose": "close here",
    "backend": "it is not for use outside its loop",
    "from_env": "what blocks is no backend",
}
EXTRA = {"publish_many": {"progress"}, "send": {"progress"}, "consume": {"limit", "timeout"}}
MISSING = {"consume": {"prefetch"}}


def public(cls: type) -> dict[str, Any]:
    names = (name for name in dir(cls) if not name.startswith("_"))
    return {name: inspect.getattr_static(cls, name) for name in names}


def test_the_synchronous_side_has_the_async_sides_methods() -> None:
    """Same names, same parameters, same defaults; what differs is listed above."""
    sync, asynchronous = public(SyncBackend), public(AsyncBackend)
    asynchronous |= dict.fromkeys(("name", "backend"))  # set in its constructor
    assert set(sync) - set(asynchronous) == set(ONLY_SYNC)
    assert set(asynchronous) - set(sync) == set(ONLY_ASYNC)
    for name in set(sync) & set(asynchronous):
        if not inspect.isfunction(sync[name]):
            continue
        ours, theirs = (inspect.signature(side[name]).parameters for side in (sync, asynchronous))
        assert set(ours) - set(theirs) == EXTRA.get(name, set()), name
        assert set(theirs) - set(ours) == MISSING.get(name, set()), name
        for parameter in set(ours) & set(theirs):
            assert ours[parameter].default == theirs[parameter].default, (name, parameter)
            assert ours[parameter].kind == theirs[parameter].kind, (name, parameter)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_stream_given_up_while_the_portal_ends_says_nothing(
    queue: SyncBackend, moment: str
) -> None:
    """Its closing is cancelled before its first step, or not begun; neither leaves a coroutine."""
    portal = queue._pool.portal
    stream = queue.consume(timeout=0.0)
    list(stream)

    async def end() -> None:
        portal.refuses = moment == "after"
        stream._loan.begin_leave([])
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        portal.refuses = False

    portal.call(end())
    gc.collect()
