"""The base of every contract class: its harness, its sizes, and running a case."""

from __future__ import annotations

from typing import Any, ClassVar

from abe.testing.case import Case
from abe.testing.execution import execute
from abe.testing.harness import Harness

__all__ = ["ContractBase"]


class ContractBase:
    """Cases and the harness they run against.

    Attributes:
        harness: A `Harness`, a subclass of it, or a method that returns one.
        stress_messages: How many messages the cases under load publish.
        stress_consumers: How many consumers share them.
        large_bytes: Size of the largest payload that must arrive, in bytes of JSON.
    """

    harness: Any = None
    stress_messages: int = 300
    stress_consumers: int = 4
    large_bytes: int = 100_000

    _made: ClassVar[Harness | None] = None

    def run_case(self, case: Case) -> None:
        """Run one case; the test methods call this."""
        __tracebackhide__ = True
        execute(case, self, self.find_harness())

    @classmethod
    def teardown_class(cls) -> None:
        """Close the harness, if this class has created it."""
        made, cls._made = cls._made, None
        if made is not None:
            made.close()

    def find_harness(self) -> Harness:
        """Return the harness, however the subclass gives it."""
        given = self.harness
        if isinstance(given, type):
            cls = type(self)
            if cls._made is None or type(cls._made) is not given:
                cls._made = given()
            given = cls._made
        elif not isinstance(given, Harness) and callable(given):
            given = given()
        if not isinstance(given, Harness):
            raise TypeError(
                f"{type(self).__name__}.harness is {given!r}; it must be an abe.testing.Harness, "
                "a subclass of it, or a method that returns one"
            )
        return given
