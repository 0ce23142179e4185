"""Fixtures of the unit tests: an event loop on a virtual clock, and a scripted broker."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.scripted_broker import Broker
from tests.support.virtual_loop import VirtualRun


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(obj: object) -> None:
    """Give each coroutine function the fixture `run`, and with it both ways to begin tasks."""
    if inspect.iscoroutinefunction(obj):
        pytest.mark.usefixtures("run")(obj)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine function on a virtual clock."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    fixtures: dict[str, Any] = pyfuncitem.funcargs
    given = inspect.signature(pyfuncitem.obj).parameters
    fixtures["run"](pyfuncitem.obj(**{name: fixtures[name] for name in given}))
    return True


@pytest.fixture(params=["lazy", "eager"] if sys.version_info >= (3, 12) else ["lazy"])
def run(request: pytest.FixtureRequest) -> VirtualRun:
    """Run a coroutine on a virtual clock; no task, timer or unseen error may be left."""
    return VirtualRun(eager=request.param == "eager")


@pytest.fixture
def capabilities() -> dict[str, Any]:
    """What the scripted broker can do differently; parametrize a test to change it."""
    return {}


@pytest.fixture
def broker(capabilities: dict[str, Any]) -> Iterator[Broker]:
    """A scripted broker whose receivers must have been used as the contract says."""
    broker = Broker(**capabilities)
    yield broker
    broker.check()
