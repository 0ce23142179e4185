"""The tools of a scenario: every wait has a name, and everything it opened is closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from abe.backends.message_queue.base import (
    Capabilities,
    Message,
    MessageStream,
    capabilities_of,
    open_stream,
)
from abe.errors import AbeError
from abe.testing.expect import check, exactly, shown
from abe.testing.harness import Harness
from abe.testing.requirements import Skipped, unmet
from abe.types import ConsumerGroup

__all__ = ["CaseContext"]

T = TypeVar("T")


class CaseContext:
    """One run of one case, in a namespace of its own.

    Attributes:
        harness: The author's.
        namespace: New for every run.
        backend: The backend under test; `another` makes further ones on the same data.
        can: What it declares.
        declared: Whether it declares capabilities at all.
        waiting_for: What is being waited for now, for the failure of a case that hangs.
    """

    def __init__(self, needs: Sequence[str], harness: Harness, namespace: str) -> None:
        self.harness = harness
        self.namespace = namespace
        self.backend: Any = None
        self.can = Capabilities()
        self.declared = False
        self.waiting_for = "nothing in particular"
        self._needs = needs
        self._sent: list[Mapping[str, Any]] = []
        self._arrived: list[Message] = []
        self._streams: list[MessageStream] = []
        self._backends: list[Any] = []

    # -- life ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Make the backend; raises `Skipped` if the case does not apply to it."""
        self.backend = await self.make("make")
        self.can = capabilities_of(self.backend)
        self.declared = isinstance(getattr(self.backend, "capabilities", None), Capabilities)
        self.harness.declared = self.can if self.declared else None
        reason = unmet(self._needs, self.can, self.declared)
        if reason:
            raise Skipped(reason)

    async def close(self) -> None:
        """Close every stream and backend, in that order, each within the harness's patience."""
        errors: list[BaseException] = []
        closing = [("aclose() of a stream", s) for s in reversed(self._streams)]
        closing += [("aclose() of the backend", b) for b in reversed(self._backends)]
        self._streams, self._backends = [], []
        for what, opened in closing:
            if hasattr(opened, "aclose"):
                try:
                    await self.within(opened.aclose(), what)
                except Exception as error:
                    errors.append(error)
        if errors:
            raise errors[0]

    async def make(self, method: str, *args: Any) -> Any:
        """Make a backend with one of the harness's ``make`` methods; it is closed at the end."""
        made = await self.within(
            self.harness.call(method, self.namespace, *args), f"the harness's {method}()"
        )
        if not any(made is known for known in self._backends):
            self._backends.append(made)
        return made

    async def another(self) -> Any:
        """Make a further backend on the same data."""
        return await self.make("make")

    async def hook(self, name: str, *args: Any) -> Any:
        """Call a hook of the harness."""
        patience = 3 * self.harness.patience  # restarting a broker takes its time
        return await self.within(
            self.harness.call(name, *args), f"the harness's {name}()", patience
        )

    # -- waiting ---------------------------------------------------------------------------

    async def within(self, awaitable: Awaitable[T], what: str, seconds: float | None = None) -> T:
        """Await something; if it takes longer than the harness's patience, fail naming it."""
        __tracebackhide__ = True
        seconds = self.harness.patience if seconds is None else seconds
        before, self.waiting_for = self.waiting_for, what
        task = asyncio.ensure_future(awaitable)
        try:
            done, _ = await asyncio.wait({task}, timeout=seconds)
        finally:
            if not task.done():
                task.cancel()
        if not done:
            await asyncio.wait({task}, timeout=0.5)
            raise AssertionError(f"waited {seconds:g} s for {what}; {self.account()}")
        self.waiting_for = before
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error  # result() forgets where it came up if the task was awaited before
        return task.result()

    def account(self) -> str:
        """Say what this case has published and what has arrived."""
        sent = ", ".join(shown(p, 80) for p in self._sent[-8:]) or "nothing"
        arrived = ", ".join(shown(m, 80) for m in self._arrived[-8:]) or "nothing"
        return (
            f"published {len(self._sent)}: {sent}; arrived {len(self._arrived)}: {arrived}"
            f" (the last 8 of each)"
        )

    # -- publishing ------------------------------------------------------------------------

    async def publish(
        self, payload: dict[str, Any], key: str = "orders", *, backend: Any = None, **extras: Any
    ) -> None:
        """Publish one message."""
        chosen = self.backend if backend is None else backend
        await self.within(chosen.publish(key, payload, **extras), f"publish({key!r}, …)")
        self._sent.append(payload)

    async def publish_until_accepted(self, payload: dict[str, Any], key: str = "orders") -> None:
        """Publish, trying again for as long as a connection is being restored."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.harness.patience
        while True:
            try:
                await self.publish(payload, key)
                return
            except AbeError as error:
                if loop.time() > deadline:
                    text = f"publish() still fails after the cut: {error!r}"
                    raise AssertionError(text) from error
                await asyncio.sleep(0.05)

    async def send(
        self, count: int, key: str = "orders", *, start: int = 0, backend: Any = None
    ) -> list[dict[str, Any]]:
        """Publish ``{"n": start}``, ``{"n": start + 1}`` … under one key and return them."""
        payloads = [{"n": n} for n in range(start, start + count)]
        for payload in payloads:
            await self.publish(payload, key, backend=backend)
        return payloads

    async def spread(
        self, count: int, *, start: int = 0, backend: Any = None
    ) -> list[dict[str, Any]]:
        """Publish the same, each under a key of its own: for consumers that hold several.

        Ordered per key, the next message of a key would not be handed out meanwhile.
        """
        payloads = [{"n": n} for n in range(start, start + count)]
        for payload in payloads:
            await self.publish(payload, f"key.{payload['n']}", backend=backend)
        return payloads

    # -- receiving -------------------------------------------------------------------------

    def open(
        self,
        group: ConsumerGroup = None,
        *,
        keys: Sequence[str] | str | None = None,
        prefetch: int | None = None,
        backend: Any = None,
    ) -> MessageStream:
        """Return a stream over any backend; closed at the end if the scenario does not."""
        chosen = self.backend if backend is None else backend
        stream = open_stream(chosen, group=group, keys=keys, prefetch=prefetch)
        self._streams.append(stream)
        return stream

    @asynccontextmanager
    async def stream(
        self, group: ConsumerGroup = None, **options: Any
    ) -> AsyncIterator[MessageStream]:
        """Open a stream and close it at the end of the ``async with``; options as in `open`."""
        stream = self.open(group, **options)
        await self.within(stream.__aenter__(), f"opening a stream of group {group!r}")
        try:
            yield stream
        except BaseException as error:
            kind = type(error)
            await self.within(
                stream.__aexit__(kind, error, error.__traceback__), "aclose() of the stream"
            )
            raise
        else:
            await self.within(stream.__aexit__(None, None, None), "aclose() of the stream")
        finally:
            self.forget(stream)

    async def leave(self, stream: MessageStream) -> None:
        """Close a stream the way a ``break`` out of ``async with`` does not: acking nothing."""
        await self.within(stream.aclose(), "aclose() of the stream")
        self.forget(stream)

    def forget(self, stream: MessageStream) -> None:
        """Leave the stream to the scenario: it is not closed at the end."""
        self._streams = [s for s in self._streams if s is not stream]

    async def next(
        self, stream: MessageStream, what: str = "the next message", seconds: float | None = None
    ) -> Message:
        """Return the next message of ``stream``, acking the one before as iteration does."""
        message = await self.within(anext(stream), what, seconds)
        self._arrived.append(message)
        return message

    async def take(self, stream: MessageStream, count: int, what: str = "") -> list[Message]:
        """Return ``count`` messages of ``stream``; fails if there are fewer."""
        what = what or f"{count} messages"
        patience = self.harness.patience
        taken = await self.within(
            stream.take(count, timeout=patience), f"take() of {what}", patience + 2
        )
        self._arrived += taken
        check(
            len(taken) == count,
            f"waited {patience:g} s for {what}, and {len(taken)} came; {self.account()}",
        )
        return taken

    async def nothing(self, stream: MessageStream, why: str) -> None:
        """Fail if ``stream`` delivers anything within the harness's quiet time.

        Acks what was handed over before, as any request for more does.
        """
        quiet = self.harness.quiet
        came = await self.within(
            stream.take(1, timeout=quiet), f"take(timeout={quiet:g}) to return", quiet + 5
        )
        self._arrived += came
        if came:
            raise AssertionError(
                f"{why}, but {shown(came[0])} came (attempt {came[0].attempt}); {self.account()}"
            )

    async def flush(self, stream: MessageStream) -> None:
        """Wait until the broker has accepted every settlement so far."""
        await self.within(stream.flush(), "flush() of the stream")

    async def collect(
        self,
        expected: Sequence[Mapping[str, Any]],
        group: ConsumerGroup = None,
        *,
        what: str = "",
        ordered: bool = False,
        **options: Any,
    ) -> list[Message]:
        """Receive and ack ``expected`` and nothing else from ``group``, by a new stream."""
        async with self.stream(group, **options) as stream:
            return await self.expect(stream, expected, what=what, ordered=ordered)

    async def expect(
        self,
        stream: MessageStream,
        expected: Sequence[Mapping[str, Any]],
        *,
        what: str = "",
        ordered: bool = False,
    ) -> list[Message]:
        """Receive and ack ``expected`` and nothing else from ``stream``."""
        what = what or "what was published"
        arrived: list[Message] = []
        patience = self.harness.patience
        while len(arrived) <= len(expected):
            complete = len(arrived) == len(expected)
            # One by one, because each request acks what was taken before it.
            more = await self.within(
                stream.take(1, timeout=self.harness.quiet if complete else patience),
                f"take() of {what}",
                patience + 2,
            )
            if not more:
                break
            self._arrived += more
            arrived += more
        exactly(arrived, expected, what, ordered=ordered)
        return arrived

    async def share(
        self, streams: Sequence[MessageStream], expected: Sequence[Mapping[str, Any]], what: str
    ) -> list[list[Message]]:
        """Receive and ack ``expected`` through competing streams; return what each received."""
        received: list[list[Message]] = [[] for _ in streams]
        complete = asyncio.Event()

        async def drain(stream: MessageStream, own: list[Message]) -> None:
            async for message in stream:
                own.append(message)
                self._arrived.append(message)
                if sum(map(len, received)) >= len(expected):
                    complete.set()

        tasks = [
            asyncio.create_task(drain(stream, own))
            for stream, own in zip(streams, received, strict=True)
        ]
        # Too few must be reported as a difference, not as time that ran out.
        await asyncio.wait(
            [*tasks, asyncio.create_task(complete.wait())],
            timeout=self.harness.patience * 2,
            return_when=asyncio.FIRST_COMPLETED,
        )
        await asyncio.sleep(self.harness.quiet)
        complete.set()
        for stream in streams:
            stream.stop()
        await self.within(asyncio.gather(*tasks), "consumers to end after stop()")
        exactly([m for own in received for m in own], expected, what)
        return received

    # -- time ------------------------------------------------------------------------------

    async def lapse(self) -> None:
        """Let every lease lapse at once."""
        await self.hook("advance_time", (self.can.lease or 0.0) * 1.05 + 0.1)

    @property
    def after_cut(self) -> float:
        """Seconds within which what a cut connection had received must have come back."""
        return self.harness.patience + (self.can.lease or 0.0)

    async def let_unsettled_return(self) -> None:
        """Where a closed stream cannot release what it held, wait until its lease has lapsed."""
        if not self.can.release:
            await self.let_held_by_the_dead_return()

    async def let_held_by_the_dead_return(self) -> None:
        """Wait until the leases of a consumer that will never settle have lapsed."""
        lease = self.can.lease
        if lease is None:
            return
        if self.harness.has("advance_time"):
            await self.lapse()
        elif lease <= self.harness.patience:
            await asyncio.sleep(lease)
        else:
            raise Skipped(
                "harness has no advance_time, and what nobody settles comes back only after its "
                f"lease of {lease:g} s"
            )
