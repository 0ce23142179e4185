"""What a run of the contract suite has shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from abe.backends.message_queue.base import Capabilities

__all__ = ["ContractReport", "ContractRow", "Outcome", "by_capability"]

Outcome = Literal["pass", "fail", "skip"]
BASIC = "(every backend)"
"""Where cases are counted that depend on no capability."""


@dataclass(frozen=True, slots=True)
class ContractRow:
    """What became of one case.

    Attributes:
        case: Its id.
        obligation: What the backend must do.
        capabilities: What it tests.
        outcome: ``"pass"``, ``"fail"`` or ``"skip"``.
        reason: Why it failed or was skipped, else "".
        seconds: How long it took.
    """

    case: str
    obligation: str
    capabilities: tuple[str, ...]
    outcome: Outcome
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ContractReport:
    """The rows of a run.

    Attributes:
        target: What was tested.
        rows: One row for each case, in the order in which they ran.
        declared: What the backend declares; ``None`` for a plain one, or if none was made.
    """

    target: str
    rows: tuple[ContractRow, ...] = ()
    declared: Capabilities | None = None

    def count(self, outcome: Outcome) -> int:
        """Return how many cases ended so."""
        return sum(row.outcome == outcome for row in self.rows)

    @property
    def passed(self) -> int:
        """Number of cases that passed."""
        return self.count("pass")

    @property
    def failed(self) -> int:
        """Number of cases that failed."""
        return self.count("fail")

    @property
    def skipped(self) -> int:
        """Number of cases that do not apply."""
        return self.count("skip")

    @property
    def ok(self) -> bool:
        """Whether nothing failed and something passed."""
        return self.passed > 0 and self.failed == 0

    @property
    def seconds(self) -> float:
        """How long all cases took."""
        return sum(row.seconds for row in self.rows)

    def failures(self) -> Iterator[ContractRow]:
        """Yield the rows of failed cases."""
        return (row for row in self.rows if row.outcome == "fail")

    def capabilities(self) -> dict[str, Outcome]:
        """Return one verdict for each capability tested; see `by_capability`."""
        return by_capability((row.capabilities, row.outcome) for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON."""
        return {
            "target": self.target,
            "ok": self.ok,
            "passed": self.passed,
            "failed": self.failed,
            "skipped": self.skipped,
            "seconds": round(self.seconds, 3),
            "declared": None if self.declared is None else asdict(self.declared),
            "capabilities": self.capabilities(),
            "rows": [{**asdict(row), "seconds": round(row.seconds, 3)} for row in self.rows],
        }

    def __str__(self) -> str:
        lines = [f"{row.outcome.upper()}  {row.case}  {_first_line(row)}" for row in self.rows]
        return "\n".join([*(line.rstrip() for line in lines), self.summary()])

    def summary(self) -> str:
        """Return one line: what was tested and how it went."""
        text = (
            f"{self.target}: {self.passed} passed, {self.failed} failed, {self.skipped} skipped in"
            f" {self.seconds:.1f} s"
        )
        return text if self.passed or self.failed else f"{text}: nothing was proven"


def by_capability(results: Iterable[tuple[Iterable[str], Outcome]]) -> dict[str, Outcome]:
    """Reduce ``(capabilities, outcome)`` pairs to one verdict for each capability.

    Failed if any of its cases has failed, passed if any has passed, else skipped. Cases that
    depend on no capability count for ``"(every backend)"``.
    """
    rank: dict[Outcome, int] = {"skip": 0, "pass": 1, "fail": 2}
    verdicts: dict[str, Outcome] = {}
    for capabilities, outcome in results:
        for name in tuple(capabilities) or (BASIC,):
            if rank[outcome] >= rank[verdicts.get(name, "skip")]:
                verdicts[name] = outcome
    return dict(sorted(verdicts.items()))


def _first_line(row: ContractRow) -> str:
    return (row.reason or row.obligation).partition("\n")[0] if row.outcome != "pass" else ""
