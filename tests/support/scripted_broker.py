"""A broker that does as the test says, and checks who calls it."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from abe.backends.message_queue.base import (
    Capabilities,
    Delivery,
    EndOfStream,
    Message,
    MessageStream,
    SettleFailure,
    Settlement,
    Subscription,
)
from abe.errors import ConnectionLostError


@dataclass
class Fault:
    """What happens to one call of a receiver.

    Attributes:
        delay: Seconds before the broker hears of it.
        error: Raised instead of doing it.
        late: Do it, and then raise: the broker's answer is what got lost.
        answer: Seconds from the broker's doing it to its answer.
    """

    delay: float = 0.0
    error: BaseException | None = None
    late: bool = False
    answer: float = 0.0


@dataclass(eq=False)
class Record:
    """A published message, and what became of it in the group."""

    seq: int
    key: str
    payload: dict[str, Any]
    failed: int = 0
    """Deliveries that counted."""
    deliveries: int = 0
    due: float = 0.0
    outcome: str = ""
    lease: Lease | None = None
    outcomes: list[str] = field(default_factory=list)
    acked_by: Message | None = None


@dataclass(eq=False)
class Lease:
    """A record in a consumer's hands; the receipt of its delivery."""

    record: Record
    owner: ScriptedReceiver
    ends: float
    attempt: int
    answered: bool = False
    disturbed: bool = False
    """Whether the script took it away."""
    message: Message | None = None


@dataclass(frozen=True)
class Call:
    """One call of a receiver's method."""

    time: float
    method: str
    receiver: int
    detail: tuple[Any, ...] = ()


