"""Counting the messages of a group by key, some at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from itertools import chain, islice

from abe.backends.message_queue.service.memory_store.group import Group, Record
from abe.types import ConsumerGroup, KeyStats

__all__ = ["Census"]

STEP = 10_000
"""Messages counted without a pause: a few milliseconds."""


class Census:
    """What a group had when this was made, and its numbers once all is counted."""

    def __init__(self, name: ConsumerGroup, group: Group) -> None:
        self._name = name
        sources: list[Iterable[Record]] = [
            list(group.ready.values()),
            [lease.record for lease in group.leases.values()],
            [record for _, _, record in group.delayed],
            [record for record, _, _ in group.dead.values()],
        ]
        self._rest = chain.from_iterable(
            ((column, record) for record in records) for column, records in enumerate(sources)
        )
        self._numbers: dict[str, list[int]] = {}
        self._oldest: dict[str, float] = {}

    def step(self) -> bool:
        counted = 0
        for column, record in islice(self._rest, STEP):
            counted += 1
            self._numbers.setdefault(record.key, [0, 0, 0, 0])[column] += 1
            if column < 3:
                oldest = self._oldest.get(record.key, math.inf)
                self._oldest[record.key] = min(oldest, record.time)
        return counted == STEP

    def entries(self) -> list[KeyStats]:
        now = time.time()
        return [
            KeyStats(
                key=key,
                group=self._name,
                ready=ready,
                in_flight=in_flight,
                delayed=delayed,
                dead=dead,
                oldest_age=max(0.0, now - self._oldest[key]) if key in self._oldest else None,
            )
            for key, (ready, in_flight, delayed, dead) in sorted(self._numbers.items())
        ]
