"""The pytest plugin: ``--abe-backend``, a report by capability, and the fixture `abe_backend`.

Every pytest run of an environment with abe in it imports this module: it imports nothing of abe
beyond the package itself until it has something to do.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import types
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from abe.testing.base import ContractBase
    from abe.testing.harness import Harness
    from abe.testing.report import Outcome
    from abe.types import MessageQueueBackendProtocol

CASES = "abe.testing.cases"
PROPERTY = "abe"
"""Name of the user property that carries a case's particulars, also between xdist's processes."""

if CASES not in sys.modules:
    pytest.register_assert_rewrite(CASES)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the contract suite."""
    group = parser.getgroup("abe", "contract suite for message queue backends (abe)")
    group.addoption(
        "--abe-backend",
        action="append",
        default=[],
        metavar="NAME",
        help="run the contract suite on an installed backend, or on MODULE:ATTRIBUTE (a backend "
        "class, a harness); without other arguments nothing else is run",
    )
    group.addoption(
        "--abe-env",
        action="append",
        default=[],
        metavar="VARIABLE=VALUE",
        help="configure the backend; {namespace} in VALUE keeps cases apart, {folder} is temporary",
    )
    group.addoption(
        "--abe-report",
        action="store_true",
        help="show what the contract suite found of each capability, for every contract class",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the recorder; with ``--abe-backend`` alone, collect nothing else."""
    config.pluginmanager.register(_Recorder(config), "abe-recorder")
    if config.option.abe_backend and config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = []


class _Result(NamedTuple):
    """What became of a case: in the case itself, or already before it."""

    capabilities: tuple[str, ...]
    outcome: Outcome
    reached: bool


class _Recorder:
    """Generates contracts, and keeps what became of every contract class in the run."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._results: dict[str, list[_Result]] = {}
        self._deselected: set[str] = set()
        self._empty: list[str] = []
        self._harnesses: dict[str, Harness] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(
        self, session: pytest.Session, items: list[pytest.Item]
    ) -> None:
        """Add the contracts asked for, and mark every case of any contract."""
        for name in self._config.option.abe_backend:
            items.extend(self._generate(session, name))
        for item in items:
            case = getattr(getattr(item, "function", None), "__abe_case__", None)
            if case is not None:
                about = {"title": _title(item), "capabilities": list(case.capabilities)}
                item.user_properties.append((PROPERTY, about))

    def _generate(self, session: pytest.Session, name: str) -> Iterator[pytest.Item]:
        from abe.errors import AbeError

        try:
            module = _contract_module(name, _environment(self._config.option.abe_env))
        except (AbeError, TypeError) as error:
            raise pytest.UsageError(f"--abe-backend={name}: {error}") from None
        self._harnesses[name] = module.harness
        title = f"abe[{name}]"
        node = _ContractModule.from_parent(session, path=Path(__file__), name=title, nodeid=title)
        node.contract = module
        yield from session.genitems(node)

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        """Remember that a part was left out on purpose."""
        self._deselected |= {_title(item) for item in items}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record what became of a case."""
        about: Any = dict(report.user_properties).get(PROPERTY)
        if not isinstance(about, dict) or (report.passed and report.when != "call"):
            return
        if report.when == "teardown" and not report.failed:
            return
        outcome: Outcome = "pass" if report.passed else "skip" if report.skipped else "fail"
        result = _Result(tuple(about["capabilities"]), outcome, report.when == "call")
        self._results.setdefault(about["title"], []).append(result)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail a run in which a contract class has skipped everything: it proves nothing."""
        if hasattr(self._config, "workerinput"):
            return  # the process that started this worker sees all results
        on_purpose = not os.environ.get("CI")
        for title, results in self._results.items():
            skipped = all(r.outcome == "skip" for r in results)
            decided = on_purpose and not any(r.reached for r in results)
            if skipped and not decided and title not in self._deselected:
                self._empty.append(title)
        if self._empty and session.exitstatus in (pytest.ExitCode.OK, 5):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show one line for each capability, and what skipped everything."""
        shown = {
            title: results
            for title, results in self._results.items()
            if self._config.option.abe_report or title.partition("::")[0] in self._generated()
        }
        if shown:
            terminalreporter.section("abe contract")
        for title, results in shown.items():
            self._show(terminalreporter, title, results)
        for title in self._empty:
            terminalreporter.write_line(
                f"ERROR abe contract: {title} has skipped every case, which proves nothing",
                red=True,
            )

    def _generated(self) -> set[str]:
        return {f"abe[{name}]" for name in self._harnesses}

    def _show(
        self, terminal: pytest.TerminalReporter, title: str, results: Sequence[_Result]
    ) -> None:
        from abe.testing.report import by_capability

        name = title.partition("[")[2].partition("]")[0]
        harness = self._harnesses.get(name)
        declared = harness.declared if harness is not None else None
        numbers = {
            outcome: sum(r.outcome == outcome for r in results)
            for outcome in ("pass", "fail", "skip")
        }
        counts = ", ".join(f"{number} {outcome}" for outcome, number in numbers.items())
        terminal.write_line(f"{title}: {counts}")
        colours = {"pass": "green", "fail": "red", "skip": "yellow"}
        for capability, verdict in by_capability(
            (r.capabilities, r.outcome) for r in results
        ).items():
            claim = getattr(declared, capability, None)
            text = "" if declared is None or claim is None else f"  (declared: {claim})"
            terminal.write_line(
                f"  {verdict.upper():<4}  {capability}{text}", **{colours[verdict]: True}
            )

    def pytest_unconfigure(self) -> None:
        """Let the harnesses clean up."""
        for harness in self._harnesses.values():
            harness.close()


class _ContractModule(pytest.Module):
    """A module that exists only in this run."""

    contract: types.ModuleType

    def _getobj(self) -> types.ModuleType:
        return self.contract


def _contract_module(name: str, env: dict[str, str] | None) -> types.ModuleType:
    from abe.testing.contract import BackendContract, ConsumerContract
    from abe.testing.targets import harness_for

    harness, _ = harness_for(name, env)
    module = types.ModuleType(f"abe_contract_{uuid.uuid4().hex[:8]}", f"The contract of {name}.")
    module.harness = harness  # type: ignore[attr-defined]
    bases: tuple[type[ContractBase], ...] = (BackendContract, ConsumerContract)
    for base in bases:
        body = {"harness": harness, "__module__": module.__name__, "__doc__": base.__doc__}
        setattr(module, f"Test{base.__name__}", type(f"Test{base.__name__}", (base,), body))
    return module


def _environment(settings: Sequence[str]) -> dict[str, str] | None:
    pairs = [setting.partition("=") for setting in settings]
    wrong = [name for name, equals, _ in pairs if not equals or not name]
    if wrong:
        raise pytest.UsageError(f"--abe-env={wrong[0]}: write VARIABLE=VALUE")
    return {name: value for name, _, value in pairs} or None


def _title(item: pytest.Item) -> str:
    return item.nodeid.rpartition("::")[0]


@pytest.fixture
def abe_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[MessageQueueBackendProtocol]:
    """A private ``memory`` backend for this test.

    `abe.load_backend` and `abe.connect` select it: whatever the code under test opens without
    naming a backend shares its messages.
    """
    from abe.backends.message_queue.loader import load_backend

    monkeypatch.setenv("QUEUE_BACKEND", "memory")
    monkeypatch.setenv("ABE_MEMORY_NAME", f"test-{uuid.uuid4().hex}")
    backend = load_backend("memory")
    yield backend
    # In a thread, because an async plugin may have an event loop running here.
    closing = threading.Thread(target=lambda: asyncio.run(_close(backend)))
    closing.start()
    closing.join()


async def _close(backend: object) -> None:
    close = getattr(backend, "aclose", None)
    if close is not None:
        await close()
