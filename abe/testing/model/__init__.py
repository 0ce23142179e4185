"""The state machine: random histories of a backend, checked against one oracle.

Under pytest, subclass `Histories` and give it the harness that the contract suite has::

    class TestMyHistories(Histories):
        harness = MyHarness
"""

from __future__ import annotations

from abe.testing.model.histories import Histories, play
from abe.testing.model.history import random_history

__all__ = ["Histories", "play", "random_history"]
