"""The reference backend passes the suite in every variant: what fails a broken one is the fault."""

from __future__ import annotations

from abe.testing import BackendContract, ConsumerContract, run_contract
from tests.selftest.reference import ReferenceHarness
from tests.selftest.variants import (
    Bare,
    GroupFiltered,
    KeyOrdered,
    Modest,
    PlainHarness,
    UpperBound,
)


def test_a_lease_may_be_longer_than_the_harness_is_patient() -> None:
    """What a cut connection had received comes back only when its lease has lapsed."""
    lease = Modest.CAPABILITIES.lease
    assert lease is not None
    harness = ReferenceHarness(Modest, patience=0.6 * lease)
    cases = ["consumer_outlives_cut", "unsettled_survives_cut", "load_through_cuts"]
    report = run_contract(harness, select=cases)
    assert (report.ok, report.passed) == (True, 3), str(report)


class Both(BackendContract, ConsumerContract):
    stress_messages = 100


class TestReference(Both):
    harness = ReferenceHarness


class TestKeyOrdered(Both):
    harness = ReferenceHarness(KeyOrdered)


class TestGroupFiltered(Both):
    harness = ReferenceHarness(GroupFiltered)


class TestUpperBound(Both):
    harness = ReferenceHarness(UpperBound)


class TestModest(Both):
    harness = ReferenceHarness(Modest)


class TestBare(Both):
    harness = ReferenceHarness(Bare)


class TestPlain(Both):
    harness = PlainHarness