class Broker:
    """One group of a broker that does as the test says, and checks who calls it.

    Args:
        lease: Seconds after which it redelivers; ``None`` = when the connection closes.
        bound: Whether receipts die with their connection.
        capabilities: Declared besides ``lease``; by default, everything with exact attempts.
    """

    def __init__(
        self, *, lease: float | None = 30.0, bound: bool = False, **capabilities: Any
    ) -> None:
        declared: dict[str, Any] = {
            "groups": True,
            "redelivery": "message",
            "release": True,
            "reject": True,
            "attempts": "exact",
            "nack_delay": math.inf,
            **capabilities,
        }
        self.capabilities = Capabilities(lease=lease, **declared)
        self.lease = lease
        self.bound = bound
        self.records: list[Record] = []
        self.unfinished: dict[int, Record] = {}
        self.receivers: list[ScriptedReceiver] = []
        self.calls: list[Call] = []
        self.faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self.refuse: Callable[[Settlement], Exception | None] = lambda settlement: None
        self.down: Exception | None = None
        self.ended = False
        self.latency = 0.0
        self.cancellable = False
        self.violations: list[str] = []

    # -- for the test ----------------------------------------------------------------------

    def stream(self, **options: Any) -> MessageStream:
        return MessageStream(
            Subscription(
                self.receiver, capabilities=self.capabilities, backend="scripted", **options
            )
        )

    def receiver(self) -> ScriptedReceiver:
        receiver = ScriptedReceiver(self, len(self.receivers))
        self.receivers.append(receiver)
        return receiver

    def fault(self, method: str, *, times: int = 1, **fault: Any) -> None:
        """Let the next calls of a method go wrong; see `Fault`."""
        self.faults[method].extend([Fault(**fault)] * times)

    def publish(self, count: int = 1, key: str = "k") -> list[Record]:
        first = len(self.records)
        new = [Record(first + n, key, {"n": first + n}) for n in range(count)]
        self.records += new
        self.unfinished |= {record.seq: record for record in new}
        self.notify()
        return new

    def cut(self, down: Exception | None = None) -> None:
        """Break every connection; with ``down``, refuse new ones until it is set to None."""
        self.down = down
        for receiver in self.receivers:
            if receiver.opened and not receiver.closed:
                receiver.broken = True
                self.let_go(receiver)
        self.notify()

    def expire(self, *records: Record) -> None:
        """Let leases lapse now, as if time had passed."""
        for record in records:
            if record.lease is not None:
                record.lease.disturbed = True
                self._lapse(record)
        self.notify()

    def called(self, *methods: str) -> list[Call]:
        return [call for call in self.calls if call.method in methods]

    def settled(self, outcome: str) -> list[int]:
        """Numbers of the messages settled so, in the order the broker heard of it."""
        return [n for call in self.called("settle") for n, o in call.detail if o == outcome]

    def extended(self) -> list[int]:
        return sorted({n for call in self.called("extend") for n in call.detail})

    def leased(self) -> list[int]:
        self.advance()
        return [record.seq for record in self.unfinished.values() if record.lease is not None]

    def unsettled(self) -> list[int]:
        return list(self.unfinished)

    def acked(self) -> list[int]:
        return [record.seq for record in self.records if record.outcome == "ack"]

    def check(self) -> None:
        """Assert that the contract of `Receiver` was kept and nothing is left open."""
        assert self.violations == []
        still_open = [r.number for r in self.receivers if r.opened and not r.closed]
        assert not still_open, f"receivers never closed: {still_open}"

    # -- the model -------------------------------------------------------------------------

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def notify(self) -> None:
        for receiver in self.receivers:
            receiver.look_again()

    def advance(self) -> None:
        for record in self.unfinished.values():
            if record.lease is not None and record.lease.ends <= self.now:
                self._lapse(record)

    def due(self) -> float:
        """When something becomes ready by itself."""
        times = [r.lease.ends if r.lease is not None else r.due for r in self.unfinished.values()]
        return min((t for t in times if t > self.now), default=math.inf)

    def take(self, limit: int, owner: ScriptedReceiver) -> list[Lease]:
        self.advance()
        leases: list[Lease] = []
        blocked: set[str] = set()
        ordered = self.capabilities.ordering == "key"
        if ordered:
            blocked = {r.key for r in self.unfinished.values() if r.lease is not None}
        for record in self.unfinished.values():
            if len(leases) == limit:
                break
            if record.lease is not None or record.key in blocked:
                continue
            if record.due > self.now:
                if ordered:
                    blocked.add(record.key)
                continue
            leases.append(self.lend(record, owner))
        return leases

    def lend(self, record: Record, owner: ScriptedReceiver) -> Lease:
        upper = self.capabilities.attempts == "upper"
        counted = record.deliveries if upper else record.failed
        attempt = 1 if self.capabilities.attempts == "none" else counted + 1
        ends = self.now + self.lease if self.lease is not None else math.inf
        record.deliveries += 1
        record.lease = Lease(record, owner, ends, attempt)
        return record.lease

    def settle(self, settlement: Settlement, owner: ScriptedReceiver) -> bool:
        """Apply a settlement; False if the delivery is lost."""
        lease: Lease = settlement.delivery.receipt
        record = lease.record
        if record.lease is not lease or (self.bound and lease.owner is not owner):
            return False
        record.lease = None
        record.outcomes.append(settlement.outcome.value)
        record.acked_by = settlement.delivery.message
        if settlement.outcome in ("ack", "reject"):
            record.outcome = settlement.outcome.value
            del self.unfinished[record.seq]
        elif settlement.outcome == "nack":
            record.failed += 1
            record.due = self.now + settlement.delay
        else:
            assert settlement.outcome == "release"
            assert self.capabilities.release
        return True

    def _lapse(self, record: Record) -> None:
        record.lease = None
        record.failed += 1
        record.outcomes.append("lapsed")

    def let_go(self, receiver: ScriptedReceiver) -> None:
        """The connection is gone: what the broker had lent to it alone comes back."""
        if self.bound or self.lease is None:
            for record in self.unfinished.values():
                if record.lease is not None and record.lease.owner is receiver:
                    record.lease.disturbed = True
                    self._lapse(record)


