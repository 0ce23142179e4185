"""Which failures are worth another try, and when it comes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

import abe
from abe.backends.message_queue.base.backoff import Backoff, pause, transient
from tests.support.virtual_loop import START

if TYPE_CHECKING:
    pass

EXACT = Backoff(first=1.0, maximum=5.0, jitter=False)


class Flaky:
    """Fails as often as it is told."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures = failures
        self.error = error
        self.times: list[float] = []

    async def __call__(self) -> str:
        self.times.append(asyncio.get_running_loop().time() - START)
        if len(self.times) <= self.failures:
            raise self.error
        return "done"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (abe.ConnectionLostError("away"), True),
        (abe.PublishError("full", retryable=True), True),
        (abe.PublishError("too large"), False),
        (abe.ConfigurationError("refused"), False),
        (abe.BackendClosedError("closed"), False),
        (ValueError(), False),
        (asyncio.CancelledError(), False),
    ],
)
def test_transient_failures(error: BaseException, expected: bool) -> None:
    assert transient(error) is expected


def test_delays_grow_up_to_the_maximum() -> None:
    assert [EXACT.delay(n) for n in (1, 2, 3, 4, 5000)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    spread = {Backoff(first=1.0, maximum=5.0).delay(2) for _ in range(50)}
    assert len(spread) > 1
    assert all(1.0 <= delay <= 2.0 for delay in spread)


async def test_retry_goes_on_until_it_succeeds() -> None:
    call = Flaky(4, TimeoutError())
    heard: list[float] = []
    assert await EXACT.retry(call, on_failure=lambda error, delay: heard.append(delay)) == "done"
    assert call.times == [0.0, 1.0, 3.0, 7.0, 12.0]
    assert heard == [1.0, 2.0, 4.0, 5.0]


async def test_retry_ends_with_its_time() -> None:
    call = Flaky(99, ConnectionError("away"))
    with pytest.raises(ConnectionError, match="away"):
        await EXACT.retry(call, timeout=4.0)
    assert call.times == [0.0, 1.0, 3.0]


async def test_retry_raises_at_once_what_will_not_pass() -> None:
    call = Flaky(1, abe.ConfigurationError("refused"))
    with pytest.raises(abe.ConfigurationError):
        await EXACT.retry(call)
    assert call.times == [0.0]


async def test_a_stopped_retry_tries_once_more() -> None:
    call = Flaky(99, TimeoutError())
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(3.5, stop.set)
    with pytest.raises(TimeoutError):
        await EXACT.retry(call, stop=stop)
    assert call.times == [0.0, 1.0, 3.0, 3.5]


async def test_a_pause_ends_early() -> None:
    loop = asyncio.get_running_loop()
    await pause(1.0)
    assert loop.time() == START + 1.0
    stop = asyncio.Event()
    await pause(1.0, stop)
    assert loop.time() == START + 2.0
    stop.set()
    await pause(1.0, stop)
    assert loop.time() == START + 2.0
