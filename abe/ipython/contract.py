"""The magic that runs the contract suite, and its result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from abe.display.options import ENV, SELECT
from abe.display.prompt import ask_missing
from abe.display.results import Listing
from abe.display.table import Table
from abe.display.text import cell, limits
from abe.errors import UnsupportedError
from abe.ipython.errors import short
from abe.ipython.grammar import OUT, Syntax
from abe.ipython.progress import Progress
from abe.ipython.session import Call, Settings, magic

if TYPE_CHECKING:
    from abe.testing import ContractReport
    from abe.testing.report import ContractRow

_ORDER = {"fail": 0, "pass": 1, "skip": 2}
_REASON = 600


class Contract(Listing["ContractRow"]):
    """The result of the contract suite: a list of its rows, shown as a table, failures first.

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
        """Return the table: failures first; notes count the skips by reason."""
        shown = self[: limits.rows]
        return Table(
            cell(self.report.summary(), 300),
            ("case", "outcome", "took", "details"),
            [(it.case, it.outcome, f"{it.seconds:.2f} s", _details(it)) for it in shown],
            total=len(self),
            notes=_skips(row.reason for row in self if row.outcome == "skip"),
            numeric={"took"},
        )


def _details(row: ContractRow) -> str:
    """Return the obligation and the failure, or the reason why the case does not apply."""
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
    lines = []
    for kind, found in sorted(kinds.items(), key=lambda item: -item[1].total()):
        each = [f"{what} ({n})" if len(found) > 1 else what for what, n in found.most_common()]
        lines.append(f"{found.total()} skipped: {kind} {', '.join(each)}")
    return lines


class ContractMagics(Settings):
    """Run the contract suite."""

    @magic(Syntax("%abe_contract", "CLASS_OR_NAME", (SELECT, ENV, OUT), completes="target"))
    def abe_contract(self, call: Call) -> Any:
        """Run the contract suite on a backend, installed or defined in a cell.

        ::

            %abe_contract memory
            %abe_contract MyBackend
            %abe_contract MyBackend --select redelivery --select "group*"
            report = %abe_contract redis --env ABE_REDIS_URL=redis://localhost:6379

        The suite checks the obligations of every backend, and those that this one declares in its
        capabilities; other cases are skipped, with the reason. A class is instantiated with
        from_env(). A function that makes a backend, a Harness or a BackendContract is accepted as
        well. In the values of --env {namespace} is replaced by a name that separates the cases from
        each other, {folder} by a temporary folder. A failed case is a result, not an error: to stop
        a notebook, write assert report.ok.

        Returns:
          the rows, shown as a table with failures first; .ok, .report
        """
        if len(call.words) != 1:
            raise call.syntax.error("give one backend: an installed one, or a class")
        try:
            from abe.testing import run_contract
        except ImportError as error:
            raise UnsupportedError(
                f'%abe_contract needs the extra "testing", which is not installed: {error}'
            ) from None
        name = call.words[0]
        target = next((scope[name] for scope in call.scopes if name in scope), None)
        if isinstance(target, str | None) or name in self.session.installed:
            target = name
        with Progress(None, "cases run:", live=self.session.in_notebook) as progress:
            try:
                report = run_contract(
                    target,
                    select=call.options["select"] or None,
                    env=ask_missing(call.options["env"]) or None,
                    on_row=lambda row: progress(progress.count + 1),
                )
            except TypeError as error:
                raise short(error) from error.__cause__
        return call.result(Contract(report))
