"""What becomes of messages when Ctrl-C falls on a certain moment of a facade call.

`tests/integration_test/test_sync_interrupts.py` lets interrupts fall anywhere.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import abe
from abe.backends.message_queue.base import MessageStream, Subscription
from abe.sync import SyncBackend

_names = itertools.count()


@pytest.fixture
def queue() -> Iterator[SyncBackend]:
    """A connection to a memory store of its own, with three messages."""
    with abe.connect("memory", env={"ABE_MEMORY_NAME": f"interrupted-{next(_names)}"}) as queue:
        queue.publish_many([{"n": n} for n in range(3)], key="orders")
        yield queue


@pytest.fixture
def interrupt_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Press Ctrl-C when the portal calls a method of the stream for the first time."""

    def arrange(method: str, target: type = MessageStream) -> None:
        original = getattr(target, method)
        main = threading.main_thread().ident
        assert main is not None

        async def interrupted(self: Any, *args: Any, **options: Any) -> Any:
            monkeypatch.setattr(target, method, original)
            signal.pthread_kill(main, signal.SIGINT)
            if method == "aclose":  # it cannot be cancelled before it has begun
                await original(self, *args, **options)
            await asyncio.sleep(0.2)  # meanwhile the cancellation arrives
            return await original(self, *args, **options)

        monkeypatch.setattr(target, method, interrupted)

    return arrange


def in_hand(queue: SyncBackend) -> int:
    return queue.stats().total("in_flight")


def test_a_take_that_waits_takes_nothing(
    queue: SyncBackend, interrupt_in: Callable[..., None]
) -> None:
    """And the next one starts from the beginning."""
    interrupt_in("take")
    with pytest.raises(KeyboardInterrupt):
        queue.take(2)
    assert in_hand(queue) == 0
    assert [m["n"] for m in queue.take(3)] == [0, 1, 2]


@pytest.mark.parametrize("how", ["take", "consume", "take-more", "aio"])
def test_what_was_acked_already_is_handed_over_next(
    queue: SyncBackend, interrupt_in: Callable[..., None], how: str
) -> None:
    """An ack cannot be undone, so the message must reach somebody."""
    interrupt_in("flush")
    with pytest.raises(KeyboardInterrupt):
        queue.take(2)
    if how == "take":
        assert [m["n"] for m in queue.take()] == [0]
        assert [m["n"] for m in queue.take(2)] == [1, 2]
    elif how == "take-more":
        assert [m["n"] for m in queue.take(5, timeout=0)] == [0, 1, 2]
    elif how == "consume":
        stream = queue.consume()
        assert next(stream) == {"n": 0}
        stream.close()
        assert [m["n"] for m in queue.consume(limit=2)] == [1, 2]
    else:

        async def cell() -> list[int]:
            async with queue.aio.consume() as stream:
                return [m["n"] for m in await stream.take(3)]

        assert asyncio.run(cell()) == [0, 1, 2]
    assert queue.stats().entries == ()


def test_an_interrupt_while_that_waits_keeps_it(
    queue: SyncBackend, interrupt_in: Callable[..., None]
) -> None:
    """However often it happens."""
    for method in ("flush", "take", "take"):
        interrupt_in(method)
        with pytest.raises(KeyboardInterrupt):
            queue.take(2 if method == "flush" else 5)
    assert [m["n"] for m in queue.take(3)] == [0, 1, 2]


def test_an_interrupted_iterator_holds_nothing_and_goes_on(
    queue: SyncBackend, interrupt_in: Callable[..., None]
) -> None:
    """Others get what comes meanwhile, even if it is kept in a variable."""
    interrupt_in("wait", Subscription)
    stream = queue.consume()
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert queue.take() == [{"n": 0}]
    assert [next(stream), next(stream)] == [{"n": 1}, {"n": 2}]
    stream.close()
    assert [m["n"] for m in queue.take()] == [2]


def test_an_interrupted_close_closes(queue: SyncBackend, interrupt_in: Callable[..., None]) -> None:
    """What it held is there for others."""
    stream = queue.consume()
    next(stream)
    interrupt_in("aclose")
    with pytest.raises(KeyboardInterrupt):
        stream.close()
    assert [m["n"] for m in queue.take(3)] == [0, 1, 2]


def test_an_interrupted_batch_is_given_back(
    queue: SyncBackend, interrupt_in: Callable[..., None]
) -> None:
    """While it waits; while it is acked, the acks stand."""
    interrupt_in("take")
    with pytest.raises(KeyboardInterrupt):
        queue.batch(2).__enter__()
    assert in_hand(queue) == 0
    batch = queue.batch(2)
    assert [m["n"] for m in batch.__enter__()] == [0, 1]
    interrupt_in("flush")
    with pytest.raises(KeyboardInterrupt):
        batch.__exit__(None, None, None)
    assert [m["n"] for m in queue.take(3, timeout=0)] == [2]


def test_what_arrived_before_the_interrupt_stays_with_a_plain_backend() -> None:
    """It would never be delivered again."""
    main = threading.main_thread().ident or 0

    class Plain:
        @classmethod
        def from_env(cls) -> Plain:
            return cls()

        async def publish(self, key: str, payload: dict[str, Any]) -> None:
            raise NotImplementedError

        async def consume(self, *, group: str | None = None) -> Any:
            for n in itertools.count():
                if n == 2:
                    signal.pthread_kill(main, signal.SIGINT)
                    await asyncio.sleep(0.05)
                yield {"n": n}

    with abe.connect(Plain()) as queue:
        found: list[int] = []
        with pytest.raises(KeyboardInterrupt):
            found += [m["n"] for m in queue.take(4)]
        assert found == []
        assert [m["n"] for m in queue.take(4)] == [0, 1, 2, 3]
