"""The reference backend passes the suite in every variant: what fails a broken one is the fault."""

from __future__ import annotations

from abe.testing import BackendContract, ConsumerContract
from abe.testing.reference import ReferenceHarness
from abe.testing.variants import (
    Bare,
    GroupFiltered,
    KeyOrdered,
    Modest,
    PlainHarness,
    UpperBound,
)


class Both(BackendContract, ConsumerContract):
    stress_messages = 100


class TestReference(Both):
    harness = ReferenceHarness


class TestKeyOrdered(Both):
    def harness(self) -> ReferenceHarness:
        return ReferenceHarness(KeyOrdered)


class TestGroupFiltered(Both):
    def harness(self) -> ReferenceHarness:
        return ReferenceHarness(GroupFiltered)


class TestUpperBound(Both):
    def harness(self) -> ReferenceHarness:
        return ReferenceHarness(UpperBound)


class TestModest(Both):
    def harness(self) -> ReferenceHarness:
        return ReferenceHarness(Modest)


class TestBare(Both):
    def harness(self) -> ReferenceHarness:
        return ReferenceHarness(Bare)


class TestPlain(Both):
    harness = PlainHarness
