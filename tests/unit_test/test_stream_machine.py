"""The stream engine under random programs, and cancelled at every point where it can be.

Everything runs on a virtual clock against a scripted broker.
"""

from __future__ import annotations

import asyncio
import warnings
import weakref
from asyncio.runners import _cancel_all_tasks  # type: ignore[attr-defined]
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from abe.backends.message_queue.base import Message, MessageStream, Settlement
from abe.backends.message_queue.base.subscription import subscription as engine
from abe.backends.message_queue.base.subscription.prefetch import MAX_PREFETCH
from abe.errors import ConnectionLostError
from tests.support.scripted_broker import Broker, drain
from tests.support.virtual_loop import Interrupted, VirtualLoop

if TYPE_CHECKING:
    from tests.support.virtual_loop import VirtualRun

LEASE = 30.0
FOREVER = 1e9
RESET = ConnectionLostError("connection reset by the script")

WORK: Sequence[float] = [0.0, 0.0, 0.001, 0.01, 0.1, 0.5, 3.0]
PAUSES: Sequence[float] = [0.01, 0.05, 0.2, 1.0, 2.0, LEASE / 4, LEASE, 2.5 * LEASE]
TIMEOUTS: Sequence[float | None] = [None, 0.0, 0.02, 5.0, LEASE]
OUTCOMES = ["ack", "nack", "nack later", "release", "reject", "detach"]
METHODS = ["receive", "settle", "extend", "open", "aclose"]
FAULTS: Sequence[dict[str, Any]] = [
    {"delay": 0.5},
    {"delay": LEASE * 1.5},
    {"answer": 0.5},
    {"answer": LEASE / 2},
    {"error": RESET},
    {"error": TimeoutError("no answer")},
    {"error": RESET, "late": True},
    {"error": RESET, "delay": 2.0},
    {"error": RESET, "answer": 2.0, "late": True},
]


class Consumer:
    """A stream and what its caller knows.

    Attributes:
        hand: What the caller was given and may work on.
        owned: Detached messages, which outlive the stream.
    """

    def __init__(self, stream: MessageStream, prefetch: int | None) -> None:
        self.stream: MessageStream | None = stream
        self.engine = stream.subscription
        self.most = prefetch or MAX_PREFETCH
        self.asking: asyncio.Task[list[Message]] | None = None
        self.closing: asyncio.Task[None] | None = None
        self.hand: list[Message] = []
        self.owned: list[Message] = []
        self.ended = False

    @property
    def live(self) -> MessageStream:
        """The stream; not to be kept in a variable while the loop runs, lest it outlive `drop`."""
        assert self.stream is not None
        return self.stream


class Step(NamedTuple):
    """One step of a program: what, by which consumer, and how much or which."""

    what: str
    which: int
    amount: int


