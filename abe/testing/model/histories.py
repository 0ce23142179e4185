"""Runs histories, each in a namespace of its own; one that fails is shortened, to be replayed."""

from __future__ import annotations

import os

from abe.testing.base import ContractBase
from abe.testing.case import Case
from abe.testing.context import CaseContext
from abe.testing.execution import execute
from abe.testing.harness import Harness
from abe.testing.model.history import History, parse, random_history, shrunk, written
from abe.testing.model.player import Player
from abe.testing.requirements import Skipped

__all__ = ["Histories", "play"]

NEEDS = ("groups", "backlog", "redelivery=message", "release")
LIMIT = 6.0
"""Longest time that a history may take, in multiples of the harness's patience."""


class Histories(ContractBase):
    """Random histories of a backend, checked against one oracle; the same ones every time.

    Publishers, readers of every kind and consumers, cancelled, cut off, killed and closed at any
    moment, while time passes and leases lapse. Nothing may be lost, invented, early, out of order
    or counted wrongly. Subclass it beside `BackendContract`, with the same harness::

        class TestMyHistories(Histories):
            harness = MyHarness

    ``ABE_TEST_SEEDS`` is the number of them, ``ABE_TEST_HISTORY`` one to be played instead, as a
    failure prints it.
    """

    def test_histories(self) -> None:
        """Whatever happens, nothing is lost, invented, early or out of order."""
        harness = self.find_harness()
        given = os.environ.get("ABE_TEST_HISTORY")
        if given:
            play(parse(given), harness)
            return
        for seed in range(int(os.environ.get("ABE_TEST_SEEDS", "10"))):
            history = random_history(seed)
            try:
                play(history, harness)
            except Skipped:
                raise
            except Exception as error:
                error.add_note(self._replay(seed, shrunk(history, lambda h: fails(h, harness))))
                raise

    def _replay(self, seed: int, history: History) -> str:
        name = type(self).__name__
        return (
            f"seed {seed}; replay it with\n"
            f"ABE_TEST_HISTORY='{written(history)}' python -m pytest -k {name}"
        )


def play(history: History, harness: Harness) -> None:
    """Play a history on a backend in a fresh namespace.

    Raises:
        Skipped: If the backend cannot do what every history does.
        AssertionError: If something happened that cannot be; its notes tell all that had.
        Exception: Whatever else the backend raised.
    """
    log: list[str] = []

    async def scenario(_: object, context: CaseContext) -> None:
        await Player(context, log).play(history)

    case = Case("histories", "Nothing is lost.", NEEDS, (), LIMIT, scenario)
    try:
        execute(case, None, harness)
    except Skipped:
        raise
    except Exception as error:
        error.add_note("\n".join(log))
        raise


def fails(history: History, harness: Harness) -> bool:
    """Whether a history fails."""
    try:
        play(history, harness)
    except Exception:  # of whatever kind
        return True
    return False
