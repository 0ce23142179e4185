"""`run_contract` and the specification that `list_cases` gives."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

import abe
from abe.backends.message_queue.loader import load_backend_class
from abe.backends.message_queue.service.sqlite import SQLiteBackend
from abe.errors import ConfigurationError, UnknownBackendError
from abe.testing import (
    BackendContract,
    ContractReport,
    ContractRow,
    Harness,
    list_cases,
    run_contract,
)
from abe.testing.harness import HOOKS
from tests.selftest.broken.claiming import ClaimsStats
from tests.selftest.broken.settling import NackIsAck
from tests.selftest.reference import FULL, ReferenceBackend, ReferenceHarness
from tests.selftest.variants import PlainBackend

if TYPE_CHECKING:
    from tests.conftest import FakeDistribution


class Toy(ReferenceBackend):
    """Its messages are its own."""

    CAPABILITIES = replace(FULL, durable=False)


# -- the specification ---------------------------------------------------------------------


def test_cases_are_a_specification() -> None:
    cases = list_cases()
    assert len({case.id for case in cases}) == len(cases) > 100
    assert len({case.obligation for case in cases}) == len(cases)
    assert {hook for case in cases for hook in case.hooks} == set(HOOKS)
    for case in cases:
        assert case.obligation.endswith(".")
        assert "\n" not in case.obligation


def test_every_capability_has_a_case() -> None:
    from dataclasses import fields

    from abe.backends.message_queue.base import Capabilities

    tested = {name for case in list_cases() for name in case.capabilities}
    assert tested == {field.name for field in fields(Capabilities)}


# -- targets -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "memory",
        "sqlite",
        load_backend_class("memory"),
        Toy,
        Toy.from_env,
        lambda: Toy(),
        ReferenceHarness,
        ReferenceHarness(),
        PlainBackend,
        "tests.selftest.variants:PlainBackend",
    ],
)
def test_targets(target: Any) -> None:
    report = run_contract(target, select="what_is_published_arrives")
    assert report.ok, str(report)
    assert [row.case for row in report.rows] == ["what_is_published_arrives"]


def test_a_factory_may_take_the_namespace() -> None:
    harness = ReferenceHarness()
    report = run_contract(harness.make, select=["backends_share_their_data", "namespaces_*"])
    assert [row.outcome for row in report.rows] == ["pass", "pass"]


def test_a_factory_of_lone_backends_skips_what_needs_two() -> None:
    report = run_contract(PlainBackend, select="backends_share_their_data")
    (row,) = report.rows
    assert (row.outcome, row.reason) == ("skip", "harness has no reopen")
    assert not report.ok
    assert "nothing was proven" in report.summary()


def test_a_contract_class_brings_its_own_sizes_and_cases() -> None:
    class Own(BackendContract):
        harness = ReferenceHarness
        stress_messages = 7

    sizes: list[int] = []

    class Watching(ReferenceHarness):
        def make(self, namespace: str) -> ReferenceBackend:
            backend = super().make(namespace)
            sizes.append(len(backend.store.log))
            return backend

    Own.harness = Watching
    report = run_contract(Own, select="load_is_shared_exactly")
    assert report.ok
    assert report.target == "Own"


@pytest.mark.parametrize("target", [7, ReferenceBackend(), object])
def test_what_cannot_be_tested_is_said(target: object) -> None:
    with pytest.raises(TypeError, match="cannot test"):
        run_contract(target)


def test_unknown_names_and_selections_are_said() -> None:
    with pytest.raises(UnknownBackendError):
        run_contract("nobody")
    with pytest.raises(ConfigurationError, match="matches no case"):
        run_contract(ReferenceHarness, select="no such case")
    with pytest.raises(ConfigurationError, match="cannot be imported"):
        run_contract("tests.selftest.variants:Nobody")
    with pytest.raises(ConfigurationError, match="no name"):
        run_contract(ReferenceHarness, env={"A": "b"})


STRANGER = """
from dataclasses import replace
from tests.selftest.reference import FULL, ReferenceBackend
from tests.selftest.store import Store
import os

STORES = {}

class Backend(ReferenceBackend):
    CAPABILITIES = replace(FULL, durable=True)

    @classmethod
    def from_env(cls):
        prefix = os.environ.get("STRANGER_PREFIX", "")
        return cls(STORES.setdefault(prefix, Store(FULL)))

