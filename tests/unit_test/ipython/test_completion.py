"""Completion behind the magics, help, and the contract magic."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from IPython.core.completer import CompletionContext, provisionalcompleter
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

import abe
from abe.ipython.contract import Contract
from abe.ipython.magics import AbeMagics
from abe.testing import ContractReport, ContractRow

Run = Callable[..., Any]


def complete(shell: InteractiveShell, text: str) -> list[str]:
    """Return what the shell offers at the end of ``text``."""
    line = text.count("\n")
    column = len(text) - text.rfind("\n") - 1
    magics = shell.magics_manager.registry["AbeMagics"]
    context = CompletionContext("", text, column, line, None)
    return [c.text for c in magics._matcher(context)["completions"]]


def offered(shell: InteractiveShell, text: str) -> list[str]:
    """Return what the shell itself makes of that."""
    with provisionalcompleter():
        found = list(shell.Completer.completions(text, len(text)))
    return [completion.text for completion in found]


@pytest.fixture
def known(shell: InteractiveShell, run: Run, q: abe.SyncBackend) -> InteractiveShell:
    """A shell whose magics have seen keys and groups."""
    run('%abe_publish orders.created {"n": 1}')
    run('%abe_publish orders.paid {"n": 2}')
    run("%abe_consume -g billing -n 1")
    run("%%abe_handler --name bill nothing\ndef f(m): pass")
    shell.user_ns.update(df=[{}], MyBackend=type("MyBackend", (), {}))
    return shell


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("%abe_connect me", ["memory"]),
        ("q = %abe_connect sql", ["sqlite"]),
        ("x = 1\nfor y in z:\n    %abe_connect sql", ["sqlite"]),
        ("%abe_connect memory sq", []),
        ("%abe_connect memory --env ABE_MEMORY_NA", ["ABE_MEMORY_NAME="]),
        ("%abe_connect --env ABE_SQLITE_P", ["ABE_SQLITE_PATH="]),
        ("%abe_connect memory --env ABE_SQLITE", []),
        ("%abe_consume orders.c", ["orders.created"]),
        ("%abe_consume orders.created orders.", ["orders.paid"]),
        ("%abe_consume -g bil", ["billing"]),
        ("%abe_consume --group bil", ["billing"]),
        ("%abe_consume --group=bil", ["--group=billing"]),
        ("%abe_consume --ti", ["--timeout"]),
        ("%abe_consume -t 5 --ti", []),
        ("%abe_publish orders.p", ["orders.paid"]),
        ("%abe_publish k -i d", ["df"]),
        ("%abe_publish k or", []),
        ("%abe_publish -H a=b --head", ["--header"]),
        ("%abe_publish k --head", ["--header"]),
        ("%abe_publish k {} --head", []),
        ('%abe_publish k {"a": -', []),
        ("%%abe_publish k --format js", ["json", "jsonl"]),
        ("%%abe_handler orders.p", ["orders.paid"]),
        ("%%abe_handler --con", ["--concurrency"]),
        ("%%abe_handler\n%abe_consume orders.p", ["orders.paid"]),
        ("%abe_stop b", ["bill"]),
        ("%abe_dead re", ["replay"]),
        ("%abe_purge --y", ["--yes"]),
        ("%abe_contract My", ["MyBackend"]),
        ("%abe_backends me", []),
        ("abe_consume or", []),
        ("%abe_unknown or", []),
        ("%time or", []),
        ("", []),
    ],
)
def test_completion(known: InteractiveShell, text: str, found: list[str]) -> None:
    assert complete(known, text) == found


def test_the_shell_offers_it(known: InteractiveShell) -> None:
    assert offered(known, "%abe_consume orders.c") == ["orders.created"]
    assert offered(known, "q = %abe_connect mem") == ["memory"]
    assert offered(known, "%abe_consume --ti") == ["--timeout"]
    assert "%abe_peek" in offered(known, "%abe_p")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(AbeMagics.syntaxes)), st.text())
def test_it_never_raises(run: Run, shell: InteractiveShell, magic: str, text: str) -> None:
    for name in complete(shell, f"{magic} {text}"):
        assert name


def test_it_does_no_io_and_hides_errors(
    run: Run, shell: InteractiveShell, q: abe.SyncBackend
) -> None:
    q.close()
    session = shell.magics_manager.registry["AbeMagics"].session
    assert complete(shell, "%abe_consume ") == []
    session.keys = None
    assert complete(shell, "%abe_consume o") == []


def test_what_is_remembered_is_bounded(run: Run, q: abe.SyncBackend) -> None:
    q.publish_many([(f"key.{n}", {}) for n in range(700)])
    run("%abe_peek -n 700")
    shell = run("get_ipython()")
    assert len(complete(shell, "%abe_consume key")) == 500
    assert "key.699" in complete(shell, "%abe_consume key.69")
    assert "key.0" not in complete(shell, "%abe_consume key")


MAGICS = sorted({name.lstrip("%") for name in AbeMagics.syntaxes})


@pytest.mark.parametrize("name", MAGICS)
def test_the_help_reads_well(name: str) -> None:
    text = getattr(AbeMagics, name).__doc__
    first = text.partition("\n")[0]
    assert re.fullmatch(r"[A-Z].{10,90}\.", first)
    assert "Options:" in text
    assert f"%{name}" in text
    assert max(map(len, text.splitlines())) <= 100
    for syntax in AbeMagics.syntaxes.values():
        if syntax.magic.lstrip("%") == name:
            for option in syntax.options:
                spelling = f"{option.short}, {option.long}" if option.short else option.long
                assert spelling in text, option


def test_every_magic_has_a_syntax(run: Run, shell: InteractiveShell) -> None:
    found = shell.magics_manager.registry["AbeMagics"].magics
    assert sorted({*found["line"], *found["cell"]}) == MAGICS


BACKEND = """
class Mine:
    def __init__(self):
        self.sent = []
    @classmethod
    def from_env(cls):
        return cls()
    async def publish(self, key, payload):
        self.sent.append(payload)
    async def consume(self, *, group=None):
        for item in list(self.sent):
            yield {"wrong": "<b>"}
