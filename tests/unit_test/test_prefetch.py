"""How far ahead a stream receives: more while the caller is fast, little once it is not."""

from __future__ import annotations

import pytest

from abe.backends.message_queue.base.subscription.prefetch import (
    MAX_RECEIVE,
    TICKS,
    PrefetchController,
)

LEASE = 40.0
QUARTER = LEASE / 4


class Caller:
    """Takes messages at a speed of its own."""

    def __init__(self, most: int = 1024) -> None:
        self.pace = PrefetchController(most)
        self.pace.asked()
        self.now = 100.0
        self.pace.adapt(self.now, LEASE)

    def take(self, count: int, seconds: float) -> None:
        """Take ``count`` messages within ``seconds``."""
        self.pace.yielded += count
        self.now += seconds
        self.pace.adapt(self.now, LEASE)

    @property
    def ahead(self) -> int:
        """How many would be received now, though nobody waits; 0 = none."""
        return self.pace.room(0, 0)


def test_nothing_is_received_ahead_at_first() -> None:
    pace = PrefetchController(1024)
    assert (pace.room(0, 0), pace.room(0, 1), pace.room(0, 7), pace.room(2, 7)) == (0, 1, 7, 5)
    assert pace.low == 0


def test_it_doubles_while_the_caller_is_fast_up_to_the_most() -> None:
    caller = Caller(most=20)
    seen = []
    for _ in range(6):
        caller.take(1, 0.001)
        seen.append(caller.ahead)
    assert seen == [2, 4, 8, 16, 20, 20]
    assert caller.pace.low == 10


def test_no_more_than_a_quarter_lease_of_work() -> None:
    caller = Caller()
    for _ in range(10):
        caller.take(1, QUARTER / 3.5)
    assert caller.ahead == 3
    caller.take(1, QUARTER * 2)
    assert caller.ahead == 0
    assert caller.pace.room(0, 1) == 1


def test_the_time_of_waiting_does_not_count() -> None:
    caller = Caller()
    caller.take(1, 0.001)
    caller.pace.waited(9 * QUARTER)
    caller.take(1, 9 * QUARTER + 0.001)
    assert caller.ahead == 4
    caller.take(1, 9 * QUARTER)  # this time nobody waited
    assert caller.ahead == 0


def test_without_progress_nothing_changes_but_the_time_that_counts() -> None:
    caller = Caller()
    caller.take(1, 0.001)
    caller.take(0, 10 * QUARTER)
    assert caller.ahead == 2
    caller.take(1, 0.001)
    assert caller.ahead == 4


def test_a_refill_waits_until_half_is_gone() -> None:
    caller = Caller()
    for _ in range(3):
        caller.take(1, 0.001)
    assert [caller.pace.room(buffered, 0) for buffered in (8, 5, 4, 1)] == [0, 0, 4, 7]
    assert caller.pace.low == 4
    assert caller.pace.easy == 5


def test_one_call_receives_no_more_than_a_batch() -> None:
    caller = Caller()
    for _ in range(12):
        caller.take(1, 1e-6)
    assert caller.ahead == MAX_RECEIVE
    assert caller.pace.low == 512
    assert caller.pace.room(0, 5000) == MAX_RECEIVE


def test_a_clock_that_stands_still_is_no_division_by_zero() -> None:
    caller = Caller()
    caller.take(5, 0.0)
    assert caller.ahead == 2


def test_with_a_suspect_nothing_is_received_ahead_and_nothing_is_easy() -> None:
    caller = Caller()
    for _ in range(4):
        caller.take(1, 0.001)
    caller.pace.be_careful(True)
    assert (caller.ahead, caller.pace.low) == (0, 0)
    assert caller.pace.easy == float("inf")
    caller.take(1, 0.001)
    assert caller.ahead == 0
    caller.pace.be_careful(False)
    assert caller.pace.easy == 1
    caller.take(1, 0.001)
    assert caller.ahead == 2


class TestTicks:
    """Sixteen times in a lease, what is buffered is compared with what the caller asks for."""

    def tick(self, caller: Caller, buffered: int, *, waiting: bool = False) -> int:
        return caller.pace.tick(buffered, caller.now, LEASE, waiting=waiting)

    def fast(self) -> Caller:
        caller = Caller()
        for _ in range(6):
            caller.take(1, 0.001)
        assert caller.ahead == 64
        return caller

    def test_an_idle_caller_keeps_nothing_and_gets_nothing_ahead(self) -> None:
        caller = self.fast()
        kept = [self.tick(caller, 64) for _ in range(TICKS)]
        assert kept == [64] * (TICKS - 1) + [0]
        assert caller.ahead == 0
        caller.pace.asked()
        assert caller.ahead == 0
        caller.take(1, 0.001)
        assert caller.ahead == 2

    def test_a_caller_that_asks_again_after_idling_is_not_idle(self) -> None:
        caller = self.fast()
        for _ in range(TICKS):
            self.tick(caller, 64)
        caller.take(1, 0.001)
        assert caller.ahead == 0
        caller.pace.asked()
        assert caller.ahead == 2

    def test_a_caller_that_waits_is_not_idle(self) -> None:
        caller = self.fast()
        kept = [self.tick(caller, 1, waiting=True) for _ in range(2 * TICKS)]
        assert kept == [1] * (2 * TICKS)
        assert caller.ahead == 64

    def test_one_that_became_slow_keeps_what_it_took_lately(self) -> None:
        caller = self.fast()
        kept = []
        for _ in range(TICKS):
            kept.append(self.tick(caller, 60))
            caller.pace.yielded += 1
            caller.now += LEASE / 16
        assert kept == [60, 60, 60, 3]
        assert caller.ahead == 3

    @pytest.mark.parametrize(("buffered", "kept"), [(10, 10), (11, 3)])
    def test_up_to_three_times_as_much_is_let_be(self, buffered: int, kept: int) -> None:
        caller = self.fast()
        for _ in range(TICKS - 1):
            self.tick(caller, buffered)
            caller.pace.yielded += 1
        assert self.tick(caller, buffered) == kept

    def test_ticks_begin_anew_when_something_is_held_again(self) -> None:
        caller = self.fast()
        for _ in range(TICKS - 1):
            self.tick(caller, 64)
        caller.pace.begin()
        assert [self.tick(caller, 64) for _ in range(TICKS)] == [64, 64, 64, 0]
