"""Background consumers started by the synchronous facade."""

from __future__ import annotations

import contextvars
import gc
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import abe
from abe.backends.message_queue.base import SyncMessage
from abe.sync import SyncBackend, Worker

LONG = 30.0
_names = itertools.count()


@pytest.fixture
def queue() -> Iterator[SyncBackend]:
    """A connection to a memory store of its own."""
    with abe.connect("memory", env={"ABE_MEMORY_NAME": f"worker-{next(_names)}"}) as queue:
        yield queue


class Seen(list[Any]):
    """What handlers saw; another thread waits until they have seen enough."""

    def __init__(self) -> None:
        self._changed = threading.Condition()

    def add(self, value: object) -> None:
        with self._changed:
            self.append(value)
            self._changed.notify_all()

    def wait(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self) >= count, LONG), self


def test_a_sync_handler_runs_in_a_thread(queue: SyncBackend) -> None:
    """With messages that block on settling, and may use the facade itself."""
    seen = Seen()

    def handler(message: SyncMessage) -> None:
        queue.publish("copies", dict(message))
        seen.add((dict(message), threading.current_thread().name))

    states = []
    with queue.worker(handler, keys="orders") as worker:
        queue.publish("orders", {"n": 1})
        seen.wait(1)
        states.append(worker.running)
    states.append(worker.running)
    assert states == [True, False]
    assert seen[0][0] == {"n": 1}
    assert seen[0][1].startswith("abe-handler")
    assert (worker.processed, worker.failed, worker.in_flight, worker.error) == (1, 0, 0, None)
    assert queue.take(keys="copies") == [{"n": 1}]


def test_an_async_handler_runs_on_the_portal(queue: SyncBackend) -> None:
    """It awaits the view; a blocking call there says so instead of hanging."""
    seen = Seen()

    async def handler(message: abe.Message) -> None:
        if "copy" in message:
            return
        await queue.aio.publish("orders", {"copy": True})
        try:
            queue.publish("orders", {"copy": True})
        except abe.LoopError as error:
            seen.add(str(error))

    worker = queue.worker(handler)
    queue.publish("orders", {"n": 1})
    seen.wait(1)
    worker.stop()
    assert "await q.aio.publish" in seen[0]
    assert worker.failed == 0


def test_an_object_with_handle_event_is_a_handler(queue: SyncBackend) -> None:
    """As for `abe.AsyncLoopConsumer`."""
    seen = Seen()

    class Handler:
        async def handle_event(self, event: Any) -> None:
            seen.add(event["n"])

    with queue.worker(Handler(), concurrency=2) as worker:
        queue.publish_many([{"n": n} for n in range(10)], key="orders")
        seen.wait(10)
        assert "Handler on memory, group None: running" in repr(worker)
    assert sorted(seen) == list(range(10))
    assert worker.processed == 10
    assert repr(worker).endswith("stopped, 10 processed, 0 failed, 0 in flight>")


def test_failures_are_counted_retried_and_given_up(queue: SyncBackend) -> None:
    """By the consumer's policy."""
    seen = Seen()

    def handler(message: Any) -> None:
        seen.add(message.attempt)
        raise ValueError("cannot")

    retry = abe.RetryPolicy(max_attempts=2, base=0.0)
    with queue.worker(handler, retry=retry) as worker:
        queue.publish("orders", {"n": 1})
        seen.wait(2)
    assert seen == [1, 2]
    assert (worker.failed, worker.retried, worker.dead) == (2, 1, 1)
    assert isinstance(worker.last_error, ValueError)
    assert queue.dead_letters() == [{"n": 1}]


def test_output_and_context_belong_to_whoever_started_it(queue: SyncBackend) -> None:
    """So prints go to the starting cell of a notebook."""
    cell: contextvars.ContextVar[str] = contextvars.ContextVar("cell", default="none")
    cell.set("cell 1")
    seen = Seen()

    async def handler(message: abe.Message) -> None:
        seen.add(cell.get())

    with queue.worker(handler), queue.worker(lambda m: seen.add(cell.get()), group="threads"):
        cell.set("cell 2")
        queue.publish("orders", {})
        seen.wait(2)
    assert seen == ["cell 1", "cell 1"]


def test_what_is_wrong_from_the_start_is_raised_at_once(queue: SyncBackend) -> None:
    """Not in a log nobody reads."""
    with pytest.raises(TypeError, match="handler"):
        queue.worker(42)  # type: ignore[arg-type]
    with pytest.raises(abe.ConfigurationError):
        queue.worker(print, concurrency=0)
    with pytest.raises(abe.InvalidKeyError):
        queue.worker(print, group="a b")
    assert queue._pool.workers == set()


