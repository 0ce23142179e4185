"""Fixtures of the unit tests: an event loop on a virtual clock, and a scripted broker."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests.support.scripted_broker import Broker, Fault
from tests.support.virtual_loop import Interrupted, VirtualLoop, VirtualRun


class Toolbox:
    """Everything above, for tests that make their own brokers and loops."""

    broker = Broker
    fault = Fault
    interrupted = Interrupted
    loop = VirtualLoop
    run = VirtualRun()

    @staticmethod
    async def drain(broker: Broker, patience: float = 120.0) -> list[int]:
        """Consume and ack everything that the broker still has, or gets back in time."""
        received = []
        async with broker.stream() as stream:
            while messages := await stream.take(100, patience):
                received += [message["n"] for message in messages]
        return received

    @staticmethod
    async def cancelled(tasks: Iterable[asyncio.Task[Any]]) -> None:
        """Cancel tasks and wait for them."""
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@pytest.fixture(scope="session")
def tools() -> type[Toolbox]:
    """Brokers, faults and virtual loops; see `Toolbox`."""
    return Toolbox


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
def broker() -> Iterator[Broker]:
    """A scripted broker whose receivers must have been used as the contract says."""
    broker = Broker()
    yield broker
    broker.check()
