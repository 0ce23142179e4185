"""The contract classes that a provider author subclasses."""

from __future__ import annotations

from abe.testing.case import Case, cases_of
from abe.testing.cases.attempts import AttemptCases
from abe.testing.cases.bulk import BulkCases
from abe.testing.cases.claims import ClaimCases
from abe.testing.cases.dead import DeadLetterCases
from abe.testing.cases.delays import DelayCases
from abe.testing.cases.delivery import DeliveryCases
from abe.testing.cases.groups import GroupCases
from abe.testing.cases.handling import HandlingCases
from abe.testing.cases.inspection import InspectionCases
from abe.testing.cases.keys import KeyCases
from abe.testing.cases.leases import LeaseCases
from abe.testing.cases.lifecycle import LifecycleCases
from abe.testing.cases.load import LoadCases
from abe.testing.cases.metadata import MetadataCases
from abe.testing.cases.ordering import OrderingCases
from abe.testing.cases.payloads import PayloadCases
from abe.testing.cases.running import RunningCases
from abe.testing.cases.settling import SettlingCases
from abe.testing.cases.streams import StreamCases

__all__ = ["BackendContract", "ConsumerContract", "list_cases"]


class BackendContract(
    LoadCases,
    LifecycleCases,
    ClaimCases,
    InspectionCases,
    DeadLetterCases,
    BulkCases,
    DelayCases,
    OrderingCases,
    KeyCases,
    GroupCases,
    LeaseCases,
    AttemptCases,
    StreamCases,
    SettlingCases,
    MetadataCases,
    PayloadCases,
    DeliveryCases,
):
    """Every obligation of a backend that can be checked from outside.

    Subclass it in a test module and give it a harness; pytest finds the cases, and each runs or is
    skipped by what the backend declares::

        class TestMyBackend(BackendContract):
            harness = MyHarness
    """


class ConsumerContract(RunningCases, HandlingCases):
    """The same backend, driven through `abe.AsyncLoopConsumer`.

    Subclass it beside `BackendContract`, with the same harness.
    """


def list_cases() -> list[Case]:
    """Return every case: the specification of a backend, in the order in which it is tested."""
    return [*cases_of(BackendContract), *cases_of(ConsumerContract)]
