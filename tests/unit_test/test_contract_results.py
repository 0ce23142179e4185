"""What docs/results records is what the contract suite finds today; `nox -s matrix` renews it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from abe import list_backends
from abe.testing import list_cases
from abe.testing.case import unmet

HOOKS = Path(__file__).resolve().parents[2] / "docs" / ".hooks"
RENEW = "docs/results is out of date: run nox -s matrix"


@pytest.fixture
def matrix(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("mkdocs", reason="mkdocs, which renders the matrix, is not installed")
    monkeypatch.syspath_prepend(str(HOOKS))
    spec = importlib.util.spec_from_file_location("docs_matrix", HOOKS / "matrix.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "docs_matrix", module)
    spec.loader.exec_module(module)
    return module


def test_every_backend_has_a_column(matrix: ModuleType) -> None:
    shown = {column.title.partition(" ")[0].strip("`") for column in matrix.columns()}
    ours = {it.name for it in list_backends() if str(it.distribution).startswith(("abe-", "abstra"))}
    assert shown == ours, RENEW


def test_every_case_that_applies_has_passed_or_lacked_a_hook(matrix: ModuleType) -> None:
    for column in matrix.columns():
        known = {*column.passed, *column.skipped}
        assert known == {case.id for case in list_cases()}, RENEW
        applying = {it.id for it in list_cases() if not unmet(it.needs, column.declared, True)}
        assert column.passed <= applying, (column.title, RENEW)
        for name in applying - column.passed:
            assert "harness" in column.skipped[name], (column.title, name, RENEW)
        assert len(column.passed) > 80
