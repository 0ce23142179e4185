"""The suite's own test: every broken backend is failed, by the case made for it, for its fault."""

from __future__ import annotations

from collections import Counter

import pytest

from abe.testing import BackendContract, ConsumerContract, list_cases
from abe.testing.case import Case, cases_of
from abe.testing.execution import execute
from abe.testing.requirements import Skipped
from tests.selftest.broken import BROKEN, BrokenBackend
from tests.selftest.reference import ReferenceBackend, ReferenceHarness
from tests.selftest.variants import VARIANTS

PATIENCE = ((0.25, 0.02), (3.0, 0.5))
"""Seconds to wait for what must happen and for what must not: everything here is in memory. The
second pair is for a machine so busy that the first was too short to see the fault itself."""

CATCHES_NOTHING: dict[str, str] = {
    "own_dead_letters_are_refused": "it is the consumer that refuses, whatever the backend does",
}
"""Cases that need not catch a broken backend, and why."""

CONTRACTS = (BackendContract, ConsumerContract)
OF = {case.id: (contract, case) for contract in CONTRACTS for case in cases_of(contract)}

PAIRS = [
    pytest.param(broken, OF[caught_by], id=f"{broken.name}-{caught_by}")
    for broken in BROKEN
    for caught_by in broken.caught_by
]


@pytest.mark.parametrize(("broken", "by"), PAIRS)
def test_every_broken_backend_is_failed(
    broken: BrokenBackend, by: tuple[type[BackendContract | ConsumerContract], Case]
) -> None:
    contract, case = by[0](), by[1]
    contract.stress_messages = 60
    expected = broken.says if case.id == broken.caught_by[0] else ""
    failure = ""
    for patience, quiet in PATIENCE:
        failure = _failure(broken, contract, case, patience, quiet)
        if failure and expected in failure:
            break
    assert failure, f"{broken.name} survived {case.id}, although: {broken.fault}"
    assert expected in failure


def _failure(
    broken: BrokenBackend,
    contract: BackendContract | ConsumerContract,
    case: Case,
    patience: float,
    quiet: float,
) -> str:
    harness = broken.make_harness(patience)
    harness.quiet = quiet
    harness.short_delay = max(harness.short_delay, 2 * quiet)
    try:
        execute(case, contract, harness)
    except Skipped as skipped:
        pytest.fail(f"{case.id} does not apply to {broken.name}: {skipped}")
    except Exception as error:
        return "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
    return ""


def test_every_case_catches_something(capsys: pytest.CaptureFixture[str]) -> None:
    caught = Counter(case for broken in BROKEN for case in broken.caught_by)
    cases = [case.id for case in list_cases()]
    with capsys.disabled():
        print(f" {len(BROKEN)} broken backends, {len(cases)} cases ", end="")
    idle = [case for case in cases if not caught[case] and case not in CATCHES_NOTHING]
    assert not idle, "these cases are not known to catch anything"
    stale = [case for case in CATCHES_NOTHING if caught[case] or case not in cases]
    assert not stale, "these excuses are out of date"


UNUSUAL = [
    broken
    for broken in BROKEN
    if getattr(broken.backend, "CAPABILITIES", None) not in [v.CAPABILITIES for v in VARIANTS]
    and issubclass(broken.backend, ReferenceBackend)
    and broken.caught_by[0] != "claims_are_consistent"
]


@pytest.mark.parametrize("broken", UNUSUAL, ids=lambda broken: broken.name)
def test_it_is_the_fault_that_fails_it(broken: BrokenBackend) -> None:
    """The other capabilities are those of variants that pass everything: see test_reference.py."""

    assert issubclass(broken.backend, ReferenceBackend)
    claims = broken.backend.CAPABILITIES

    class Correct(ReferenceBackend):
        CAPABILITIES = claims

    for caught_by in broken.caught_by:
        contract, case = OF[caught_by]
        execute(case, contract(), ReferenceHarness(Correct))


def test_broken_backends_are_told_apart() -> None:
    names = Counter(broken.name for broken in BROKEN)
    assert names.most_common(1)[0][1] == 1
    assert len(BROKEN) >= 150
    unknown = {case for broken in BROKEN for case in broken.caught_by} - set(OF)
    assert not unknown