class Isolated(Backend):
    namespace_variable = "STRANGER_PREFIX"
"""


@pytest.fixture
def stranger(fake_distribution: FakeDistribution) -> None:
    fake_distribution(
        "stranger",
        {"stranger": "stranger_pkg:Backend", "isolated": "stranger_pkg:Isolated"},
        {"stranger_pkg/__init__.py": STRANGER},
    )


@pytest.mark.usefixtures("stranger")
def test_a_durable_backend_is_only_tested_apart_from_its_messages() -> None:
    with pytest.raises(ConfigurationError, match="namespace"):
        run_contract("stranger")
    wanted = ["namespaces_are_apart", "backends_share_their_data"]
    for name, env in (("isolated", None), ("stranger", {"STRANGER_PREFIX": "x{namespace}"})):
        report = run_contract(name, env=env, select=wanted)
        assert [row.outcome for row in report.rows] == ["pass", "pass"], str(report)


class Mine(SQLiteBackend):
    """As somebody writes one in a notebook: it is not installed."""


@pytest.mark.parametrize("target", [Mine, lambda: Mine(), Mine.from_env], ids=["class", "f", "m"])
def test_nothing_is_tested_on_the_messages_of_its_author(
    target: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABE_SQLITE_PATH", str(tmp_path / "queue.sqlite3"))
    with abe.connect(Mine.from_env()) as queue:
        queue.publish("orders.paid", {"n": 1})
    with pytest.raises(ConfigurationError, match="test a function that takes the namespace"):
        run_contract(target, select="purge_selects")
    with abe.connect(Mine.from_env()) as queue:
        assert queue.peek() == [{"n": 1}]


class Configurable(PlainBackend):
    """Its from_env() may be given something that is no namespace."""

    @classmethod
    def from_env(cls, url: str | None = None) -> Self:
        assert url is None
        return cls()


def test_the_namespace_is_not_given_to_from_env() -> None:
    assert run_contract(Configurable, select="what_is_published_arrives").ok


# -- reports -------------------------------------------------------------------------------


def test_a_failure_tells_what_and_which_capability() -> None:
    report = run_contract(ReferenceHarness(ClaimsStats), select=["stats_*", "resume_acks"])
    assert not report.ok
    assert report.failed >= 4
    for row in report.failures():
        assert "capabilities tested here: stats" in row.reason
        assert "UnsupportedError" in row.reason
    assert report.capabilities()["stats"] == "fail"
    assert report.capabilities()["redelivery"] == "fail"
    assert "FAIL  stats_add_up" in str(report)
    assert "1 passed" in report.summary()


def test_a_hanging_backend_is_told_what_was_waited_for() -> None:
    harness = ReferenceHarness(NackIsAck, patience=1.5)
    (row,) = run_contract(harness, select="nack_redelivers").rows
    assert "waited 1.5 s for the nacked message to come again" in row.reason
    assert "published 1: {'n': 0}" in row.reason
    assert "arrived 1: {'n': 0}" in row.reason


def test_reports_are_json() -> None:
    report = run_contract(ReferenceHarness, select="peek_*")
    told = json.loads(json.dumps(report.to_dict()))
    assert told["ok"] is True
    assert told["declared"]["peek"] is True
    assert {row["outcome"] for row in told["rows"]} <= {"pass", "skip"}
    assert told["capabilities"]["peek"] == "pass"


def test_rows_are_told_as_they_come() -> None:
    rows: list[ContractRow] = []
    report = run_contract(ReferenceHarness, select="peek_*", on_row=rows.append)
    assert tuple(rows) == report.rows


def test_an_empty_report_proves_nothing() -> None:
    assert not ContractReport("nothing").ok


def test_it_runs_inside_a_running_loop() -> None:
    async def cell() -> ContractReport:
        return run_contract(ReferenceHarness, select="resume_acks")

    assert asyncio.run(cell()).ok


def test_it_leaves_nothing_behind() -> None:
    threads = set(threading.enumerate())
    handlers = list(logging.getLogger("abe").handlers)
    run_contract("sqlite", select=["resume_acks", "attempts_*"])
    assert set(threading.enumerate()) == threads
    assert logging.getLogger("abe").handlers == handlers


def test_the_harness_of_a_name_is_cleaned_up(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run_contract("sqlite", select="resume_acks")
    with pytest.raises(ConfigurationError, match="matches no case"):
        run_contract("sqlite", select="no such case")
    assert not list(tmp_path.iterdir())


def test_nothing_is_said_on_standard_error() -> None:
    code = "from abe.testing import run_contract; assert run_contract('memory', select='peek').ok"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True, text=True, check=True, timeout=50,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")


class BadHarness(Harness):
    """Its make() fails."""

    def make(self, namespace: str) -> Any:
        raise OSError("no broker here")


def test_a_harness_that_fails_is_a_failure() -> None:
    report = run_contract(BadHarness, select="resume_acks")
    (row,) = report.rows
    assert row.outcome == "fail"
    assert row.reason.startswith("OSError: no broker here, in make(), test_runner.py, line ")


CELL = """
class Backend:
    @classmethod
    def from_env(cls):
        return cls()
    async def publish(self, key, payload):
        pass
    async def consume(self, *, group=None):
        yield {"n": float("soon")}
