"""Who learns what when batches fail, and what is sent again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest

import abe
from abe.backends.message_queue.base.backoff import Backoff
from abe.backends.message_queue.base.publisher import Publisher
from tests.support.virtual_loop import START

if TYPE_CHECKING:
    pass

AWAY = abe.ConnectionLostError("away")
DOUBT = abe.PublishError("no answer", retryable=True)
BUSY = abe.PublishError("busy", retryable=True)
LARGE = abe.PublishError("too large")


class Driver:
    """Answers each batch as scripted, then accepts all.

    Args:
        answers: For each batch the problems by item, an error for all, or None.
    """

    def __init__(self, *answers: Mapping[str, Exception] | Exception | None) -> None:
        self.answers = list(answers)
        self.sent: list[list[str]] = []

    async def __call__(self, batch: list[str]) -> Mapping[int, Exception]:
        self.sent.append(batch)
        answer = self.answers.pop(0) if self.answers else None
        await asyncio.sleep(1.0)
        if isinstance(answer, Exception):
            raise answer
        return {n: answer[item] for n, item in enumerate(batch) if answer and item in answer}

    def publisher(self, **options: Any) -> Publisher[str]:
        steady = Backoff(first=1.0, factor=1.0, jitter=False)
        return Publisher(self, **{"max_items": 4, "timeout": 0.0, "backoff": steady, **options})


async def outcome(publisher: Publisher[str], items: str) -> Any:
    """Return None, or the error."""
    try:
        await publisher.send(items)
    except abe.AbeError as error:
        return error
    return None


async def test_callers_share_batches() -> None:
    driver = Driver()
    publisher = driver.publisher()
    await asyncio.gather(*map(publisher.send, ["a", "bcd", "e", ""]))
    await publisher.aclose()
    assert driver.sent == [["a", "b", "c", "d"], ["e"]]


async def test_each_caller_learns_its_own_outcome() -> None:
    driver = Driver({"c": LARGE})
    publisher = driver.publisher()
    one, two, three = await asyncio.gather(
        *(outcome(publisher, items) for items in ("a", "bcdef", "g"))
    )
    assert one is None
    assert three is None
    assert str(two) == "published 2 of 5; item 1 failed: too large"
    assert (two.retryable, two.published) == (False, [0, 2])
    assert two.failed == {1: "too large", 3: "not sent", 4: "not sent"}
    assert driver.sent == [["a", "b", "c", "d"], ["g"]]


async def test_a_single_message_fails_as_it_is() -> None:
    driver = Driver(LARGE, abe.ConfigurationError("the password is wrong"), AWAY)
    publisher = driver.publisher()
    refused = await outcome(publisher, "a")
    assert (str(refused), refused.failed) == ("too large", {0: "too large"})
    assert type(await outcome(publisher, "a")) is abe.ConfigurationError
    away = await outcome(publisher, "abc")
    assert type(away) is abe.ConnectionLostError
    assert away is not AWAY


async def test_what_was_not_sent_is_sent_again_until_the_time_is_over() -> None:
    driver = Driver(*[AWAY] * 9)
    error = await outcome(driver.publisher(timeout=5.0), "ab")
    assert type(error) is abe.ConnectionLostError
    assert asyncio.get_running_loop().time() == START + 5.0
    assert driver.sent == [["a", "b"]] * 3


async def test_only_items_that_failed_for_the_moment_are_sent_again() -> None:
    driver = Driver({"b": BUSY, "d": BUSY}, {"d": AWAY})
    assert await outcome(driver.publisher(timeout=60.0), "abcde") is None
    assert driver.sent == [["a", "b", "c", "d"], ["b", "d"], ["d"], ["e"]]


async def test_what_a_driver_excludes_is_not_sent_again() -> None:
    driver = Driver(DOUBT)
    publisher = driver.publisher(timeout=60.0, retry=lambda error: error is AWAY)
    assert (await outcome(publisher, "a")).retryable
    assert driver.sent == [["a"]]


async def test_a_doubt_outlives_the_tries_that_follow() -> None:
    """Else the error would promise that nothing was sent."""
    driver = Driver(DOUBT, *[AWAY] * 9)
    error = await outcome(driver.publisher(timeout=5.0), "a")
    assert (type(error), str(error)) == (abe.PublishError, "no answer")


async def test_progress_renews_the_time() -> None:
    driver = Driver(AWAY, None, AWAY, None, AWAY, None)
    assert await outcome(driver.publisher(max_items=1, timeout=2.0), "abc") is None
    assert len(driver.sent) == 6


async def test_an_item_of_a_cancelled_caller_is_sent() -> None:
    driver = Driver()
    publisher = driver.publisher(max_items=1)
    caller = asyncio.create_task(publisher.send("ab"))
    await asyncio.sleep(0.5)
    caller.cancel()
    await publisher.aclose()
    assert driver.sent == [["a"], ["b"]]


async def test_closing_ends_the_tries() -> None:
    driver = Driver(*[AWAY] * 99)
    publisher = driver.publisher(timeout=60.0)
    caller = asyncio.create_task(outcome(publisher, "a"))
    await asyncio.sleep(0.5)
    await publisher.aclose()
    assert type(await caller) is abe.ConnectionLostError
    assert driver.sent == [["a"]]


async def test_whoever_waits_for_a_cancelled_batch_is_cancelled() -> None:
    driver = Driver()
    publisher = driver.publisher(max_items=1)
    callers = [asyncio.create_task(publisher.send(item)) for item in "ab"]
    await asyncio.sleep(0.5)
    for task in asyncio.all_tasks() - {asyncio.current_task(), *callers}:
        task.cancel()
    await asyncio.wait(callers)
    assert all(caller.cancelled() for caller in callers)
    await publisher.aclose()
    assert driver.sent == [["a"]]


async def test_a_driver_that_fails_by_mistake() -> None:
    driver = Driver(ZeroDivisionError("oops"))
    with pytest.raises(ZeroDivisionError, match="oops"):
        await driver.publisher(timeout=60.0).send("ab")
