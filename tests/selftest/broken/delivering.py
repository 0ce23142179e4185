"""Broken publishing and receiving."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from abe.backends.message_queue.base import (
    Delivery,
    KeyFilter,
    Message,
    Outgoing,
    decode_payload,
)
from abe.types import ConsumerGroup
from tests.selftest.broken.registry import Streamed, broken
from tests.selftest.reference import ReferenceBackend, ReferenceHarness, ReferenceReceiver
from tests.selftest.store import Group, Lease, Store
from tests.selftest.variants import PlainBackend, PlainHarness


def _item(body: str, item: Outgoing) -> Outgoing:
    return item._replace(body=body)


@broken("has_the_three_methods", says="from_env", harness=PlainHarness)
class FromEnvOnInstance(PlainBackend):
    """from_env is no class method."""

    from_env = lambda *_: FromEnvOnInstance()  # noqa: E731


@broken(
    "what_is_published_arrives",
    "consumer_handles_everything",
    "consumer_runs_handler_objects",
    "consumers_under_load",
    says="never arrived",
)
class LosesTheFirst(ReferenceBackend):
    """The first message is accepted and lost."""

    class STORE(Store):
        def publish(self, items: Sequence[Outgoing], maxsize: float) -> None:
            if self.now() and next(self._ids) == 1:
                return
            super().publish(items, maxsize)


@broken("what_is_published_arrives", "consumers_share", says="more often than published")
class PublishesTwice(ReferenceBackend):
    """Every message is stored twice."""

    async def _send(self, items: Sequence[Outgoing]) -> None:
        await super()._send([item for item in items for _ in range(2)])


@broken("namespaces_are_apart", harness=lambda b, p: _OneStore(b, p))
class SharedNamespace(ReferenceBackend):
    """The harness gives every namespace the same messages."""


class _OneStore(ReferenceHarness):
    def store(self, namespace: str) -> Store:
        return super().store("one for all")


@broken("keys_share_a_queue", says="never arrived")
class OneKeyOnly(ReferenceBackend):
    """A consumer without a filter sees only the first key."""

    class STORE(Store):
        first = ""

        def publish(self, items: Sequence[Outgoing], maxsize: float) -> None:
            self.first = self.first or items[0].key
            super().publish(items, maxsize)

        def matches(self, group: Group, keys: KeyFilter, key: str) -> bool:
            return super().matches(group, keys, key) and key == self.first


@broken("waiting_consumer_is_served", says="published while waiting")
class DeafWaiter(ReferenceBackend):
    """A consumer that waits is not told of news."""

    class STORE(Store):
        def notify(self) -> None:
            return


@broken("payload_is_copied_on_publish", "received_payload_is_private", says="as it was when")
class AliasedPayload(ReferenceBackend):
    """The caller's own dict is what consumers receive."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if not hasattr(self.store, "payloads"):
            self.store.payloads = []  # type: ignore[attr-defined]

    async def publish(self, key: str, payload: Any, **extras: Any) -> None:
        """Keep the payload itself."""
        await super().publish(key, payload, **extras)
        self.store.payloads.append(payload)  # type: ignore[attr-defined]

    class RECEIVER(ReferenceReceiver):
        def deliver(self, lease: Lease) -> Delivery:
            delivery = super().deliver(lease)
            message = delivery.message
            message.clear()
            message.update(self.store.payloads[lease.place.stored.seq - 1])  # type: ignore[attr-defined]
            return delivery


@broken("concurrent_publishers", says="never arrived")
class LostUpdate(ReferenceBackend):
    """Publishing reads, waits and writes back: of concurrent ones the last wins."""

    async def _send(self, items: Sequence[Outgoing]) -> None:
        before = list(self.store.log)
        groups = {g: dict(group.places) for g, group in self.store.groups.items()}
        await asyncio.sleep(0)
        self.store.log = before
        for name, places in groups.items():
            self.store.groups[name].places = places
        await super()._send(items)