"""


@pytest.mark.parametrize("case", ["what_is_published_arrives", "consumers_share"])
def test_a_failure_tells_the_place_in_the_authors_code(case: str) -> None:
    scope: dict[str, Any] = {}
    exec(compile(CELL, "/nowhere/cell.py", "exec"), scope)
    (row,) = run_contract(scope["Backend"], select=case).rows
    told = "ValueError: could not convert string to float: 'soon', in consume(), line 9"
    assert row.reason == told


class NoBackend:
    """Its methods are missing, which abe's own code finds."""

    consume = publish = from_env = None


def test_a_failure_outside_of_the_authors_code_has_no_place_in_it() -> None:
    (row,) = run_contract(lambda: NoBackend, select="what_is_published_arrives").rows
    assert row.reason == "TypeError: 'NoneType' object is not callable"


class SkippingHarness(Harness):
    """It finds no broker, and was written for pytest."""

    def make(self, namespace: str) -> Any:
        pytest.skip("no broker here")


def test_a_harness_may_skip_as_pytest_does() -> None:
    (row,) = run_contract(SkippingHarness, select="resume_acks").rows
    assert (row.outcome, row.reason) == ("skip", "no broker here")


class CancellingBackend(PlainBackend):
    """Lets a cancellation of its own through."""

    async def publish(self, key: str, payload: dict[str, Any]) -> None:
        raise asyncio.CancelledError


def test_a_stray_cancellation_is_a_failure() -> None:
    (row,) = run_contract(CancellingBackend, select="what_is_published_arrives").rows
    assert row.outcome == "fail"


def test_ctrl_c_ends_the_run() -> None:
    def interrupt(row: ContractRow) -> None:
        raise KeyboardInterrupt

    rows: list[ContractRow] = []
    with pytest.raises(KeyboardInterrupt):
        run_contract(ReferenceHarness, select="peek_*", on_row=interrupt)
    run_contract(ReferenceHarness, select="peek_*", on_row=rows.append)
    assert rows


def test_it_works_without_pytest() -> None:
    code = (
        "import sys; sys.modules['pytest'] = None\n"
        "from abe.testing import run_contract\n"
        "assert run_contract('memory', select='peek').ok"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)


class AsyncHarness(ReferenceHarness):
    """Everything in it is a coroutine."""

    async def make(self, namespace: str) -> ReferenceBackend:  # type: ignore[override]
        await asyncio.sleep(0)
        return super().make(namespace)

    async def advance_time(self, seconds: float) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().advance_time(seconds)


def test_harnesses_may_be_asynchronous() -> None:
    report = run_contract(AsyncHarness, select=["lapsed_lease_redelivers", "longest_delay"])
    assert report.passed == 2


def test_importing_the_plugin_imports_nothing_heavy() -> None:
    code = (
        "import sys, abe.testing.plugin;"
        "print(sorted(m for m in sys.modules if m.startswith('abe.') or m == 'asyncio.sslproto'))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    loaded = [m for m in eval(result.stdout) if m.startswith("abe.")]
    assert loaded == ["abe._version", "abe.errors", "abe.testing", "abe.testing.plugin"]
