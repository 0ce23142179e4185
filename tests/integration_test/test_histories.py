"""Random histories of the built-in backends, and of an engine with one fault planted in it.

The built-in ones run directly and over the bridge, where the reader's event loop is not the one
that receives.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any

import pytest

import abe
from abe.backends.message_queue.base import Delivery, Message, Outcome, Settlement
from abe.backends.message_queue.base.subscription.ledger import Ledger
from abe.backends.message_queue.base.subscription.pump import Pump
from abe.backends.message_queue.base.subscription.read_ahead import ReadAhead
from abe.backends.message_queue.base.subscription.subscription import Subscription
from abe.backends.message_queue.handling.verdicts import Verdicts
from abe.backends.message_queue.service.memory import MemoryBackend
from abe.backends.message_queue.service.sqlite import SQLiteBackend
from abe.testing.model import Histories, play, random_history
from tests.contract_test.backends.message_queue.test_memory import MemoryHarness
from tests.contract_test.backends.message_queue.test_sqlite import LEASE, SQLiteHarness
from tests.selftest.reference import ReferenceHarness
from tests.selftest.variants import KeyOrdered

PATIENT = pytest.mark.timeout(300)  # a failure is shortened before it is told
SEEDS = 40
"""Within how many histories a planted fault must be found."""


@PATIENT
class TestMemoryHistories(Histories):
    harness = MemoryHarness


class BusyFile(SQLiteHarness):
    """Instead of a lost connection: another process writes for a moment, or all are closed."""

    cuts = 0

    def make(self, namespace: str, lease: float = LEASE) -> SQLiteBackend:
        if namespace != self._namespace:
            self.cuts = 0
        return super().make(namespace, lease)

    async def cut_connections(self) -> None:
        self.cuts += 1
        if self.cuts % 2:
            self.restart_broker()
            return
        with closing(sqlite3.connect(self.path(self._namespace))) as other:
            other.execute("BEGIN IMMEDIATE")
            await asyncio.sleep(0.02)


@PATIENT
class TestSQLiteHistories(Histories):
    harness = BusyFile


class Bridged(MemoryHarness):
    """The backend runs on the loop of the synchronous facade, its readers on another."""

    def __init__(self) -> None:
        super().__init__()
        self._portal = abe.connect(MemoryBackend("keeps-the-loop"))

    def make(self, namespace: str) -> Any:
        return abe.connect(super().make(namespace)).aio

    def close(self) -> None:
        self._portal.close()


@PATIENT
class TestBridgedHistories(Histories):
    harness = Bridged


@PATIENT
class TestReferenceHistories(Histories):
    harness = ReferenceHarness


@PATIENT
class TestKeyOrderedHistories(Histories):
    harness = ReferenceHarness(KeyOrdered)


Plant = Callable[[pytest.MonkeyPatch], None]


def lost_is_not_told(patch: pytest.MonkeyPatch) -> None:
    """A settlement that came after its lease counts as taken."""
    patch.setattr(Ledger, "report_lost", lambda self, delivery: None)


def giving_back_counts(patch: pytest.MonkeyPatch) -> None:
    """What is given back unread counts as a failure."""

    def give_back(self: Ledger, deliveries: Iterable[Delivery]) -> None:
        for delivery in deliveries:
            if not delivery.claims and not delivery.owned:
                self._accept(Settlement(delivery, Outcome.NACK), tell=False)

    patch.setattr(Ledger, "give_back", give_back)


def reconnecting_forgets(patch: pytest.MonkeyPatch) -> None:
    """A lost connection takes the buffer with it, until the leases lapse."""

    def drop(self: Pump) -> None:
        for delivery in self._ahead.remove_after(0):
            self._ledger.lose(delivery)

    patch.setattr(Pump, "_drop_buffer", drop)


def cancelled_take_forgets(patch: pytest.MonkeyPatch) -> None:
    """What a cancelled ``take`` had popped is not put back."""
    patch.setattr(Subscription, "give_back", lambda self, deliveries: deliveries.clear())


def putting_back_reorders(patch: pytest.MonkeyPatch) -> None:
    """What is put back comes behind what was received ahead."""
    patch.setattr(ReadAhead, "put_back", lambda self, deliveries: self.buffer.extend(deliveries))


def closing_drops_acks(patch: pytest.MonkeyPatch) -> None:
    """What is recorded when a subscription closes is not sent any more."""
    send = Ledger._send

    async def send_unless_closing(self: Ledger, batch: list[Settlement]) -> list[Settlement]:
        if self._connection._closing.is_set():
            return []
        return await send(self, batch)

    patch.setattr(Ledger, "_send", send_unless_closing)


def delay_is_dropped(patch: pytest.MonkeyPatch) -> None:
    """A nacked message comes back at once."""
    settle = Pump.settle
    patch.setattr(
        Pump,
        "settle",
        lambda self, delivery, outcome, delay=0.0, reason="": settle(
            self, delivery, outcome, 0.0, reason
        ),
    )


def giving_up_acks(patch: pytest.MonkeyPatch) -> None:
    """What a consumer gives up is done, and no dead letter."""

    async def give_up(self: Verdicts, message: Message, reason: str) -> None:
        await message.ack()

    patch.setattr(Verdicts, "give_up", give_up)


FAULTS: list[Plant] = [
    lost_is_not_told,
    giving_back_counts,
    reconnecting_forgets,
    cancelled_take_forgets,
    putting_back_reorders,
    closing_drops_acks,
    delay_is_dropped,
    giving_up_acks,
]


@PATIENT
@pytest.mark.parametrize("plant", FAULTS)
def test_planted_faults_are_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    harness = ReferenceHarness(patience=1.0)
    for seed in range(SEEDS):
        try:
            play(random_history(seed), harness)
        except AssertionError:
            return
    pytest.fail(f"{plant.__name__} survived {SEEDS} histories: {plant.__doc__}")
