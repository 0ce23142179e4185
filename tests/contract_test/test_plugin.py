"""The pytest plugin, in pytest runs of its own: as a provider author or an application has them."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytest_plugins = ("pytester",)

HARNESS = """
from abe.testing import BackendContract, ConsumerContract
from tests.selftest.reference import ReferenceHarness
"""


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # The plugins of others take longer to import than most of these tests to run.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


def run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess("-W", "error", "-p", "abe", *args)


# -- contract classes ----------------------------------------------------------------------


def test_subclasses_are_collected_and_run(pytester: pytest.Pytester) -> None:
    """Whether the harness is a class, comes from a method or from a fixture."""
    pytester.makepyfile(
        HARNESS
        + """
import pytest

class TestMine(BackendContract):
    harness = ReferenceHarness

class TestConsumer(ConsumerContract):
    def harness(self):
        return ReferenceHarness()

class TestOther(BackendContract):
    @pytest.fixture(autouse=True)
    def _broker(self, tmp_path):
        self.harness = ReferenceHarness()
"""
    )
    result = run(pytester, "-k", "TestMine and peek or handles_everything or resume_acks")
    result.assert_outcomes(passed=8, skipped=1)
    assert result.ret == 0


def test_no_async_plugin_is_needed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(HARNESS + "class TestMine(BackendContract): harness = ReferenceHarness")
    run(pytester, "-p", "no:anyio", "-k", "resume_acks").assert_outcomes(passed=1)


def test_a_missing_harness_is_said(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(HARNESS + "class TestMine(BackendContract): pass")
    result = run(pytester, "-k", "resume_acks")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*TestMine.harness is None; it must be an abe.testing.Harness*"])


def test_a_failure_shows_the_scenario_and_what_arrived(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        HARNESS
        + """
from tests.selftest.broken.settling import NackIsAck

class TestMine(BackendContract):
    def harness(self):
        return ReferenceHarness(NackIsAck, patience=0.3)
"""
    )
    result = run(pytester, "-k", "test_nack_redelivers")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*in test_nack_redelivers*",
            "*again = await context.next(stream, *",
            "E * waited 0.3 s for the nacked message to come again; published 1: {'n': 0}*",
            "E * capabilities tested here: redelivery",
        ]
    )


def test_assertions_of_an_authors_own_cases_are_rewritten(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        HARNESS
        + """
from abe.testing.case import case

class TestMine(BackendContract):
    harness = ReferenceHarness

    @case("peek")
    async def test_own(self, context):
        '''My backend peeks at what was published.'''
        sent = await context.send(1)
        assert [dict(m) for m in await context.backend.peek()] == [{"n": 1}]
"""
    )
    result = run(pytester, "-k", "test_own")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *assert [[]{'n': 0}[]] == [[]{'n': 1}[]]*"])


def test_a_class_that_skips_everything_fails_the_run(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        HARNESS
        + """
import pytest

class Absent(ReferenceHarness):
    def make(self, namespace):
        pytest.skip("todo: fix")

class TestMine(BackendContract):
    harness = Absent
"""
    )
    result = run(pytester)
    outcomes = result.parseoutcomes()
    assert set(outcomes) == {"skipped"}
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*TestMine has skipped every case, which proves nothing*"])


ABSENT = """
import pytest

class TestMine(BackendContract):
    @pytest.fixture(autouse=True)
    def _broker(self):
        pytest.skip("there is no broker here")
"""


def test_an_author_may_skip_a_class_where_there_is_no_broker(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(HARNESS + ABSENT)
    assert run(pytester, "-q").ret == 0
    monkeypatch.setenv("CI", "true")
    assert run(pytester, "-q").ret == pytest.ExitCode.TESTS_FAILED


def test_a_selection_that_skips_is_no_failure(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(HARNESS + "class TestMine(BackendContract): harness = ReferenceHarness")
    result = run(pytester, "-k", "peek_unclaimed")
    result.assert_outcomes(skipped=1)
    assert result.ret == 0


def test_the_report_tells_of_every_capability(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(HARNESS + "class TestMine(BackendContract): harness = ReferenceHarness")
    result = run(pytester, "--abe-report", "-k", "peek or killed")
    result.stdout.fnmatch_lines(
        ["*abe contract*", "*TestMine: 7 pass, 0 fail, 1 skip", "  PASS  durable", "  PASS  peek"]
    )


# -- installed backends --------------------------------------------------------------------


def test_an_installed_backend_runs_alone(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_unrelated(): assert False")
    result = run(pytester, "--abe-backend=memory", "-k", "peek or unclaimed or resume")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "*abe contract*",
            "abe[[]memory[]]::TestBackendContract: * 0 fail, *",
            "  SKIP  admin  (declared: True)",
            "  PASS  peek  (declared: True)",
        ]
    )
    result.stdout.no_fnmatch_line("*test_unrelated*")


def test_an_installed_backend_runs_beside_other_tests(pytester: pytest.Pytester) -> None:
    path = pytester.makepyfile("def test_unrelated(): pass")
    result = run(
        pytester, "--abe-backend=memory", "-k", "resume_acks or unrelated", "-v", str(path)
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["abe[[]memory[]]::TestBackendContract::test_resume_acks PASSED*"])


def test_several_backends_at_a_time(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(mine="from tests.selftest.variants import PlainBackend")
    result = run(
        pytester,
        "--abe-backend=sqlite",
        "--abe-backend=mine:PlainBackend",
        "-k",
        "what_is_published or keys_share",
        "--rootdir=.",
        "-p",
        "mine",
    )
    result.assert_outcomes(passed=4)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--abe-backend=nobody"], "*no backend named 'nobody' is installed*"),
        (["--abe-backend=memory", "--abe-env=X"], "*--abe-env=X: write VARIABLE=VALUE*"),
        (["--abe-backend=no.such:Thing"], "*cannot be imported*"),
    ],
)
def test_mistakes_are_said(pytester: pytest.Pytester, args: list[str], said: str) -> None:
    result = run(pytester, *args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([said])


def test_variables_configure_the_backend(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        "--abe-backend=sqlite",
        "--abe-env=ABE_SQLITE_PATH={folder}/of-{namespace}.db",
        "--abe-env=ABE_SQLITE_LEASE=7",
        "-k",
        "resume_acks",
    )
    result.assert_outcomes(passed=1)


def test_the_plugin_is_found_and_does_not_disturb_others(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    pytester.makepyfile(
        """
        import sys

        def test_nothing_of_abe_is_imported():
            assert "abe.testing.plugin" in sys.modules
            heavy = [m for m in sys.modules if m.startswith("abe.backends")]
            assert not heavy
        """
    )
    result = pytester.runpytest_subprocess("-W", "error")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*abe contract*")


# -- the fixture ---------------------------------------------------------------------------


def test_applications_get_a_private_backend(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import asyncio
        import abe

        async def exchange(backend, n):
            await backend.publish("orders", {"n": n})
            return [dict(m) for m in await abe.load_backend().peek()]

        def test_first(abe_backend):
            assert asyncio.run(exchange(abe_backend, 1)) == [{"n": 1}]

        def test_second(abe_backend):
            assert asyncio.run(exchange(abe_backend, 2)) == [{"n": 2}]

        def test_sync(abe_backend):
            with abe.connect() as queue:
                queue.publish("orders", {"n": 3})
                assert queue.peek() == [{"n": 3}]
        """
    )
    run(pytester).assert_outcomes(passed=3)
