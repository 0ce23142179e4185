"""When a batch leaves, how large it is, and what becomes of items whose turn does not come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pytest

from abe.backends.message_queue.base.backoff import Backoff
from abe.backends.message_queue.base.batcher import Batcher
from tests.support.virtual_loop import START

if TYPE_CHECKING:
    pass

STEADY = Backoff(first=0.2, factor=1.0, jitter=False)


class Wire:
    """Notes the batches that arrive, and when.

    Args:
        latency: Seconds until one is answered for.
        again: Returns the items of a batch that have to be sent again.
    """

    def __init__(
        self, latency: float = 1.0, again: Callable[[list[Any]], Iterable[Any]] = lambda batch: ()
    ) -> None:
        self.latency = latency
        self.again = again
        self.sent: list[tuple[float, list[Any]]] = []
        self.answered: list[Any] = []

    async def __call__(self, batch: list[Any]) -> Iterable[Any]:
        self.sent.append((round(asyncio.get_running_loop().time() - START, 3), list(batch)))
        await asyncio.sleep(self.latency)
        again = list(self.again(batch))
        self.answered += [item for item in batch if item not in again]
        return again

    @property
    def batches(self) -> list[list[Any]]:
        return [batch for _, batch in self.sent]


def batcher(wire: Wire, **options: Any) -> Batcher[Any]:
    return Batcher(wire, **{"max_items": 3, "backoff": STEADY, **options})


async def test_an_item_waits_for_others_once() -> None:
    """The wait begins with the first item and is not prolonged by those that follow."""
    wire = Wire()
    batches = batcher(wire, max_wait=0.05, max_items=9)
    for n in range(3):
        batches.add(n)
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.0)
    assert wire.sent == [(0.05, [0, 1, 2])]
    await batches.flush()


async def test_a_full_batch_does_not_wait() -> None:
    wire = Wire()
    batches = batcher(wire, max_wait=5.0)
    batches.add(0, 1)
    await asyncio.sleep(1.0)
    batches.add(2)
    await batches.flush()
    assert wire.sent == [(1.0, [0, 1, 2])]


async def test_without_a_wait_a_turn_of_the_loop_makes_a_batch() -> None:
    wire = Wire()
    batches = batcher(wire)

    async def add(item: int) -> None:
        batches.add(item)

    await asyncio.gather(add(0), add(1))
    await asyncio.sleep(0.5)
    batches.add(2)
    await batches.flush()
    assert wire.sent == [(0.0, [0, 1]), (1.0, [2])]


async def test_what_is_added_while_others_are_sent_goes_right_after_them() -> None:
    wire = Wire()
    batches = batcher(wire, max_wait=0.5)
    batches.add(0)
    batches.send()
    await asyncio.sleep(0.9)
    batches.add(1)
    await asyncio.sleep(1.2)
    assert wire.answered == [0, 1]
    assert wire.sent == [(0.0, [0]), (1.0, [1])]


async def test_a_batch_is_bounded_by_bytes() -> None:
    """An item above the bound goes alone."""
    wire = Wire()
    batches = batcher(wire, max_items=9, max_bytes=5, size=len)
    batches.add("aa", "bbb", "c", "dddddddd", "e", "ffff")
    await batches.flush()
    assert wire.batches == [["aa", "bbb"], ["c"], ["dddddddd"], ["e", "ffff"]]


async def test_handlers_send_side_by_side() -> None:
    wire = Wire()
    batches = batcher(wire, max_handlers=2)
    batches.add(*range(8))
    await batches.flush()
    assert asyncio.get_running_loop().time() == START + 2.0
    assert wire.sent == [(0.0, [0, 1, 2]), (0.0, [3, 4, 5]), (1.0, [6, 7])]


async def test_part_of_a_batch_is_sent_again_before_all_others() -> None:
    wire = Wire(again=lambda batch: [item for item in batch if len(wire.sent) < 3 and item == 1])
    batches = batcher(wire)
    batches.add(0, 1, 2, 3)
    await batches.flush()
    assert wire.sent == [(0.0, [0, 1, 2]), (1.2, [1]), (2.4, [1]), (3.4, [3])]
    assert wire.answered == [0, 2, 1, 3]


@pytest.mark.parametrize("handlers", [1, 3])
async def test_flush_waits_for_what_was_added_and_for_nothing_later(handlers: int) -> None:
    wire = Wire()
    batches = batcher(wire, max_handlers=handlers)

    async def keep_adding() -> None:
        while True:
            batches.add("later")
            await asyncio.sleep(0.25)

    batches.add(*range(7))
    adding = asyncio.create_task(keep_adding())
    await asyncio.sleep(0)
    await batches.flush()
    assert set(range(7)) <= set(wire.answered)
    adding.cancel()
    assert await batches.close(60.0) == []


async def test_an_item_is_sent_whatever_becomes_of_who_added_it() -> None:
    wire = Wire()
    batches = batcher(wire)

    async def publish() -> None:
        batches.add(0)
        await batches.flush()

    task = asyncio.create_task(publish())
    await asyncio.sleep(0.5)
    task.cancel()
    await asyncio.sleep(1.0)
    assert wire.answered == [0]


async def test_close_gives_back_what_is_not_answered_for_in_time() -> None:
    """The batch on its way is given back as well: nobody knows what became of it."""
    wire = Wire()
    batches = batcher(wire, max_wait=9.0)
    batches.add(*range(8))
    assert await batches.close(1.5) == [3, 4, 5, 6, 7]
    assert await batches.close(1.5) == []
    assert asyncio.get_running_loop().time() == START + 1.5
    assert wire.answered == [0, 1, 2]


async def test_close_tries_again_until_its_time_is_over() -> None:
    wire = Wire(latency=0.1, again=list)
    batches = batcher(wire)
    batches.add(0)
    assert await batches.close(1.0) == [0]
    assert len(wire.sent) == 4


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_a_cancelled_batch_is_sent_by_the_next_flush(turns: int) -> None:
    """As when `asyncio.run` cancels every task, and a stream still gives back what it holds."""
    wire = Wire()
    batches = batcher(wire)
    batches.add(*range(4))
    for _ in range(turns):
        await asyncio.sleep(0)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await batches.flush()
    assert sorted(wire.answered) == list(range(4))


async def test_what_waits_can_be_withdrawn() -> None:
    wire = Wire()
    batches = batcher(wire, max_wait=1.0)
    batches.add(*range(4))
    assert batches.withdraw() == [3]
    batches.add(4)
    assert batches.withdraw() == [4]
    await batches.flush()
    assert wire.batches == [[0, 1, 2]]
