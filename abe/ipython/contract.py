"""``%abe_contract``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from abe.display.results import Listing
from abe.display.table import Table
from abe.display.text import cell, limits
from abe.errors import UnsupportedError
from abe.ipython.errors import short
from abe.ipython.grammar import Option, Syntax, assignment, identifier, parse
from abe.ipython.progress import Progress
from abe.ipython.session import Call

if TYPE_CHECKING:
    from abe.testing import ContractReport
    from abe.testing.report import ContractRow

    Rows = Listing[ContractRow]
else:
    Rows = Listing

__all__ = ["CONTRACT", "Contract", "contract"]

CONTRACT = Syntax(
    "%abe_contract",
    "CLASS_OR_NAME [-s PATTERN]… [--env K=V]… [-o NAME]",
    (
        Option("--select", "-s", "PATTERN", repeat=True),
        Option("--env", "-e", "K=V", assignment, repeat=True),
        Option("--out", "-o", "NAME", identifier),
    ),
)
_ORDER = {"fail": 0, "pass": 1, "skip": 2}
_REASON = 600


class Contract(Rows):
    """What the contract suite has shown: a list of its rows, shown as a table, failures first.

    Attributes:
        report: The `abe.testing.ContractReport`.
    """

    def __init__(self, report: ContractReport) -> None:
        """Show ``report``."""
        super().__init__(sorted(report.rows, key=lambda row: _ORDER[row.outcome]))
        self.report = report

    @property
    def ok(self) -> bool:
        """Whether nothing failed and something passed."""
        return self.report.ok

    def table(self) -> Table:
        """Return what is shown: failures first; notes count the skips by reason."""
        rows = [
            (row.case, row.outcome, f"{row.seconds:.2f} s", _details(row))
            for row in self[: limits.rows]
        ]
        columns = ("case", "outcome", "took", "details")
        return Table(
            cell(self.report.summary(), 300),
            columns,
            rows,
            total=len(self),
            notes=_skips(row.reason for row in self if row.outcome == "skip"),
            numeric={"took"},
        )


def _details(row: ContractRow) -> str:
    """Return what the backend must do, and what it did instead; or why that does not apply."""
    reason = _reason(row.reason)
    if row.outcome == "fail":
        return f"{row.obligation} Failed: {reason}"
    return reason or row.obligation


def _reason(text: str) -> str:
    return cell("; ".join(line.strip() for line in text.splitlines() if line.strip()), _REASON)


def _skips(reasons: Iterable[str]) -> list[str]:
    """Return a line for each kind of reason: most of them differ in their last word alone."""
    kinds: dict[str, Counter[str]] = {}
    for reason in reasons:
        kind, _, what = _reason(reason).rpartition(" ")
        kinds.setdefault(kind, Counter())[what] += 1
    return [
        f"{found.total()} skipped: {kind} {_counted(found)}"
        for kind, found in sorted(kinds.items(), key=lambda item: -item[1].total())
    ]


def _counted(found: Counter[str]) -> str:
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{what} ({count})" for what, count in found.most_common())


def contract(call: Call) -> Any:
    """Run the contract suite on a backend."""
    arguments = parse(CONTRACT, call.line, call.evaluate)
    options = arguments.options
    if len(arguments.words) != 1:
        raise CONTRACT.error("give one backend: an installed one, or a class")
    try:
        from abe.testing import run_contract
    except ImportError as error:
        raise UnsupportedError(
            f'%abe_contract needs the extra "testing", which is not installed: {error}'
        ) from None
    name = arguments.words[0]
    target: Any = call.variable(name) if _is_variable(call, name) else name
    with Progress(None, "cases run:", live=call.session.in_notebook) as progress:
        try:
            report = run_contract(
                target,
                select=options["select"] or None,
                env=dict(options["env"]) or None,
                on_row=lambda row: progress(progress.count + 1),
            )
        except TypeError as error:
            raise short(error) from error.__cause__
    return call.result(Contract(report), options["out"])


def _is_variable(call: Call, name: str) -> bool:
    """Whether ``name`` is a variable, and no text that happens to be called like a backend."""
    scopes: Iterable[dict[str, Any]] = call.scopes
    found = next((scope[name] for scope in scopes if name in scope), None)
    return found is not None and not (isinstance(found, str) or name in call.session.installed)
