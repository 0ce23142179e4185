"""Awaiting the portal from other event loops."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.unit_test.portal.support import LONG, double, fail, interrupt, until

if TYPE_CHECKING:
    from abe.sync.portal.thread import ThreadPortal


def test_a_coroutine_is_awaited_from_any_loop(portal: ThreadPortal) -> None:
    """Results and errors arrive; on the portal itself it is simply awaited."""

    async def main() -> None:
        assert await portal.bridge(double(5)) == 10
        with pytest.raises(ValueError, match="on the portal"):
            await portal.bridge(fail())

    asyncio.run(main())
    portal.call(main())


def test_a_cancelled_await_waits_for_the_outcome(portal: ThreadPortal) -> None:
    """As with an interrupt, nothing goes on behind the caller's back."""
    outcome: list[str] = []
    started = threading.Event()

    async def answer() -> None:
        started.set()
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
        outcome.append("ended")

    async def main() -> None:
        task = asyncio.create_task(portal.bridge(answer()))
        await asyncio.to_thread(started.wait, LONG)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert outcome == ["ended"]

    asyncio.run(main())


def test_a_second_cancellation_does_not_wait(portal: ThreadPortal) -> None:
    """The coroutine ends in its own time."""
    cancelled, release, ended = threading.Event(), threading.Event(), threading.Event()

    async def answer() -> None:
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            cancelled.set()
        await until(release.is_set)
        ended.set()

    async def main() -> None:
        task = asyncio.create_task(portal.bridge(answer()))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.to_thread(cancelled.wait, LONG)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not ended.is_set()
        release.set()
        assert await asyncio.to_thread(ended.wait, LONG)

    asyncio.run(main())


def test_a_timeout_around_an_await_works(portal: ThreadPortal) -> None:
    """`asyncio.timeout` cancels, which reaches the portal."""

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await portal.bridge(asyncio.sleep(LONG))

    asyncio.run(main())


def test_a_callback_that_did_not_wake_its_loop_runs_soon(portal: ThreadPortal) -> None:
    """ipykernel's interrupt of an idle cell is such a callback (ipykernel#881)."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(portal.bridge(asyncio.sleep(LONG)))
        await asyncio.sleep(0)
        threading.Timer(0.05, lambda: loop.call_soon(task.cancel)).start()
        started = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - started

    assert asyncio.run(main(), debug=False) < LONG / 2


def test_uvloop_may_run_the_caller(portal: ThreadPortal) -> None:
    """A loop that nest-asyncio cannot patch is no obstacle."""
    uvloop = pytest.importorskip("uvloop")

    async def main() -> tuple[int, int]:
        return portal.call(double(1)), await portal.bridge(double(2))

    async def interrupted() -> None:
        async def wait() -> None:
            interrupt()
            await asyncio.sleep(LONG)

        with pytest.raises(KeyboardInterrupt):
            portal.call(wait())

    assert uvloop.run(main()) == (2, 4)
    uvloop.run(interrupted())
