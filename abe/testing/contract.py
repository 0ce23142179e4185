"""The contract classes that a provider author subclasses."""

from __future__ import annotations

from abe.testing.case import Case, cases_of
from abe.testing.cases.delivery import DeliveryCases
from abe.testing.cases.settling import SettlingCases

__all__ = ["BackendContract", "list_cases"]


class BackendContract(DeliveryCases, SettlingCases):
    """Every obligation of a backend that can be checked from outside.

    Subclass it in a test module and give it a harness; pytest finds the cases, and each runs or is
    skipped by what the backend declares::

        class TestMyBackend(BackendContract):
            harness = MyHarness
    """


def list_cases() -> list[Case]:
    """Return every case: the specification of a backend, in the order in which it is tested."""
    return list(cases_of(BackendContract))
