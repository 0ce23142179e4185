"""Running the contract suite without pytest."""

from __future__ import annotations

import fnmatch
import logging
import sysconfig
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from abe.errors import ConfigurationError
from abe.testing.base import ContractBase
from abe.testing.case import Case, cases_of
from abe.testing.contract import BackendContract, ConsumerContract
from abe.testing.execution import execute
from abe.testing.harness import Harness
from abe.testing.report import ContractReport, ContractRow, Outcome
from abe.testing.requirements import Skipped
from abe.testing.targets import harness_for, imported

__all__ = ["run_contract"]

abe_logger = logging.getLogger("abe")

ABE = str(Path(__file__).parents[1])
LIBRARY = sysconfig.get_path("stdlib")
SITE = sysconfig.get_path("purelib")
"""Below ``LIBRARY`` where packages are installed."""


def run_contract(
    target: object,
    *,
    select: str | Iterable[str] | None = None,
    env: Mapping[str, str] | None = None,
    on_row: Callable[[ContractRow], object] | None = None,
) -> ContractReport:
    """Run every case that applies to a backend, and return what came of each.

    Works where an event loop is running, as in a notebook: each case runs in a thread. Nothing is
    raised for a case that fails; look at the report.

    Args:
        target: The name of an installed backend; a backend class; a function that makes a backend,
            with the namespace as its argument or with none; a `Harness` or a subclass of it; a
            subclass of `BackendContract` or `ConsumerContract`, for its sizes and own cases. A
            text ``"package.module:attribute"`` names any of these.
        select: Only cases whose id matches one of these shell patterns, or contains it.
        env: Variables for a backend given by name; ``{namespace}`` in a value stands for the
            namespace, ``{folder}`` for a temporary folder.
        on_row: Called with each row as soon as there is one.

    Raises:
        AbeError: If the named backend cannot be loaded, or its broker does not answer.
        ConfigurationError: If ``select`` matches no case, or if nothing keeps the cases apart from
            messages that a durable backend has.
        TypeError: If ``target`` is nothing that can be tested.
    """
    with _quiet():
        contracts, harness, name = _resolve(target, env)
        rows = []
        try:
            for contract, case in _chosen(contracts, select):
                rows.append(_run(case, contract, harness))
                if on_row is not None:
                    on_row(rows[-1])
        finally:
            if harness is not target:
                harness.close()
    return ContractReport(name, tuple(rows), harness.declared)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave no log line on standard error: broken handlers are part of the cases."""
    handler = logging.NullHandler()
    abe_logger.addHandler(handler)
    try:
        yield
    finally:
        abe_logger.removeHandler(handler)


def _resolve(
    target: object, env: Mapping[str, str] | None
) -> tuple[list[ContractBase], Harness, str]:
    if isinstance(target, str) and ":" in target:
        target = imported(target)
    if isinstance(target, type) and issubclass(target, ContractBase):
        contract = target()
        return [contract], contract.find_harness(), target.__name__
    harness, name = harness_for(target, env)
    return [BackendContract(), ConsumerContract()], harness, name


def _chosen(
    contracts: Iterable[ContractBase], select: str | Iterable[str] | None
) -> list[tuple[ContractBase, Case]]:
    patterns = [select] if isinstance(select, str) else None if select is None else list(select)
    chosen = [
        (contract, case)
        for contract in contracts
        for case in cases_of(type(contract))
        if patterns is None or any(_matches(case, pattern) for pattern in patterns)
    ]
    if not chosen:
        raise ConfigurationError(f"select={select!r} matches no case of the contract")
    return chosen


def _matches(case: Case, pattern: str) -> bool:
    return pattern in case.id or fnmatch.fnmatchcase(case.id, pattern)


def _run(case: Case, contract: ContractBase, harness: Harness) -> ContractRow:
    started = time.perf_counter()
    outcome: Outcome = "pass"
    reason = ""
    try:
        execute(case, contract, harness)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # also a CancelledError that a backend lets through
        # pytest.skip() in a harness raises a class of that name, which is no Exception.
        skipped = isinstance(error, Skipped) or type(error).__name__ == Skipped.__name__
        outcome, reason = ("skip", str(error)) if skipped else ("fail", _reason(error))
    seconds = time.perf_counter() - started
    return ContractRow(case.id, case.obligation, case.capabilities, outcome, reason, seconds)


def _reason(error: BaseException) -> str:
    text = str(error)
    if not isinstance(error, AssertionError):
        location = _location(error)
        text = f"{type(error).__name__}: {str(error).rstrip('.') if location else error}{location}"
    return "\n".join([text, *getattr(error, "__notes__", ())])


def _location(error: BaseException) -> str:
    """Return where in the author's code ``error`` came up, as the end of a sentence."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_relative_to(ABE) or frame.filename.startswith("<frozen"):
            continue
        if file.is_relative_to(LIBRARY) and not file.is_relative_to(SITE):
            continue
        where = f"{file.name}, " if file.is_file() else ""  # the cell of a notebook has no file
        return f", in {frame.name}(), {where}line {frame.lineno}"
    return ""