def test_a_worker_that_fails_for_good_says_so(
    queue: SyncBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log and on the handle."""
    seen = Seen()
    worker = queue.worker(lambda message: seen.add(message), group="audit")
    queue.publish("orders", {"n": 1})
    seen.wait(1)
    with caplog.at_level(logging.ERROR, "abe.sync.worker"):
        queue.delete_group("audit")
        assert worker.wait(LONG)
    assert isinstance(worker.error, abe.ConfigurationError)
    assert "failed" in repr(worker)
    assert "worker on backend memory failed" in caplog.text
    worker.stop()


class Abort(BaseException):
    """No `Exception`."""


def failing_first(error: BaseException, kind: str, seen: Seen) -> Any:
    """Return a handler that raises ``error`` for the message with n = 1."""

    def handler(message: Any) -> None:
        seen.add(message["n"])
        if message["n"] == 1:
            raise error

    async def async_handler(message: Any) -> None:
        handler(message)

    return handler if kind == "sync" else async_handler


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("error", [SystemExit(3), Abort("why")], ids=repr)
def test_a_handler_that_means_to_end_the_program_has_failed(
    queue: SyncBackend, error: BaseException, kind: str
) -> None:
    """Its message goes to the dead letters in the end, and the worker goes on."""
    seen = Seen()
    policy = abe.RetryPolicy(max_attempts=2, base=0.0)
    worker = queue.worker(failing_first(error, kind, seen), retry=policy)
    queue.publish("orders", {"n": 1})
    seen.wait(2)
    queue.publish("orders", {"n": 2})
    seen.wait(3)
    worker.stop()
    assert (worker.failed, worker.dead, worker.processed) == (2, 1, 1)
    assert worker.last_error is error
    assert worker.error is None
    assert queue.dead_letters() == [{"n": 1}]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_interrupt_in_a_handler_ends_its_worker_once_the_failure_is_recorded(
    queue: SyncBackend, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """The connection goes on."""
    error = KeyboardInterrupt()
    worker = queue.worker(failing_first(error, kind, Seen()))
    queue.publish("orders", {"n": 1})
    assert worker.wait(LONG)
    assert worker.error is error
    assert "failed" in repr(worker)
    assert "worker on backend memory failed" in caplog.text
    (message,) = queue.take(1, timeout=LONG)
    assert message.attempt == 2


def test_stop_waits_for_the_message_in_flight(queue: SyncBackend) -> None:
    """And then no more are taken."""
    entered, go_on = threading.Event(), threading.Event()
    seen = Seen()

    def handler(message: Any) -> None:
        entered.set()
        assert go_on.wait(LONG)
        seen.add(message["n"])

    worker = queue.worker(handler)
    queue.publish_many([{"n": n} for n in range(5)], key="orders")
    assert entered.wait(LONG)
    assert worker.in_flight == 1
    assert not worker.wait(0.01)
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    go_on.set()
    stopping.join(LONG)
    assert seen == [0]
    assert [m["n"] for m in queue.take(5, timeout=0)] == [1, 2, 3, 4]
    worker.stop()


def test_a_stop_that_is_only_requested_blocks_nobody(queue: SyncBackend) -> None:
    """Several workers drain side by side that way."""
    seen, go = Seen(), threading.Event()

    def handler(message: SyncMessage) -> None:
        seen.add(message["n"])
        go.wait(LONG)

    worker = queue.worker(handler)
    assert worker.drain_timeout == 30.0
    queue.publish("orders", {"n": 1})
    seen.wait(1)
    worker.request_stop()
    worker.request_stop()
    states = [worker.running]
    go.set()
    assert worker.wait(LONG)
    assert [*states, worker.running] == [True, False]
    assert worker.processed == 1


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_handler_may_stop_its_worker(queue: SyncBackend, kind: str) -> None:
    """It returns at once; what was not handled by then is there for others."""
    workers: list[Worker] = []
    ready = threading.Event()

    def handler(message: Any) -> None:
        assert ready.wait(LONG)
        workers[0].stop()

    async def coroutine(message: Any) -> None:
        workers[0].stop()

    chosen: Callable[[Any], Any] = handler if kind == "sync" else coroutine
    workers.append(queue.worker(chosen))
    ready.set()
    queue.publish_many([{"n": 1}, {"n": 2}], key="orders")
    assert workers[0].wait(LONG)
    handled = workers[0].processed
    assert handled == 1 if kind == "sync" else handled >= 1
    assert len(queue.take(2, timeout=0)) == 2 - handled


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_handler_may_close_its_connection(queue: SyncBackend, kind: str) -> None:
    """It returns at once, and the handler's message counts."""
    seen = Seen()

    def handler(message: Any) -> None:
        queue.close()
        seen.add(queue.closed)

    async def coroutine(message: Any) -> None:
        await queue.aio.aclose()
        seen.add(queue.closed)

    worker = queue.worker(handler if kind == "sync" else coroutine)
    queue.publish("orders", {"n": 1})
    seen.wait(1)
    queue.close()
    assert seen == [False]
    assert queue.closed
    assert (worker.running, worker.processed, worker.failed) == (False, 1, 0)


def test_a_dropped_worker_runs_on_and_keeps_its_connection() -> None:
    """Until the connection is closed, or the interpreter exits."""
    env = {"ABE_MEMORY_NAME": f"worker-{next(_names)}"}
    seen = Seen()
    queue = abe.connect("memory", env=env)
    home = queue._pool
    queue.worker(seen.add)
    del queue
    gc.collect()
    with abe.connect("memory", env=env) as other:
        other.publish("orders", {"n": 1})
        seen.wait(1)
        home.portal.call(home.aclose())
        other.publish("orders", {"n": 2})
        assert other.take(timeout=LONG) == [{"n": 2}]
    assert seen == [{"n": 1}]


def test_handlers_in_flight_may_use_the_connection_while_it_closes(queue: SyncBackend) -> None:
    """It closes after the last of them."""
    entered, go_on = threading.Event(), threading.Event()

    def handler(message: Any) -> None:
        entered.set()
        assert go_on.wait(LONG)
        queue.publish("copies", dict(message))

    worker = queue.worker(handler, keys="orders")
    queue.publish("orders", {"n": 1})
    assert entered.wait(LONG)
    closing = threading.Thread(target=queue.close)
    closing.start()
    while queue._pool._closer is None:
        assert closing.is_alive()
    go_on.set()
    closing.join(LONG)
    assert queue.closed
    assert (worker.processed, worker.failed) == (1, 0)


def test_closing_the_connection_stops_its_workers(queue: SyncBackend) -> None:
    """They drain first."""
    seen = Seen()
    worker = queue.worker(seen.add)
    queue.publish("orders", {"n": 1})
    seen.wait(1)
    queue.close()
    assert not worker.running
    assert worker.processed == 1
    assert worker.rate > 0