@broken(
    "competing_consumers_never_share",
    "consumers_share",
    "load_is_shared_exactly",
    "lively_use_leaves_nothing",
    says="more often than published",
)
class EveryConsumerGetsEverything(ReferenceBackend):
    """Consumers of one group are treated as groups of their own."""

    class STORE(Store):
        def open_group(self, name: ConsumerGroup, keys: KeyFilter) -> Group:
            own: Any = object()
            return super().open_group(own, keys)


@broken("backends_share_their_data", says="another backend published")
class MessagesInTheInstance(ReferenceBackend):
    """Each backend object has messages of its own."""

    def __init__(self, store: Store | None = None, **options: Any) -> None:
        super().__init__(None, **options)


@broken("payloads_arrive_exactly", says="became float")
class EveryNumberIsAFloat(ReferenceBackend):
    """Numbers pass through a format that knows only doubles."""

    class STORE(Store):
        def publish(self, items: Sequence[Outgoing], maxsize: float) -> None:
            super().publish(
                [_item(json.dumps(json.loads(i.body, parse_int=float)), i) for i in items], maxsize
            )


@broken("payloads_arrive_exactly", says=r"['strings'][2]: '\x00\x01\x1b\x7f\x80' became '\x01")
class NormalisedText(ReferenceBackend):
    """Control characters are stripped on the way."""

    class STORE(Store):
        def publish(self, items: Sequence[Outgoing], maxsize: float) -> None:
            super().publish([_item(i.body.replace("\\u0000", ""), i) for i in items], maxsize)


@broken("large_payload_arrives", says="(1,002 characters)")
class TruncatesText(ReferenceBackend):
    """Long texts are cut off silently."""

    class RECEIVER(ReferenceReceiver):
        def deliver(self, lease: Lease) -> Delivery:
            delivery = super().deliver(lease)
            for key, value in delivery.message.items():
                if isinstance(value, str):
                    delivery.message[key] = value[:1000]
            return delivery


@broken("poison_payloads_are_refused", says="a tuple")
class AcceptsTuples(ReferenceBackend):
    """Tuples become lists on the way, silently."""

    def _check(self, key: Any, payload: Any, headers: Any, delay: Any) -> Outgoing:
        if isinstance(payload, dict) and any(isinstance(v, tuple) for v in payload.values()):
            payload = {k: list(v) if isinstance(v, tuple) else v for k, v in payload.items()}
        return super()._check(key, payload, headers, delay)


@broken("poison_payloads_are_refused", says="more often than published")
class ChecksAfterSending(ReferenceBackend):
    """A payload is checked where it is too late: it is sent first."""

    async def publish(self, key: str, payload: Any, **extras: Any) -> None:
        """Send, then check."""
        if isinstance(payload, dict) and payload.get("a") == "x\ud800":
            body = json.dumps(payload)
            self.store.publish([Outgoing(key, body, {}, 0.0)], self.maxsize)
        await super().publish(key, payload, **extras)


@broken("keys_arrive_exactly", "filter_selects", says="arrived as")
class LowercasesKeys(ReferenceBackend):
    """Keys are folded to lower case."""

    def _check(self, *args: Any) -> Outgoing:
        item = super()._check(*args)
        return item._replace(key=item.key.lower())


@broken("malformed_keys_are_refused", says="should raise InvalidKeyError")
class AcceptsAnyKey(ReferenceBackend):
    """Keys are not checked."""

    def _check(self, key: Any, payload: Any, headers: Any, delay: Any) -> Outgoing:
        item = super()._check("any", payload, headers, delay)
        return item._replace(key=str(key) or "empty")


@broken("malformed_groups_are_refused", says="should raise InvalidKeyError")
class AcceptsAnyGroup(Streamed):
    """Group names are not checked."""

    def consume(self, *, group: ConsumerGroup = None, **options: Any) -> Any:
        """Take any name."""
        name = "".join(c for c in group if c.isalnum()) if group else group
        return super().consume(
            group=(name or "empty")[:99] if group is not None else None, **options
        )


@broken("headers_arrive_exactly", "headers_survive_redelivery", says="headers")
class DropsHeaders(ReferenceBackend):
    """Headers are accepted and dropped."""

    def _check(self, *args: Any) -> Outgoing:
        return super()._check(*args)._replace(headers={})


