"""The publishing half of a history, and the tools of all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any

from abe.errors import AbeError
from abe.testing.context import CaseContext
from abe.testing.model.entities import Sent
from abe.testing.model.history import Step
from abe.testing.model.oracle import Oracle

__all__ = ["DELAYS", "Publishers"]

KEYS = ("a", "a.x", "b.x.y")
DELAYS = (0.0, 0.0, 0.0, 0.04, 5.0)


class Publishers:
    """Publishes, and is cancelled or cut off meanwhile.

    Args:
        context: Of a run of its own; its backend is one of two on the same data.
        log: What happens is written there, to be read if the history fails.
    """

    def __init__(self, context: CaseContext, log: list[str]) -> None:
        self.context = context
        self.can = context.can
        self.oracle = Oracle(context.can)
        self.log = log
        self.backends: list[Any] = [context.backend]
        self.numbers = 0
        self.poll = context.harness.quiet / 5
        self.passed = 0.0
        self.cut_lately = False

    def note(self, text: str) -> None:
        """Write to the log."""
        self.log.append(text)

    def now(self) -> float:
        """Return the time by which leases and delays are measured, in seconds."""
        return asyncio.get_running_loop().time() + self.passed

    async def within(self, call: Awaitable[Any], what: str) -> Any:
        """Await a call that must end."""
        return await self.context.within(call, what)

    # -- publishing ------------------------------------------------------------------------

    async def _publish(self, step: Step) -> None:
        key, delay = KEYS[step.a % 3], DELAYS[step.b % 5] if self.can.delay else 0.0
        headers = {"h": f"ü {step.b}"} if step.b % 3 == 0 and self.can.headers else {}
        backend = self.backends[step.a % 7 % 2]
        count = 1 if headers or delay else 1 + step.a % 4
        batch = [self._sending(key, headers, delay) for _ in range(count)]
        if count == 1:
            extras = {
                name: value for name, value in (("headers", headers), ("delay", delay)) if value
            }
            call = backend.publish(key, dict(batch[0].payload), **extras)
        else:
            call = backend.publish_many([(key, dict(sent.payload)) for sent in batch])
        text = f"publish {', '.join(map(str, batch))} delay={delay:g}"
        cancelled, error = await self._disturbed(call, step.c, text)
        if cancelled or error is not None:
            self.note(f"{text}: in doubt ({error or 'cancelled'})")
            return
        for sent in batch:
            self.oracle.accepted(sent)
        self.note(text)

    def _sending(self, key: str, headers: dict[str, str], delay: float) -> Sent:
        self.numbers += 1
        payload = {"n": self.numbers, "text": f"ß{self.numbers}", "list": [1.5, None, {"a": True}]}
        return self.oracle.sending(key, payload, headers, delay, self.now())

    async def _disturbed(
        self, call: Coroutine[Any, Any, Any], how: int, what: str
    ) -> tuple[bool, AbeError | None]:
        """Await a call that may be cancelled, or lose its connection; say what became of it."""
        task = asyncio.ensure_future(call)
        turns, kind = how % 100 // 10, how % 10
        for _ in range(turns if kind in (0, 1) else 0):
            await asyncio.sleep(0)
        if kind == 0:
            task.cancel()
        elif kind == 1:
            await self._cut(Step("cut", 0, 0, 0))
        try:
            await self.within(task, what)
        except asyncio.CancelledError:
            if kind != 0:
                raise
            return True, None
        except AbeError as error:
            if not (self.cut_lately and error.retryable):
                raise
            return False, error
        return False, None

    async def _kill_publisher(self, step: Step) -> None:
        if not self.context.harness.has("kill_publisher"):
            return
        key = f"killed.{len(self.log)}"
        count = await self.context.hook("kill_publisher", self.context.namespace, key)
        for n in range(count + 2):  # it may have been killed before it could say so
            sent = self.oracle.sending(key, {"n": n}, {}, 0.0, self.now())
            if n < count:
                self.oracle.accepted(sent)
        self.note(f"a publisher was killed after {count} messages of {key}")

    async def _cut(self, step: Step) -> None:
        if self.context.harness.has("cut_connections"):
            self.cut_lately = True
            self.oracle.cut()
            await self.context.hook("cut_connections")
            self.note("connections were cut")
