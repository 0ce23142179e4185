"""``abe contract``: the contract suite on an installed backend, a line for each case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from abe.cli.output import emit_line
from abe.cli.session import search_working_directory
from abe.display.lines import json_line
from abe.display.text import cell
from abe.errors import ConfigurationError
from abe.testing import ContractReport, ContractRow, run_contract

__all__ = ["prove"]

MEMBERS = ("case", "obligation", "outcome", "reason", "seconds")
"""Members of the JSON object that stands for a case; the names are stable."""


def prove(name: str, select: Sequence[str], env: Mapping[str, str], *, as_lines: bool) -> bool:
    """Run the suite, write what becomes of each case, and return whether the backend has passed.

    Raises:
        AbeError: If the backend cannot be loaded or tested, or ``select`` matches no case.
    """
    if ":" in name:
        search_working_directory()
    show = _as_json if as_lines else _as_text
    try:
        report = run_contract(name, select=select or None, env=env or None, on_row=show)
    except TypeError as error:
        raise ConfigurationError(f"{name}: {error}") from None
    if not as_lines:
        _summarise(report)
    return report.ok


def _as_json(row: ContractRow) -> None:
    emit_line(json_line({name: getattr(row, name) for name in MEMBERS}))


def _as_text(row: ContractRow) -> None:
    why = row.reason.partition("\n")[0] if row.outcome == "skip" else row.obligation
    emit_line(f"{row.outcome}  {row.case:44}  {cell(why)}")


def _summarise(report: ContractReport) -> None:
    for row in report.failures():
        emit_line(f"\n{row.case}: {cell(row.obligation)}")
        for line in row.reason.splitlines():
            emit_line(f"    {cell(line, 500)}")
    emit_line(f"\n{cell(report.summary())}")