class World:
    """Consumers of one group do anything they may, while anything happens to the broker."""

    def __init__(self, broker: Broker, *, eager: bool) -> None:
        self.broker = broker
        self.loop = VirtualLoop(eager=eager)
        self.consumers: list[Consumer] = []
        self.finished: set[int] = set()
        """Identities of the messages that a caller is done with, by its own word."""
        self.given: dict[int, Message] = {}
        self.calm = True
        """Nothing was done to the broker that may cost a lease."""

    def step(self, step: Step) -> None:
        do, needs = STEPS[step.what]
        streams = [c for c in self.consumers if c.stream is not None and needs(c)]
        if do.__code__.co_argcount == 2:
            do(self, step.amount)
        elif streams:
            do(self, streams[step.which % len(streams)], step.amount)
        self.collect()
        self.check()

    def run(self, what: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(what)

    def now(self, what: Callable[[], object]) -> None:
        async def call() -> None:
            what()

        self.run(call())

    def within(self, what: Coroutine[Any, Any, Any], seconds: float) -> None:
        async def call() -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await what

        self.run(call())

    # -- what may happen -------------------------------------------------------------------

    def publish(self, amount: int) -> None:
        def publish() -> None:
            for n in range(amount):
                self.broker.publish(1, key=f"key.{n % (1 + amount % 3)}")

        self.now(publish)

    def breathe(self, amount: int) -> None:
        async def wait() -> None:
            for _ in range(1 + amount % 6):
                await asyncio.sleep(0)

        self.run(wait())

    def wait(self, amount: int) -> None:
        self.run(asyncio.sleep(PAUSES[amount % len(PAUSES)]))

    def disturb(self, amount: int) -> None:
        self.calm = False
        method = METHODS[amount % len(METHODS)]
        fault = FAULTS[amount % len(FAULTS)]
        if method in ("receive", "aclose"):  # the stream does not wait for these for ever
            fault = {k: min(v, 4.0) if isinstance(v, float) else v for k, v in fault.items()}
        self.broker.fault(method, **fault)

    def cut(self, amount: int) -> None:
        self.calm = False
        down = ConnectionRefusedError("down") if amount % 2 else None
        self.now(lambda: self.broker.cut(down))

    def come_back(self, amount: int) -> None:
        self.broker.down = None

    def lose(self, amount: int) -> None:
        self.calm = False
        leased = [record for record in self.broker.records if record.lease is not None]
        self.now(lambda: self.broker.expire(*leased[:: 1 + amount % 5]))

    def refuse(self, amount: int) -> None:
        count = iter(range(amount))

        def refuse(settlement: Settlement) -> Exception | None:
            return TimeoutError("busy") if next(count, 0) % 3 else None

        self.calm = False
        self.broker.refuse = refuse

    # -- what callers may do ---------------------------------------------------------------

    def open(self, amount: int) -> None:
        if sum(c.stream is not None for c in self.consumers) == 2:
            return
        prefetch = [None, None, 1, 3][amount % 4]
        consumer = Consumer(self.broker.stream(prefetch=prefetch, max_hold=FOREVER), prefetch)
        self.consumers.append(consumer)
        if amount % 3 == 0:
            self.within(consumer.live.__aenter__(), 60.0)

    def ask(self, consumer: Consumer, amount: int) -> None:
        self._ask(consumer, consumer.live.__anext__)
        if amount % 3:
            self.run(asyncio.sleep(WORK[amount % len(WORK)]))

    def loop_over(self, consumer: Consumer, amount: int) -> None:
        """What most callers do: ask, work, ask again."""
        work = WORK[amount % len(WORK)]
        for _ in range(amount):
            if consumer.asking is not None or consumer.stream is None or consumer.ended:
                return
            self._ask(consumer, consumer.live.__anext__)
            self.run(asyncio.sleep(work))
            self.collect()

    def take(self, consumer: Consumer, amount: int) -> None:
        n = 1 + amount % 20
        consumer.most = max(consumer.most, n)
        self._ask(consumer, lambda: consumer.live.take(n, TIMEOUTS[amount % len(TIMEOUTS)]))
        self.breathe(amount)

    def _ask(self, consumer: Consumer, call: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        async def asking() -> list[Message]:
            self.finished |= {id(message) for message in consumer.hand}
            consumer.hand.clear()
            try:
                result = await call()
            except StopAsyncIteration:
                consumer.ended = True
                return []
            return result if isinstance(result, list) else [result]

        consumer.asking = self.loop.create_task(asking())

    def cancel(self, consumer: Consumer, amount: int) -> None:
        assert consumer.asking is not None
        consumer.asking.cancel()
        self.breathe(amount)

    def ask_and_cancel(self, consumer: Consumer, amount: int) -> None:
        self._ask(consumer, consumer.live.__anext__)
        self.breathe(amount)
        assert consumer.asking is not None
        consumer.asking.cancel()

    def unread(self, consumer: Consumer, amount: int) -> None:
        for message in reversed(consumer.hand[amount % 3 :]):
            if consumer.live.unread(message):
                consumer.hand.remove(message)
                del self.given[id(message)]

    def settle(self, consumer: Consumer, amount: int) -> None:
        message = consumer.hand[amount % len(consumer.hand)]
        outcome = OUTCOMES[amount % len(OUTCOMES)]
        if outcome == "detach":
            if message.outcome is None:
                message.detach()
                consumer.hand.remove(message)
                consumer.owned.append(message)
        elif outcome != "release" or self.broker.capabilities.release:
            self._settle(message, outcome)

    def settle_detached(self, amount: int) -> None:
        owned = [message for consumer in self.consumers for message in consumer.owned]
        if owned:
            self._settle(owned[amount % len(owned)], "nack" if amount % 3 == 0 else "ack")

    def _settle(self, message: Message, outcome: str) -> None:
        if outcome == "ack":
            self.finished.add(id(message))
        delay = {"delay": 20.0} if outcome == "nack later" else {}
        self.run(getattr(message, outcome.partition(" ")[0])(**delay))

    def flush(self, consumer: Consumer, amount: int) -> None:
        self.within(consumer.live.flush(), 5.0)

    def stop(self, consumer: Consumer, amount: int) -> None:
        self.now(consumer.live.stop)

    def close(self, consumer: Consumer, amount: int) -> None:
        error = ZeroDivisionError if amount % 3 == 0 else None

        async def closing() -> None:
            self.collect()
            if error is None and consumer.live._took:
                self.finished |= {id(message) for message in consumer.hand}
            try:
                await consumer.live.__aexit__(error, error() if error else None, None)
            except ConnectionLostError:
                assert not self.calm

        consumer.closing = self.loop.create_task(closing())
        self.breathe(amount)

    def drop(self, consumer: Consumer, amount: int) -> None:
        gone = weakref.ref(consumer.live)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            consumer.stream = None
        # During an outage the last error refers to its frames, and they to ours, above the loop.
        assert gone() is None or not self.calm, "a task keeps a stream alive"

    # -- what must hold --------------------------------------------------------------------

    def collect(self) -> None:
        """Pick up what the callers' tasks came back with."""
        for consumer in self.consumers:
            if consumer.asking is not None and consumer.asking.done():
                task, consumer.asking = consumer.asking, None
                if not task.cancelled():
                    for message in task.result():
                        self._received(consumer, message)
            if consumer.closing is not None and consumer.closing.done():
                consumer.closing.result()
                if consumer.asking is None:
                    consumer.stream = consumer.closing = None

    def _received(self, consumer: Consumer, message: Message) -> None:
        assert id(message) not in self.given, "handed over twice"
        self.given[id(message)] = message
        consumer.hand.append(message)
        if self.calm and consumer.closing is None and message.outcome is None:
            record = self.broker.records[message["n"]]
            assert record.lease is not None, "handed over without a lease"
            assert record.lease.message is message, "handed over while somebody else has it"

    def check(self) -> None:
        assert self.broker.violations == []
        assert self.loop.problems == []
        for record in self.broker.records:
            if record.outcome == "ack":
                assert id(record.acked_by) in self.finished, f"{record} acked behind the caller"
        for consumer in self.consumers:
            assert len(consumer.engine.buffer) <= 2 * consumer.most

    # -- the end ---------------------------------------------------------------------------

    def finish(self, *, exits: bool) -> None:
        """Close everything, properly or as the end of a program does, and count."""
        self.broker.down = None
        self.broker.faults.clear()
        self.broker.refuse = lambda settlement: None
        if exits:
            self.broker.cancellable = True
            _cancel_all_tasks(self.loop)
            self.broker.cancellable = False
        else:
            self.run(self._close_everything())
        self.check()
        assert not [e for e in engine._live if e.loop is self.loop]
        if self.calm and self.broker.capabilities.release:
            self._check_leases()
        received = self.run(drain(self.broker))
        assert self.broker.unsettled() == [], "lost"
        assert len(received) == len(set(received)), "delivered twice to one who acks"
        self.broker.check()
        self.breathe(3)
        assert not asyncio.all_tasks(self.loop)
        assert not self.loop.timers()
        assert self.loop.problems == []

    def _check_leases(self) -> None:
        owned = {message["n"] for consumer in self.consumers for message in consumer.owned}
        left = {record.seq for record in self.broker.records if record.lease is not None}
        assert left <= owned, "not given back"
        lapsed = {record.seq for record in self.broker.records if "lapsed" in record.outcomes}
        assert lapsed <= owned, "a lease was not extended"

    async def _close_everything(self) -> None:
        for consumer in self.consumers:
            if consumer.asking is not None:
                consumer.asking.cancel()
                with suppress(asyncio.CancelledError):
                    await consumer.asking
            if consumer.stream is not None:
                with suppress(ConnectionLostError):
                    await consumer.stream.aclose()
        await asyncio.sleep(60.0)  # for streams dropped, and closings begun, before
        self.collect()

    def bury(self) -> None:
        self.broker.cancellable = True
        _cancel_all_tasks(self.loop)
        self.loop.close()


def anyone(consumer: Consumer) -> bool:
    return True


def free(consumer: Consumer) -> bool:
    return consumer.asking is None and consumer.closing is None


STEPS: dict[str, tuple[Callable[..., None], Callable[[Consumer], bool]]] = {
    "publish": (World.publish, anyone),
    "breathe": (World.breathe, anyone),
    "wait": (World.wait, anyone),
    "open": (World.open, anyone),
    "ask": (World.ask, free),
    "loop over": (World.loop_over, free),
    "take": (World.take, free),
    "cancel": (World.cancel, lambda c: c.asking is not None),
    "ask and cancel": (World.ask_and_cancel, free),
    "unread": (World.unread, lambda c: free(c) and bool(c.hand)),
    "settle": (World.settle, lambda c: bool(c.hand)),
    "settle detached": (World.settle_detached, anyone),
    "flush": (World.flush, lambda c: c.closing is None),
    "stop": (World.stop, anyone),
    "close": (World.close, lambda c: c.closing is None),
    "drop": (World.drop, free),
    "disturb": (World.disturb, anyone),
    "cut": (World.cut, anyone),
    "come back": (World.come_back, anyone),
    "lose": (World.lose, anyone),
    "refuse": (World.refuse, anyone),
}
WEIGHTS = {"ask": 4, "loop over": 3, "take": 2, "settle": 3, "wait": 3, "cancel": 2, "publish": 2}
TROUBLE = ["disturb", "disturb", "cut", "come back", "come back", "lose", "refuse"]
EVERYDAY = [name for name in STEPS if name not in TROUBLE for _ in range(WEIGHTS.get(name, 1))]


def programs(steps: Sequence[str]) -> st.SearchStrategy[list[Step]]:
    step = st.builds(Step, st.sampled_from(steps), st.integers(0, 1), st.integers(0, 60))
    return st.lists(step, min_size=20, max_size=60)


LATENCIES = st.sampled_from([0.0, 0.0, 0.01, 1.0])
BROKERS = st.fixed_dictionaries(
    {
        "lease": st.sampled_from([LEASE, LEASE, None]),
        "bound": st.booleans(),
        "ordering": st.sampled_from(["none", "key"]),
        "attempts": st.sampled_from(["exact", "exact", "upper"]),
        "release": st.sampled_from([True, True, True, False]),
    }
)


@pytest.mark.parametrize("trouble", [False, True])
def test_random_programs(trouble: bool) -> None:
    """Nothing is acked that was not finished, nothing is lost, and nothing is left behind."""
    steps = EVERYDAY + 2 * TROUBLE if trouble else EVERYDAY

    @settings(
        max_examples=2 * settings().max_examples,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(BROKERS, LATENCIES, st.booleans(), programs(steps), st.booleans())
    def play(
        options: dict[str, Any], latency: float, eager: bool, program: list[Step], exits: bool
    ) -> None:
        world = World(Broker(**options), eager=eager)
        world.broker.latency = latency
        try:
            for step in [Step("publish", 0, 30), Step("open", 0, 1), *program]:
                world.step(step)
            world.finish(exits=exits)
        finally:
            world.bury()

    play()


# -- cancelled at every point --------------------------------------------------------------------

Program = Callable[["Broker", set[int]], Coroutine[Any, Any, None]]


async def iterate(broker: Broker, finished: set[int]) -> None:
    async with broker.stream() as stream:
        async for message in stream:
            await asyncio.sleep(0.01)
            finished.add(id(message))
            if message["n"] == 19:
                await message.ack()
                break


async def iterate_slowly(broker: Broker, finished: set[int]) -> None:
    async with broker.stream(prefetch=2) as stream:
        async for message in stream:
            await asyncio.sleep(LEASE if message["n"] % 7 == 3 else 1.0)
            finished.add(id(message))
            await stream.flush()
            if message["n"] == 19:
                break


async def take_batches(broker: Broker, finished: set[int]) -> None:
    async with broker.stream() as stream:
        while messages := await stream.take(3, timeout=10.0):
            await asyncio.sleep(0.01)
            finished.update(map(id, messages))


async def ask_with_timeouts(broker: Broker, finished: set[int]) -> None:
    async def ask() -> None:
        finished.update(hand)  # it is the asking that says so
        hand.clear()
        hand.append(id(await anext(stream)))

    hand: list[int] = []
    empty = 0
    async with broker.stream() as stream:
        while empty < 5:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.02):
                    await ask()
            with suppress(TimeoutError):
                await asyncio.wait_for(ask(), 0.03)
            empty += not hand


async def settle_by_hand(broker: Broker, finished: set[int]) -> None:
    stream = broker.stream()
    try:
        for n in range(20):
            message = await anext(stream)
            message.detach()
            await asyncio.sleep(0.01)
            if n % 4 == 1:
                await message.nack(5.0)
            elif n % 4 == 2:
                await message.release()
            else:
                finished.add(id(message))
                await message.ack()
    finally:
        await stream.aclose()


async def forget_to_close(broker: Broker, finished: set[int]) -> None:
    stream = broker.stream()
    for _ in range(10):
        message = await anext(stream)
        await asyncio.sleep(0.001)
        finished.add(id(message))


PROGRAMS: list[Program] = [
    iterate,
    iterate_slowly,
    take_batches,
    ask_with_timeouts,
    settle_by_hand,
    forget_to_close,
]


def disturbed(broker: Broker) -> None:
    """A slow read, a read and two settles that fail, a reconnection that takes two attempts."""
    broker.latency = 0.001
    broker.fault("receive")
    broker.fault("receive", answer=3.0)
    broker.fault("settle", error=RESET)
    broker.fault("settle", error=TimeoutError("no answer"), late=True)
    broker.fault("open")
    broker.fault("open", error=ConnectionRefusedError("down"))


async def interrupted_once(program: Program, *, k: int, late: bool, rough: bool) -> int:
    """Run a program, cancel it at its ``k``-th suspension, and see what is left.

    Returns:
        How often it was suspended.
    """
    broker = Broker()
    broker.publish(20)
    if rough:
        disturbed(broker)
    finished: set[int] = set()
    run = Interrupted(program(broker, finished), k, late=late)

    async def play() -> None:
        with suppress(ConnectionLostError):
            await run

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        await asyncio.wait([asyncio.create_task(play())])
        await asyncio.sleep(60.0)
    acked = {id(record.acked_by) for record in broker.records if record.outcome == "ack"}
    assert acked <= finished, "acked behind the caller"
    assert rough or broker.leased() == [], "not given back"
    rest = await drain(broker)
    assert broker.unsettled() == [], "lost"
    assert len(acked) + len(rest) == 20, "acked, and delivered again"
    broker.check()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    return run.suspensions


@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize("program", PROGRAMS)
def test_cancelled_at_every_await(run: VirtualRun, program: Program, rough: bool) -> None:
    """Wherever a caller is cancelled, nothing is lost, and nothing acked that was not finished."""

    async def main() -> None:
        k = 1
        while await interrupted_once(program, k=k, late=False, rough=rough) >= k:
            await interrupted_once(program, k=k, late=True, rough=rough)
            k += 1
        assert k > 10

    run(main(), debug=False)


def test_cancellations_at_any_moment_lose_nothing(run: VirtualRun, broker: Broker) -> None:
    """Tasks around ``__anext__``, cancelled at any moment by somebody who then looks no further."""
    broker.latency = 0.001
    received: list[int] = []

    async def main() -> None:
        async with broker.stream() as stream:
            for turn in range(2000):
                broker.publish(turn % 2)
                task = asyncio.create_task(anext(stream))
                await asyncio.sleep(0.0005 * (turn % 11))
                if task.done() and turn % 3:
                    received.append(task.result()["n"])
                    continue
                task.cancel()
                with suppress(asyncio.CancelledError):
                    assert stream.unread(await task)
            while messages := await stream.take(100, 5.0):
                received.extend(message["n"] for message in messages)

    run(main(), debug=False)
    assert received == list(range(1000))
    assert broker.acked() == received
    assert broker.settled("release") == []
