"""At the bound, publishers wait for room."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from abe.errors import PublishError
from tests.unit_test.memory.support import ACK, REJECT, driver, ns, publish, until, waits

if TYPE_CHECKING:
    from abe.backends.message_queue.base import Outcome
    from abe.backends.message_queue.service.memory import MemoryBackend


@pytest.mark.parametrize("settings", [{"maxsize": 2, "publish_timeout": 0.01}])
async def test_at_the_bound_publish_waits_and_then_names_the_slowest_group(
    backend: MemoryBackend,
) -> None:
    quick, slow = await driver(backend, "quick"), await driver(backend, "slow")
    await publish(backend, 1, 2)
    await quick.drain()
    with pytest.raises(PublishError) as caught:
        await backend.publish("k", {"n": 3})
    assert str(caught.value) == (
        f"memory store {backend.store_name!r} is full (2 messages) and had no room for 0.01 s; "
        "the slowest group is 'slow' with 2 messages unsettled"
    )
    assert caught.value.retryable
    assert list(caught.value.published) == []
    assert caught.value.failed == {0: "the store is full"}
    assert ns(await slow.drain()) == [1, 2]
    assert await quick.take() == []
    await backend.publish("k", {"n": 4})


@pytest.mark.parametrize("settings", [{"maxsize": 1, "publish_timeout": 0.0}])
async def test_at_the_bound_without_a_group(backend: MemoryBackend) -> None:
    await publish(backend, 1)
    with pytest.raises(PublishError, match="no group consumes from it"):
        await publish(backend, 2)


@pytest.mark.parametrize("outcome", [ACK, REJECT])
@pytest.mark.parametrize("settings", [{"maxsize": 1}])
async def test_a_waiting_publish_goes_on_as_soon_as_there_is_room(
    backend: MemoryBackend, outcome: Outcome
) -> None:
    consumer = await driver(backend)
    await publish(backend, 1)
    task = asyncio.create_task(backend.publish("k", {"n": 2}))
    await until(lambda: waits(backend))
    await consumer.settle(await consumer.one(), outcome=outcome)
    async with asyncio.timeout(5):
        await task
    assert ns(await consumer.payloads()) == [2]
    assert not waits(backend)


@pytest.mark.parametrize("how", ["purge", "delete_group"])
@pytest.mark.parametrize("settings", [{"maxsize": 1}])
async def test_cleaning_up_makes_room(backend: MemoryBackend, how: str) -> None:
    await driver(backend)
    await publish(backend, 1)
    task = asyncio.create_task(backend.publish("k", {"n": 2}))
    await until(lambda: waits(backend))
    await (backend.purge() if how == "purge" else backend.delete_group(None))
    async with asyncio.timeout(5):
        await task
    assert ns(await backend.peek()) == [2]


@pytest.mark.parametrize("settings", [{"maxsize": 3}])
async def test_many_waiting_publishers_all_get_through_and_the_bound_holds(
    backend: MemoryBackend,
) -> None:
    consumer = await driver(backend)
    received: list[int] = []
    async with asyncio.TaskGroup() as group:
        for n in range(50):
            group.create_task(backend.publish("k", {"n": n}))
        while len(received) < 50:
            deliveries = [*await consumer.receiver.receive(10, 5.0)]
            assert len(await backend.peek(group="new", limit=100)) <= 3
            received += ns([d.message for d in deliveries])
            await consumer.settle(*deliveries)
    assert sorted(received) == list(range(50))
    assert not waits(backend)


@pytest.mark.parametrize("settings", [{"maxsize": 4}])
async def test_publish_many_larger_than_the_bound_flows_through(backend: MemoryBackend) -> None:
    consumer = await driver(backend)
    task = asyncio.create_task(backend.publish_many([{"n": n} for n in range(50)], key="k"))
    received: list[int] = []
    while len(received) < 50:
        deliveries = [*await consumer.receiver.receive(10, 5.0)]
        received += ns([d.message for d in deliveries])
        await consumer.settle(*deliveries)
    assert await task == 50
    assert received == list(range(50))


@pytest.mark.parametrize("settings", [{"maxsize": 1}])
async def test_a_cancelled_publish_leaves_no_waiter_and_publishes_nothing(
    backend: MemoryBackend,
) -> None:
    consumer = await driver(backend)
    await publish(backend, 1)
    task = asyncio.create_task(backend.publish("k", {"n": 2}))
    await until(lambda: waits(backend))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not waits(backend)
    assert ns(await consumer.drain()) == [1]
    assert await consumer.take() == []


@pytest.mark.parametrize("settings", [{"maxsize": 1}])
async def test_closing_ends_a_publish_that_waits_for_room(backend: MemoryBackend) -> None:
    await publish(backend, 1)
    task = asyncio.create_task(backend.publish_many([{"n": 2}, {"n": 3}], key="k"))
    await until(lambda: waits(backend))
    await backend.aclose()
    with pytest.raises(PublishError, match="the backend was closed while") as caught:
        await task
    assert not caught.value.retryable
    assert caught.value.failed == dict.fromkeys([0, 1], "the backend was closed")


@pytest.mark.parametrize("settings", [{"maxsize": 1}])
async def test_a_backend_closed_by_another_thread_does_not_begin_to_wait(
    backend: MemoryBackend,
) -> None:
    await publish(backend, 1)
    backend._closed = True  # between two steps of publish()
    assert not await backend._room(asyncio.get_running_loop().time() + 1000)
    backend._closed = False