"""


def test_the_contract_of_a_class_in_a_cell(run: Run, q: abe.SyncBackend) -> None:
    run(BACKEND)
    result = run("result = %abe_contract Mine -s payload -o kept\nresult")
    assert isinstance(result, Contract)
    assert run("kept") is result
    assert not result.ok
    assert result.report.failed
    outcomes = [row.outcome for row in result]
    assert outcomes == sorted(outcomes, key=["fail", "pass", "skip"].index)
    text = repr(result)
    assert text.startswith(result.report.summary())
    assert all(row.case in text for row in result)
    assert "<b>" not in result._repr_html_()
    run("%config AbeMagics.rows = 1")
    (row,) = result.table().rows
    assert row[0] == result[0].case
    assert f"… and {len(result) - 1} more, not shown" in repr(result)


def test_skips_are_counted_by_reason(run: Run) -> None:
    rows = [
        ContractRow(f"case_{n}", "It must.", (), "skip", reason, 0.0)
        for n, reason in enumerate(
            [
                "harness has no restart_broker",
                "the backend does not declare groups",
                *["the backend does not declare <keys>"] * 2,
            ]
        )
    ]
    assert Contract(ContractReport("mine", tuple(rows))).table().notes == [
        "3 skipped: the backend does not declare <keys> (2), groups (1)",
        "1 skipped: harness has no restart_broker",
    ]


def test_the_contract_of_an_installed_backend(run: Run) -> None:
    result = run("result = %abe_contract memory --select publish\nresult")
    assert result.report.target == "memory"
    assert result.ok


@pytest.mark.parametrize(
    ("line", "problem"),
    [("", "give one backend"), ("a b", "give one backend"), ("memory --env x-y=", "NAME=VALUE")],
)
def test_wrong_arguments_of_contract(run: Run, line: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        run(f"%abe_contract {line}")


def test_the_contract_of_nothing(run: Run) -> None:
    with pytest.raises(abe.UnknownBackendError):
        run("%abe_contract memroy")
    with pytest.raises(abe.ConfigurationError):
        run("%abe_contract memory -s zzzz")


def test_the_contract_of_what_is_no_backend(
    shell: InteractiveShell, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.user_ns["df"] = ["x" * 10_000]
    with pytest.raises(TypeError, match="cannot test"):
        run("%abe_contract df")
    shown = capsys.readouterr().out
    assert shown.startswith("TypeError: cannot test ['xxx")
    assert "Traceback" not in shown
    assert len(shown) < 2100