@broken("headers_survive_redelivery", says="headers of the redelivery")
class HeadersOnce(ReferenceBackend):
    """A redelivery has no headers."""

    class RECEIVER(ReferenceReceiver):
        def deliver(self, lease: Lease) -> Delivery:
            delivery = super().deliver(lease)
            if lease.attempt > 1:
                delivery.message.headers = {}
            return delivery


@broken("malformed_headers_are_refused", says="should raise PayloadError")
class StringifiesHeaders(ReferenceBackend):
    """Headers that are not text are turned into text."""

    def _check(self, key: Any, payload: Any, headers: Any, delay: Any) -> Outgoing:
        if isinstance(headers, dict):
            headers = {str(k) or "x": ascii(v) for k, v in headers.items()}
        return super()._check(key, payload, headers, delay)


@broken("metadata_is_complete", says="aware datetime")
class LocalTime(ReferenceBackend):
    """Timestamps are local and naive."""

    class RECEIVER(ReferenceReceiver):
        def deliver(self, lease: Lease) -> Delivery:
            delivery = super().deliver(lease)
            delivery.message._time = datetime.fromtimestamp(time.time())
            return delivery


@broken("metadata_is_complete", says="three ids")
class SameIdForAll(ReferenceBackend):
    """Every message has the same id."""

    class RECEIVER(ReferenceReceiver):
        def deliver(self, lease: Lease) -> Delivery:
            delivery = super().deliver(lease)
            delivery.message.id = "message"
            return delivery


@broken(
    "id_survives_redelivery",
    "id_is_the_same_in_every_group",
    "peeked_cannot_be_settled",
    "replayed_is_delivered_anew",
    says="id was",
)
class NewIdEachTime(ReferenceBackend):
    """The id is that of the delivery, not of the message."""

    class RECEIVER(ReferenceReceiver):
        def deliver(self, lease: Lease) -> Delivery:
            delivery = super().deliver(lease)
            delivery.message.id = f"{id(lease):x}-{time.monotonic_ns()}"
            return delivery


@broken("message_is_its_payload", "what_is_published_arrives", says="missing or new")
class MetadataInThePayload(ReferenceBackend):
    """The id is a key of the payload."""

    class RECEIVER(ReferenceReceiver):
        def deliver(self, lease: Lease) -> Delivery:
            delivery = super().deliver(lease)
            delivery.message["_id"] = delivery.message.id
            return delivery


@broken("copies_keep_metadata", says="after pickling")
class BareCopies(Streamed):
    """A copied or pickled message is only its payload."""

    class RECEIVER(ReferenceReceiver):
        def deliver(self, lease: Lease) -> Delivery:
            message = super().deliver(lease).message
            own = BareMessage(
                message, message.id, message.key, message._time, message.attempt, message.headers
            )
            return Delivery(own, lease)


class BareMessage(Message):
    """Forgets everything when copied."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return Message, (dict(self),)


@broken("received_payload_is_private", says="group b")
class SharedDecoded(ReferenceBackend):
    """A payload is decoded once and shared by every group."""

    class RECEIVER(ReferenceReceiver):
        def deliver(self, lease: Lease) -> Delivery:
            delivery = super().deliver(lease)
            stored = lease.place.stored
            decoded = vars(self.store).setdefault("decoded", {})
            body = decoded.setdefault(stored.seq, decode_payload(stored.item.body))
            delivery.message.update(body)
            return delivery


@broken("consumer_publishes_what_it_gives_up", says="never arrived")
class DeduplicatesByContent(ReferenceBackend):
    """A payload equal to an earlier one is dropped, though published on purpose."""

    CAPABILITIES = replace(ReferenceBackend.CAPABILITIES, reject=False, dead_letters=False)

    class STORE(Store):
        def publish(self, items: Sequence[Outgoing], maxsize: float) -> None:
            known = {stored.item.body for stored in self.log}
            super().publish([item for item in items if item.body not in known], maxsize)


@broken("consumer_runs_handler_objects", says="handle_event", harness=PlainHarness)
class NeverYields(PlainBackend):
    """Consuming yields nothing at all."""

    async def consume(self, *, group: ConsumerGroup = None) -> Any:
        """Wait without end."""
        await asyncio.Event().wait()
        yield {}
