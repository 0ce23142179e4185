"""The state machine: random histories of a backend, checked against one oracle.

`Histories` plays them under pytest. A step whose hook the harness lacks is left out: so for memory
no process is killed and no connection cut, and of a Redis server's clock no step is tried.
"""

from __future__ import annotations

from abe.testing.model.histories import Histories, play
from abe.testing.model.history import random_history

__all__ = ["Histories", "play", "random_history"]
