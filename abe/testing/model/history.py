"""Random histories: what publishers, readers, the broker and the clock do, one step after another.

A step carries plain numbers, and each is taken modulo what there is to choose from when the step
is played. So any step can be left out of a history, which is then still one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = ["KINDS", "History", "Step", "parse", "random_history", "shrunk", "written"]

KINDS = {
    "publish": 20,
    "open": 8,
    "read": 26,
    "settle": 16,
    "flush": 4,
    "await": 4,
    "cancel": 8,
    "unread": 4,
    "close": 5,
    "pass": 4,
    "lapse": 3,
    "cut": 3,
    "clock": 2,
    "work": 5,
    "look": 3,
    "replay": 2,
    "purge": 1,
    "kill_consumer": 0.2,
    "kill_publisher": 0.1,
}
"""The kinds of steps, which are methods of the player, and how often each comes."""
LENGTH = 60
MOST = 1_000
SHRINK_SECONDS = 20.0


class Step(NamedTuple):
    """One step of a history.

    Attributes:
        kind: One of `KINDS`.
        a: Which; so are the next two, as the kind of step takes them.
        b: How.
        c: How it is disturbed.
    """

    kind: str
    a: int
    b: int
    c: int


History = Sequence[Step]


def random_history(seed: int, length: int = LENGTH) -> list[Step]:
    """Return the history of ``seed``: always the same one."""
    rng = random.Random(seed)
    kinds = rng.choices([*KINDS], [*KINDS.values()], k=length)
    return [Step(kind, *(rng.randrange(MOST) for _ in range(3))) for kind in kinds]


def written(history: History) -> str:
    """Return a history as one word for each step."""
    return " ".join("/".join(map(str, step)) for step in history)


def parse(text: str) -> list[Step]:
    """Return the history that `written` has written."""
    words = (word.split("/") for word in text.split())
    return [Step(kind, *map(int, numbers)) for kind, *numbers in words]


def shrunk(history: History, fails: Callable[[History], bool]) -> History:
    """Leave out steps for as long as ``fails`` says that the rest still fails, within 20 s."""
    deadline = time.monotonic() + SHRINK_SECONDS
    size = len(history) // 2
    while size:
        start = 0
        while start < len(history) and time.monotonic() < deadline:
            shorter = [*history[:start], *history[start + size :]]
            if fails(shorter):
                history = shorter
            else:
                start += size
        size //= 2
    return history
