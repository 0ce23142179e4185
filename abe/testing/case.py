"""What a case of the contract suite is, and how its specification becomes a test method."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from abe.testing.context import CaseContext
from abe.testing.harness import HOOKS
from abe.testing.requirements import CAPABILITIES, capability_of

__all__ = ["Case", "case", "case_of", "cases_of"]

Scenario = Callable[[Any, CaseContext], Awaitable[None]]

_ATTRIBUTE = "__abe_case__"


@dataclass(frozen=True, slots=True)
class Case:
    """One obligation of a backend, and the scenario that checks it.

    Attributes:
        id: Its name: that of the test method, without ``test_``.
        obligation: What the backend must do, in one sentence.
        needs: Capabilities it applies to: ``"peek"``, ``"ordering=key"``,
            ``"attempts=exact|upper"`` or, for what a backend must refuse when it does *not*
            declare it, ``"!peek"``.
            ``"declared"`` means any backend that declares capabilities at all.
        hooks: Methods of the harness it needs.
        limit: Time limit, in multiples of the harness's patience.
    """

    id: str
    obligation: str
    needs: tuple[str, ...]
    hooks: tuple[str, ...]
    limit: float
    scenario: Scenario = field(repr=False, compare=False)

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Names of the capabilities this case tests, those that must be refused included."""
        names = map(capability_of, self.needs)
        return tuple(dict.fromkeys(name for name in names if name in CAPABILITIES))


def case(
    *needs: str, hooks: Sequence[str] = (), limit: float = 4.0
) -> Callable[[Scenario], Callable[[Any], None]]:
    """Turn ``async def test_…(self, context)`` into a test method of a contract class.

    The result is an ordinary function without arguments, so that it runs under pytest with any or
    no async plugin. The scenario's docstring is one line: the obligation.
    """
    for need in needs:
        assert capability_of(need) in CAPABILITIES | {"declared"}, need
    assert set(hooks) <= set(HOOKS), hooks

    def decorate(scenario: Scenario) -> Callable[[Any], None]:
        name = scenario.__name__
        obligation = inspect.cleandoc(scenario.__doc__ or "")
        assert name.startswith("test_"), name
        assert obligation.endswith("."), f"{name} needs a docstring of one sentence"
        assert "\n" not in obligation, f"{name}: its docstring has several lines"
        made = Case(name.removeprefix("test_"), obligation, needs, tuple(hooks), limit, scenario)

        def test(self: Any) -> None:
            __tracebackhide__ = True
            self.run_case(made)

        test.__name__ = name
        test.__qualname__ = scenario.__qualname__
        test.__module__ = scenario.__module__
        test.__doc__ = obligation
        setattr(test, _ATTRIBUTE, made)
        return test

    return decorate


def cases_of(contract: type) -> Iterator[Case]:
    """Yield the cases of a contract class, in order of definition, bases first."""
    seen: set[str] = set()
    for base in reversed(contract.__mro__):
        for name in vars(base):
            found = case_of(getattr(contract, name, None))
            if found is not None and found.id not in seen:
                seen.add(found.id)
                yield found


def case_of(function: object) -> Case | None:
    """Return the case behind a test method, ``None`` for any other object."""
    found = getattr(function, _ATTRIBUTE, None)
    return found if isinstance(found, Case) else None
