"""Publishing and receiving: what every backend does, plain ones included."""

from __future__ import annotations

import asyncio
import copy

from abe.testing.base import ContractBase
from abe.testing.case import case
from abe.testing.context import CaseContext
from abe.testing.expect import check, same
from abe.types import MessageQueueBackendProtocol

__all__ = ["DeliveryCases"]


class DeliveryCases(ContractBase):
    """What is published arrives."""

    @case()
    async def test_has_the_three_methods(self, context: CaseContext) -> None:
        """A backend has from_env() on its class, publish() and consume()."""
        backend = context.backend
        check(
            isinstance(backend, MessageQueueBackendProtocol),
            f"{type(backend).__name__} lacks one of from_env, publish and consume",
        )
        bound = getattr(type(backend), "from_env", None)
        check(
            getattr(bound, "__self__", None) is type(backend),
            f"{type(backend).__name__}.from_env must be a classmethod",
        )

    @case()
    async def test_what_is_published_arrives(self, context: CaseContext) -> None:
        """Every published message arrives once, equal to what was published."""
        sent = await context.send(5)
        await context.collect(sent)

    @case()
    async def test_namespaces_are_apart(self, context: CaseContext) -> None:
        """The harness keeps namespaces apart: a backend of another one receives nothing."""
        await context.send(2)
        other = await context.within(
            context.harness.call("make", f"{context.namespace}x"), "the harness's make()"
        )
        try:
            await context.collect(
                [], backend=other, what="in a namespace where nothing was published"
            )
        finally:
            if hasattr(other, "aclose"):
                await context.within(other.aclose(), "aclose() of the backend")

    @case()
    async def test_keys_share_a_queue(self, context: CaseContext) -> None:
        """Messages of different keys all arrive at a consumer without a filter."""
        sent = [{"n": n} for n in range(4)]
        for payload, key in zip(sent, ("a", "a.b", "b", "orders.eu.created"), strict=True):
            await context.publish(payload, key)
        await context.collect(sent)

    @case()
    async def test_waiting_consumer_is_served(self, context: CaseContext) -> None:
        """A consumer that waits already receives what is published later."""
        async with context.stream() as stream:
            await context.nothing(stream, "nothing was published")
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            sent = await context.send(1)
            message = await context.within(waiting, "the message published while waiting")
            same(message, sent[0], "payload")
            await context.expect(stream, [], what="after the only message")

    @case()
    async def test_payload_is_copied_on_publish(self, context: CaseContext) -> None:
        """Changing the payload after publish() has returned changes nothing that arrives."""
        payload = {"n": 1, "nested": {"list": [1, 2]}}
        original = copy.deepcopy(payload)
        await context.publish(payload)
        payload["n"] = 2
        payload["nested"]["list"].append(3)  # type: ignore[index]
        (message,) = await context.collect([original], what="the payload as it was when published")
        same(message, original, "payload")

    @case()
    async def test_concurrent_publishers(self, context: CaseContext) -> None:
        """Messages published by concurrent tasks all arrive, each once."""
        count = 40
        payloads = [{"n": n} for n in range(count)]
        tasks = [context.backend.publish("orders", payload) for payload in payloads]
        await context.within(asyncio.gather(*tasks), f"{count} concurrent publishes")
        await context.collect(payloads, what="what concurrent tasks published")

    @case()
    async def test_competing_consumers_never_share(self, context: CaseContext) -> None:
        """Within a group each message goes to one consumer, and none to nobody."""
        async with context.stream() as first, context.stream() as second:
            sent = await context.spread(20)
            await context.share([first, second], sent, "what two consumers of one group received")

    @case(hooks=["reopen"])
    async def test_backends_share_their_data(self, context: CaseContext) -> None:
        """What one backend publishes is received through another on the same data."""
        other = await context.another()
        sent = await context.send(2, backend=other)
        async with context.stream() as stream:
            await context.expect(stream, sent, what="what another backend published")
            more = await context.send(2, start=2, backend=other)
            await context.expect(stream, more, what="what another backend published meanwhile")
