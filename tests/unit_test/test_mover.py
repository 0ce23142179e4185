"""Publishing a copy before the original is settled: nothing is lost, and nothing copied twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import pytest

from abe.backends.message_queue.base.mover import Mover
from abe.errors import ConnectionLostError, PublishError

AWAY = ConnectionLostError("away")
LARGE = PublishError("too large")


class Queue:
    """Notes what is copied and settled; fails as scripted."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.copying: dict[str, Exception] = {}
        self.settling: dict[str, Exception | None] = {}
        self.cut = False
        self.mover = Mover(self.copy, self.settle)

    async def copy(self, item: str) -> None:
        if error := self.copying.pop(item, None):
            raise error
        self.log.append(f"copy {item}")

    async def settle(self, items: Sequence[str]) -> Iterable[tuple[str, Exception | None]]:
        if self.cut:
            self.cut = False
            raise AWAY
        failed = {item: self.settling.pop(item) for item in items if item in self.settling}
        self.log += [f"settle {item}" for item in items if item not in failed]
        return failed.items()

    def move(self, items: str) -> list[tuple[str, Exception | None]]:
        return asyncio.run(self.mover.move(items))


def test_the_copy_comes_first() -> None:
    queue = Queue()
    assert queue.move("ab") == []
    assert queue.log == ["copy a", "copy b", "settle a", "settle b"]


def test_without_a_copy_nothing_is_settled() -> None:
    queue = Queue()
    queue.copying["a"] = LARGE
    assert queue.move("ab") == [("a", LARGE)]
    assert queue.log == ["copy b", "settle b"]


@pytest.mark.parametrize("cut", [False, True])
def test_a_repeated_move_makes_no_second_copy(cut: bool) -> None:
    queue = Queue()
    queue.cut = cut
    if cut:
        with pytest.raises(ConnectionLostError):
            queue.move("a")
    else:
        queue.settling["a"] = AWAY
        assert queue.move("a") == [("a", AWAY)]
    assert queue.move("a") == []
    assert queue.log == ["copy a", "settle a"]


@pytest.mark.parametrize("error", [None, LARGE])
def test_what_is_not_repeated_is_forgotten(error: Exception | None) -> None:
    queue = Queue()
    queue.settling["a"] = error
    assert queue.move("a") == [("a", error)]
    assert queue.mover._copied == set()
