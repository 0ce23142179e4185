"""``abe contract``: the contract suite on an installed backend, a line for each case."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from abe.cli import options
from abe.cli.output import emit_line
from abe.cli.session import search_working_directory
from abe.display.lines import json_line
from abe.display.text import cell
from abe.errors import ConfigurationError

if TYPE_CHECKING:
    from abe.testing import ContractReport, ContractRow

MEMBERS = ("case", "obligation", "outcome", "reason", "seconds")
"""Members of the JSON object that represents a case; the names are stable."""


def contract(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="An installed backend, or MODULE:ATTRIBUTE, a class or a harness."
        ),
    ],
    select: options.Select = None,
    env: options.Env = None,
    json: options.Json = False,
) -> None:
    """Run the contract suite on a backend.

    It tests whether the backend does what its capabilities declare. The working directory is
    searched for MODULE. In the values of --env {namespace} is replaced by a name that separates
    the cases from each other, {folder} by a temporary folder.

    Exit status: 0 if no case failed, 1 otherwise. In JSON each line is an object with case,
    obligation, outcome, reason and seconds.
    """
    from abe.testing import run_contract

    env_given = options.target(name, env).env
    if ":" in name:
        search_working_directory()
    show = _as_json if json else _as_text
    try:
        report = run_contract(name, select=select, env=env_given or None, on_row=show)
    except TypeError as error:
        raise ConfigurationError(f"{name}: {error}") from None
    if not json:
        _summarise(report)
    if not report.ok:
        raise typer.Exit(1)


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
