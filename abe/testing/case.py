"""What a case of the contract suite is, and how its specification becomes a test method."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

from abe.backends.message_queue.base import Capabilities
from abe.testing.harness import HOOKS

if TYPE_CHECKING:
    from abe.testing.trial import Trial

__all__ = ["Case", "Skipped", "case", "cases_of", "unmet"]

Scenario = Callable[[Any, "Trial"], Awaitable[None]]

_ATTRIBUTE = "__abe_case__"
_CAPABILITIES = frozenset(f.name for f in fields(Capabilities))


class Skipped(SkipTest):
    """A case does not apply; pytest and unittest both show it as skipped, with this reason."""


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
        names = (need.lstrip("!").partition("=")[0] for need in self.needs)
        return tuple(dict.fromkeys(name for name in names if name in _CAPABILITIES))


def case(
    *needs: str, hooks: Sequence[str] = (), limit: float = 4.0
) -> Callable[[Scenario], Callable[[Any], None]]:
    """Turn ``async def test_…(self, trial)`` into a test method of a contract class.

    The result is an ordinary function without arguments, so that it runs under pytest with any or
    no async plugin. The scenario's docstring is one line: the obligation.
    """
    for need in needs:
        name = need.lstrip("!").partition("=")[0]
        assert name in _CAPABILITIES or name == "declared", need
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


def unmet(needs: Sequence[str], can: Capabilities, declared: bool) -> str:
    """Return why a backend need not pass a case with these needs; "" if it must."""
    for need in needs:
        if (need == "declared" or need.startswith("!")) and not declared:
            return "the backend declares no capabilities"
        if need == "declared":
            continue
        name, _, values = need.lstrip("!").partition("=")
        value = getattr(can, name)
        if need.startswith("!"):
            if has(value):
                return f"the backend declares {name}"
        elif values and value not in values.split("|"):
            return f"the backend declares {name} {value!r}, not {values.replace('|', ' or ')}"
        elif not values and not has(value):
            return f"the backend does not declare {name}"
    return ""


def has(value: object) -> bool:
    """Whether the value of a capability claims anything."""
    return value != "none" and bool(value)
