"""Publishing in chunks: what an interrupt leaves behind is counted exactly."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Self

import pytest

import abe
from abe.backends.message_queue.base import Outgoing
from abe.sync import bulk
from abe.sync.portal import get_portal

ITEMS: list[dict[str, Any]] = [{"n": n} for n in range(2000)]
PREPARED = [Outgoing("k", f'{{"n":{n}}}', {}, 0.0) for n in range(1000)]


@pytest.fixture(autouse=True)
def _interrupts_are_not_ignored() -> Iterator[None]:
    """As they are where a shell has started the tests in the background."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


class Backend:
    """Publishes one by one; interrupts the main thread after some of them."""

    def __init__(self, interrupt_after: int, then: Callable[[], Any]) -> None:
        self.sent = 0
        self._interrupt_after = interrupt_after
        self._then = then

    async def publish(self, key: str, payload: Any) -> None:
        if self.sent == self._interrupt_after:
            signal.raise_signal(signal.SIGINT)
            await self._then()
        self.sent += 1

    def consume(self, *, group: str | None = None) -> AsyncIterator[Any]:
        raise NotImplementedError

    @classmethod
    def from_env(cls) -> Self:
        raise NotImplementedError


@pytest.mark.parametrize("after", [0, 1, 777])
def test_an_interrupt_lets_the_chunk_on_its_way_finish(after: int) -> None:
    async def later() -> None:
        await asyncio.sleep(0.01)  # in which the cancellation comes, and is to change nothing

    told: list[int] = []
    backend = Backend(after, later)
    with abe.connect(backend) as queue, pytest.raises(KeyboardInterrupt) as caught:
        queue.publish_many(ITEMS, key="k", progress=told.append)
    assert after < told[-1] == backend.sent < len(ITEMS)
    assert not hasattr(caught.value, "__notes__")


def test_what_is_not_known_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "GRACE", 0.01)
    told: list[int] = []
    backend = Backend(0, asyncio.Event().wait)
    with abe.connect(backend) as queue, pytest.raises(KeyboardInterrupt) as caught:
        queue.publish_many(ITEMS, key="k", progress=told.append)
    assert told == [0]
    assert caught.value.__notes__ == ["up to 1 more may have been published"]


def test_chunks_grow_where_publishing_is_fast() -> None:
    sizes: list[int] = []

    async def send(chunk: Sequence[Any]) -> None:
        sizes.append(len(chunk))

    told: list[int] = []
    portal = get_portal()
    bulk.send_in_chunks(portal.call, send, PREPARED * 20, told.append, first=1)
    assert told[-1] == sum(sizes) == 20_000
    assert sizes[0] == 1
    assert max(sizes) <= bulk.LARGEST
    assert len(sizes) < 100


def test_pairs_are_checked_and_published_with_progress_too() -> None:
    told: list[int] = []
    pairs: list[Any] = [(f"k.{n % 2}", {"n": n}) for n in range(300)]
    with abe.connect("memory", env={"ABE_MEMORY_NAME": "bulk-pairs"}) as queue:
        with pytest.raises(abe.PayloadError, match="item 300: not a"):
            queue.publish_many([*pairs, {"n": 1}], progress=told.append)
        with pytest.raises(abe.InvalidKeyError, match=r"^key 'a b' contains"):
            queue.publish_many([], key="a b", progress=told.append)
        assert told == []
        assert queue.publish_many(pairs, progress=told.append) == 300
        assert told[-1] == 300
        assert sorted(m["n"] for m in queue.take(300, keys="k.1")) == list(range(1, 300, 2))


@pytest.mark.parametrize("fails_at", [0, 150])
def test_any_other_failure_tells_what_was_published_before(fails_at: int) -> None:
    """If nothing was, the error is raised as it is."""

    async def send(chunk: Sequence[Any]) -> None:
        if PREPARED[fails_at] in chunk:
            raise abe.UnsupportedError("no")

    told: list[int] = []
    expected = abe.PublishError if fails_at else abe.UnsupportedError
    with pytest.raises(expected) as caught:
        bulk.send_in_chunks(get_portal().call, send, PREPARED[:400], told.append, first=100)
    assert told == ([100] if fails_at else [])
    if isinstance(caught.value, abe.PublishError):
        assert list(caught.value.published) == list(range(100))
        assert min(caught.value.failed) == 100


def test_a_partial_failure_speaks_of_positions_in_the_whole() -> None:
    async def send(chunk: Sequence[Any]) -> None:
        if PREPARED[150] in chunk:
            start = PREPARED.index(chunk[0])
            published = [n for n in range(len(chunk)) if start + n not in (150, 152)]
            failed = {150 - start: "full", 152 - start: "not sent"}
            raise abe.PublishError("full", retryable=True, published=published, failed=failed)

    told: list[int] = []
    with pytest.raises(abe.PublishError) as caught:
        bulk.send_in_chunks(get_portal().call, send, PREPARED[:400], told.append, first=100)
    error = caught.value
    reached = len(error.published) + 2
    assert str(error) == f"published {reached - 2} of 400; item 150 failed: full"
    assert error.published == [n for n in range(reached) if n not in (150, 152)]
    assert error.failed == {150: "full", 152: "not sent"} | dict.fromkeys(
        range(reached, 400), "not sent"
    )
    assert error.retryable


def test_what_the_callback_raises_is_raised() -> None:
    def fail(done: int) -> None:
        raise ZeroDivisionError

    with abe.connect("memory") as queue, pytest.raises(ZeroDivisionError):
        queue.publish_many(ITEMS, key="k", progress=fail)