class ScriptedReceiver:
    """A `Receiver` of a `Broker`; every call is recorded, and every misuse."""

    def __init__(self, broker: Broker, number: int) -> None:
        self.lease = broker.lease
        self.broker = broker
        self.number = number
        self.opened = False
        self.closed = False
        self.broken = False
        self.receiving = False
        self._gone = False
        self._woken = False
        self._waiting: asyncio.Future[None] | None = None

    async def open(self) -> None:
        self._note("open")
        if self.opened:
            self._violated("opened twice")
        await self._call("open")
        if self.broker.down is not None:
            raise _fresh(self.broker.down)
        self.opened = True

    async def receive(self, max_messages: int, timeout: float) -> Sequence[Delivery]:
        self._note("receive", max_messages, timeout)
        if self.receiving:
            self._violated("receive called while it runs")
        if max_messages < 1:
            self._violated(f"receive({max_messages})")
        self.receiving = True
        try:
            fault = await self._call("receive")
            leases = await self._wait_for_messages(max_messages, timeout)
            await self._answer(fault)
            return [_deliver(lease) for lease in leases]
        except asyncio.CancelledError:
            if not self.broker.cancellable:
                self._violated("receive cancelled")
            raise
        finally:
            self.receiving = False

    async def _wait_for_messages(self, limit: int, timeout: float) -> list[Lease]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            self._check_connection()
            if self._woken or loop.time() >= deadline:
                self._woken = False
                return []
            if leases := self.broker.take(limit, self):
                return leases
            if self.broker.ended:
                raise EndOfStream
            self._waiting = loop.create_future()
            timer = loop.call_at(min(deadline, self.broker.due()), self.look_again)
            try:
                await self._waiting
            finally:
                timer.cancel()
                self._waiting = None

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleFailure]:
        self._note("settle", *((s.delivery.receipt.record.seq, s.outcome) for s in settlements))
        for settlement in settlements:
            if settlement.delivery.receipt.answered:
                self._violated(f"settled twice: {settlement.delivery.receipt.record}")
        fault = await self._call("settle")
        failures = []
        for settlement in settlements:
            error = self.broker.refuse(settlement)
            if error is not None or not self.broker.settle(settlement, self):
                failures.append(SettleFailure(settlement, error))
        self.broker.notify()
        await self._answer(fault)
        refused = [f.settlement.delivery.receipt for f in failures if f.error is not None]
        for settlement in settlements:
            settlement.delivery.receipt.answered = settlement.delivery.receipt not in refused
        return failures

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Delivery]:
        self._note("extend", *(d.receipt.record.seq for d in deliveries))
        fault = await self._call("extend")
        self.broker.advance()
        lost = []
        for delivery in deliveries:
            lease = delivery.receipt
            moved = self.broker.bound and lease.owner is not self
            if lease.record.lease is not lease or moved:
                lost.append(delivery)
            else:
                lease.ends = self.broker.now + seconds
        await self._answer(fault)
        return lost

    def wake(self) -> None:
        self._note("wake")
        self._woken = True
        self.look_again()

    async def aclose(self) -> None:
        self._note("aclose", allowed=True)
        self.closed = True
        if self._gone:
            return
        try:
            await self._call("aclose")
        except Exception:
            self._leave()
            raise
        self._leave()

    def _leave(self) -> None:
        self._gone = True
        self.broker.let_go(self)
        self.broker.notify()

    def look_again(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _note(self, method: str, *detail: Any, allowed: bool = False) -> None:
        self.broker.calls.append(Call(self.broker.now, method, self.number, detail))
        if self.closed and not allowed:
            self._violated(f"{method} after aclose")
        if not self.opened and method not in ("open", "aclose"):
            self._violated(f"{method} before open")

    def _violated(self, what: str) -> None:
        self.broker.violations.append(f"receiver {self.number}: {what}")

    async def _call(self, method: str) -> Fault:
        """Reach the broker, unless the script says otherwise."""
        faults = self.broker.faults[method]
        fault = faults.popleft() if faults else Fault()
        if delay := fault.delay + self.broker.latency:
            await asyncio.sleep(delay)
        if fault.error is not None and not fault.late:
            raise _fresh(fault.error)
        self._check_connection()
        return fault

    async def _answer(self, fault: Fault) -> None:
        if fault.answer:
            await asyncio.sleep(fault.answer)
        if fault.late and fault.error is not None:
            raise _fresh(fault.error)

    def _check_connection(self) -> None:
        if self.broken or (self.closed and self.receiving):
            raise ConnectionLostError("connection reset by the script")


def _fresh(error: BaseException) -> BaseException:
    """A copy of what is raised more than once, because it refers to the frames it has passed."""
    outage = isinstance(error, ConnectionError | TimeoutError)
    return type(error)(*error.args) if outage else error


def _deliver(lease: Lease) -> Delivery:
    record = lease.record
    lease.message = Message(
        record.payload, f"id-{record.seq}", record.key, 1.7e9 + record.seq, lease.attempt
    )
    return Delivery(lease.message, lease)


async def drain(broker: Broker, patience: float = 120.0) -> list[int]:
    """Consume and ack everything that the broker still has, or gets back in time."""
    received = []
    async with broker.stream() as stream:
        while messages := await stream.take(100, patience):
            received += [message["n"] for message in messages]
    return received
