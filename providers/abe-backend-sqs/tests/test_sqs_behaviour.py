"""What the contract suite cannot know of SQS and SNS, against moto."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.exceptions import ClientError

import abe
from abe.backends.message_queue.base import KeyFilter, Message, Outcome, Settlement
from abe.backends.message_queue.consumer import AsyncLoopConsumer, RetryPolicy
from abe.errors import (
    ConfigurationError,
    ConnectionLostError,
    PayloadError,
    PublishError,
    Reject,
)
from abe_backend_sqs import long_poll
from abe_backend_sqs.backend import SqsBackend
from abe_backend_sqs.link import Access
from abe_backend_sqs.testing import REGION, SqsServer

ACCESS = Access(REGION, None, "testing", "testing")
Parameters = dict[str, Any]


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 40))


def backend(endpoint: str, queue: str | None = "orders", **options: Any) -> SqsBackend:
    return SqsBackend(queue, endpoint=endpoint, access=ACCESS, **options)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - a consumer's counters have no event
        await asyncio.sleep(0.01)


class Raw:
    """SQS without abe, synchronous."""

    def __init__(self, server: SqsServer, queue: str) -> None:
        session = botocore.session.Session()
        self.client = session.create_client(
            "sqs",
            region_name=REGION,
            endpoint_url=server.endpoint,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )
        self.url = self.client.get_queue_url(QueueName=queue)["QueueUrl"]

    def send(self, body: str, **attributes: str) -> str:
        given = {n: {"DataType": "String", "StringValue": v} for n, v in attributes.items()}
        answer = self.client.send_message(
            QueueUrl=self.url, MessageBody=body, MessageAttributes=given
        )
        return str(answer["MessageId"])

    def receive(self, seconds: int = 0) -> list[Parameters]:
        """Take up to ten messages, for some seconds."""
        answer = self.client.receive_message(
            QueueUrl=self.url,
            MaxNumberOfMessages=10,
            VisibilityTimeout=seconds,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["All"],
        )
        found: list[Parameters] = answer.get("Messages", [])
        return found

    def limit(self, size: int) -> None:
        """Let the queue take messages of so many bytes at most."""
        attributes = {"MaximumMessageSize": str(size)}
        self.client.set_queue_attributes(QueueUrl=self.url, Attributes=attributes)


@pytest.fixture
def raw(server: SqsServer, queue: str) -> Raw:
    """A queue with dead letters, seen from outside."""
    server.create_queue(queue)
    return Raw(server, queue)


class TestMessages:
    def test_body_key_and_headers_as_others_see_them(
        self, server: SqsServer, raw: Raw, queue: str
    ) -> None:
        async def main() -> None:
            async with backend(server.endpoint, queue) as q:
                headers = {"trace-id": "é", "odd name": "x"}
                await q.publish("größe.%41", {"a": "ü", "n": 1}, headers=headers)

        run(main())
        (message,) = raw.receive()
        assert message["Body"] == '{"a":"ü","n":1}'
        values = {n: part["StringValue"] for n, part in message["MessageAttributes"].items()}
        assert values.pop("abe-id")
        assert values == {
            "abe-key": "größe.%2541",
            "trace-id": "é",
            "abe-headers": '{"odd name": "x"}',
        }

    def test_too_large_is_refused_before_anything_is_sent(
        self, server: SqsServer, queue: str
    ) -> None:
        server.create_queue(queue, attributes={"MaximumMessageSize": "1024"})

        async def main() -> None:
            async with backend(server.endpoint, queue) as q:
                await q.publish("k", {"a": "x" * 900})
                with pytest.raises(PayloadError, match=rf"bytes .*; {queue} takes 1024"):
                    await q.publish("k", {"a": "x" * 900}, headers={"h": "y" * 100})
                with pytest.raises(PayloadError, match=r"^item 1: "):
                    await q.publish_many([{"a": 1}, {"a": "é" * 600}, {"a": 1}], key="k")

        run(main())
        assert len(Raw(server, queue).receive()) == 1

    def test_equal_payloads_are_different_messages_on_fifo(
        self, server: SqsServer, queue: str
    ) -> None:
        name = f"{queue}.fifo"
        server.create_queue(name, attributes={"ContentBasedDeduplication": "true"})

        async def main() -> None:
            async with backend(server.endpoint, name) as q:
                for _ in range(2):
                    await q.publish("k", {"same": True})
                await q.publish_many([{"same": True}] * 2, key="k")

        run(main())
        assert len(Raw(server, name).receive()) == 4


class TestConsuming:
    def test_what_others_have_sent(self, server: SqsServer, raw: Raw, queue: str) -> None:
        id = raw.send('{"from": "elsewhere"}', colour="red")

        async def main() -> None:
            async with backend(server.endpoint, queue) as q, q.consume() as stream:
                message = await anext(stream)
                assert message == {"from": "elsewhere"}
                assert (message.key, message.id) == (queue, id)
                assert message.headers == {"colour": "red"}
                assert message.timestamp is not None
                assert abs(message.timestamp.timestamp() - time.time()) < 30

        run(main())

    def test_what_cannot_be_delivered_goes_to_the_dead_letters(
        self, server: SqsServer, raw: Raw, queue: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        raw.send("<xml/>")
        raw.send('{"n": 1}')

        async def main() -> None:
            async with (
                backend(server.endpoint, queue, dead_letters=True) as q,
                q.consume() as stream,
            ):
                assert await anext(stream) == {"n": 1}
                (letter,) = await q.dead_letters()
                assert letter == {"abe-raw": "<xml/>"}
                assert "is not JSON" in letter.headers["abe-dead-reason"]

        run(main())
        assert "goes to the dead letters" in caplog.text
        (dead,) = Raw(server, f"{queue}-dead").receive()
        assert dead["Body"] == "<xml/>"
        assert "is not JSON" in dead["MessageAttributes"]["abe-headers"]["StringValue"]

    @pytest.mark.parametrize("dead_letters", [False, True])
    def test_what_cannot_be_given_up_stays_out_of_the_way(
        self, server: SqsServer, raw: Raw, queue: str, dead_letters: bool
    ) -> None:
        """No dead letters, or a queue of them that takes no message of this size."""
        Raw(server, f"{queue}-dead").limit(1024)
        raw.send(f"<xml>{'x' * 2000}</xml>")
        raw.send('{"n": 1}')

        async def main() -> None:
            async with (
                backend(server.endpoint, queue, dead_letters=dead_letters) as q,
                q.consume() as stream,
            ):
                message = await anext(stream)
                assert message == {"n": 1}
                await message.ack()
            assert raw.receive() == []
            server.advance(900)
            assert [message["Body"][:5] for message in raw.receive()] == ["<xml>"]

        run(main())

    def test_logging_that_raises_stops_nothing(
        self, server: SqsServer, raw: Raw, queue: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(record: logging.LogRecord) -> bool:
            raise OSError("the disk is full")

        monkeypatch.setattr(logging.getLogger("abe_backend_sqs.receiver"), "filters", [fail])
        raw.send("<xml/>")
        raw.send('{"n": 1}')

        async def main() -> None:
            async with backend(server.endpoint, queue, dead_letters=True) as q:
                async with q.consume() as stream:
                    assert await anext(stream) == {"n": 1}
                assert len(await q.dead_letters()) == 1

        run(main())

    def test_a_poll_that_nobody_waits_for_gives_back_what_it_brings(
        self, queue: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(long_poll, "FIRST_WAIT", 20)
        with SqsServer() as server:
            server.create_queue(queue)

            async def main() -> None:
                first = backend(server.endpoint, queue, wait=20)
                async with first:
                    async with first.consume() as stream:
                        assert await stream.take(1, timeout=0.3) == []
                        started = time.monotonic()
                    assert time.monotonic() - started < 10.0, "closing waited for its poll"
                    assert first._sources[Raw(server, queue).url][0]._left
                    await first.publish("k", {"n": 0})
                    async with backend(server.endpoint, queue) as q, q.consume() as stream:
                        (message,) = await stream.take(1, timeout=10)
                        assert message.attempt == 2, "the poll that was left got it before"

            run(main())

    def test_the_next_receiver_takes_over_the_poll(
        self, queue: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(long_poll, "FIRST_WAIT", 20)
        with SqsServer() as server:
            server.create_queue(queue)

            async def main() -> None:
                async with backend(server.endpoint, queue, wait=20) as q:
                    async with q.consume() as stream:
                        assert await stream.take(1, timeout=0.3) == []
                    async with q.consume() as stream:
                        waiting = asyncio.ensure_future(anext(stream))
                        await asyncio.sleep(0.1)
                        await q.publish("k", {"n": 0})
                        assert (await waiting).attempt == 1
                        await waiting.result().ack()

            run(main())

    def test_leases_lapse(self, server: SqsServer, raw: Raw, queue: str) -> None:
        async def main() -> None:
            async with backend(server.endpoint, queue, lease=1) as q:
                await q.publish("k", {"n": 0})
                (held,) = raw.receive(seconds=1)
                assert held["Attributes"]["ApproximateReceiveCount"] == "1"
                async with q.consume() as stream:
                    message = await anext(stream)
                    assert message.attempt == 2

        run(main())

    def test_a_redrive_by_sqs_itself(self, server: SqsServer, queue: str) -> None:
        policy = {
            "deadLetterTargetArn": f"arn:aws:sqs:{REGION}:123456789012:{queue}-dead",
            "maxReceiveCount": 2,
        }
        server.create_queue(queue)
        plain = Raw(server, queue)
        plain.client.set_queue_attributes(
            QueueUrl=plain.url, Attributes={"RedrivePolicy": json.dumps(policy)}
        )

        async def main() -> None:
            async with backend(server.endpoint, queue, dead_letters=True) as q:
                await q.publish("k", {"n": 0}, headers={"h": "1"})
                async with q.consume() as stream:
                    first = await anext(stream)
                    await first.nack()
                    await (await anext(stream)).nack()
                    assert await stream.take(1, timeout=0.5) == []
                (dead,) = await q.dead_letters()
                assert (dead.id, dead.headers) == (first.id, {"h": "1"})
                assert await q.replay(ids=["unknown"]) == 0
                assert await q.replay(ids=[str(first.id)]) == 1
                async with q.consume() as stream:
                    again = await anext(stream)
                    assert (again.attempt, again.id, again.headers) == (1, first.id, {"h": "1"})
                    await again.ack()
                assert (await q.stats()).total("dead") == 0

        run(main())

    def test_a_reason_too_long_is_shortened(self, server: SqsServer, queue: str) -> None:
        server.create_queue(queue)
        Raw(server, f"{queue}-dead").limit(2048)

        async def main() -> None:
            async with backend(server.endpoint, queue, dead_letters=True) as q:
                for size in (10, 700, 1300, 1800):
                    await q.publish("k", {"x": "x" * size})
                    async with q.consume() as stream:
                        await (await anext(stream)).reject("r" * 900 + "\n" + "t" * 900)
                letters = await q.dead_letters()
                reasons = {
                    len(letter["x"]): len(letter.headers.get("abe-dead-reason", ""))
                    for letter in letters
                }
                assert reasons == {10: 900, 700: 900, 1300: 100, 1800: 0}

        run(main())

    @pytest.mark.parametrize("refused", ["too large", "forbidden"])
    def test_a_message_that_the_dead_letters_refuse_stays_and_ends_nothing(
        self,
        server: SqsServer,
        queue: str,
        refused: str,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        server.create_queue(queue)
        handled: list[int] = []

        async def handle(message: Message) -> None:
            handled.append(message["n"])
            if message["n"] == 0:
                raise Reject("bad")

        async def main() -> None:
            async with backend(server.endpoint, queue, dead_letters=True) as q:
                call = q._link.call

                async def forbid(service: str, operation: str, **rest: Any) -> dict[str, Any]:
                    if operation == "send_message" and refused == "forbidden":
                        raise ConfigurationError("AccessDenied")
                    return await call(service, operation, **rest)

                monkeypatch.setattr(q._link, "call", forbid)
                consumer = AsyncLoopConsumer(q)
                running = asyncio.create_task(consumer.run(handle))
                await q.publish("k", {"n": 0, "x": "x" * 2000})
                await until(lambda: consumer.dead == 1)
                await q.publish("k", {"n": 1})
                await until(lambda: consumer.processed == 1)
                await consumer.shutdown()
                await running
                assert await q.dead_letters() == []

        if refused == "too large":
            Raw(server, f"{queue}-dead").limit(1024)
        run(main())
        assert handled == [0, 1]
        (record,) = [r for r in caplog.records if "refused by its dead-letter queue" in r.message]
        assert record.levelno == logging.ERROR
        server.advance(900)
        assert len(Raw(server, queue).receive()) == 1

    def test_replay_ends_beside_a_consumer_that_rejects(
        self, server: SqsServer, queue: str
    ) -> None:
        server.create_queue(queue)

        async def main() -> None:
            async with backend(server.endpoint, queue, dead_letters=True) as q:

                async def handle(message: Message) -> None:
                    raise Reject("never")

                await q.publish_many([{"n": n} for n in range(12)], key="k")
                consumer = AsyncLoopConsumer(q)
                running = asyncio.create_task(consumer.run(handle))
                await until(lambda: consumer.dead == 12)
                assert await asyncio.wait_for(q.replay(), 15) == 12
                await until(lambda: consumer.dead == 24)
                await consumer.shutdown()
                await running
                assert sorted(letter["n"] for letter in await q.dead_letters()) == [*range(12)]

        run(main())

    def test_purge_ends_beside_a_publisher(self, server: SqsServer, queue: str) -> None:
        server.create_queue(queue)

        async def main() -> None:
            async with backend(server.endpoint, queue) as q:

                async def publish_on() -> None:
                    while True:
                        await q.publish_many([{"new": True}] * 10, key="k")

                await q.publish_many([{}] * 5, key="k")
                publishing = asyncio.create_task(publish_on())
                assert await asyncio.wait_for(q.purge(), 30) >= 5
                publishing.cancel()
                await asyncio.wait([publishing])

        run(main())

    def test_looking_ends_well_although_logging_raises(
        self, server: SqsServer, queue: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.create_queue(queue)
        refused: list[str] = []

        def refuse(record: logging.LogRecord) -> bool:
            refused.append(record.getMessage())
            raise RuntimeError("a filter of the application")

        async def main() -> None:
            async with backend(server.endpoint, queue) as q:
                call = q._link.call

                async def cut(service: str, operation: str, **rest: Any) -> dict[str, Any]:
                    if operation == "change_message_visibility_batch":
                        raise ConnectionLostError("cut")
                    return await call(service, operation, **rest)

                await q.publish("k", {"n": 0})
                monkeypatch.setattr(q._link, "call", cut)
                assert await q.purge(keys=["other"]) == 0

        monkeypatch.setattr(logging.getLogger("abe_backend_sqs.dead_letters"), "filters", [refuse])
        run(main())
        assert [text.partition(":")[2] for text in refused] == [
            " 1 messages stay hidden for up to 300 s: cut"
        ]

    def test_a_rejection_that_is_repeated_leaves_one_dead_letter(
        self, server: SqsServer, queue: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.create_queue(queue)
        failures = [ConnectionLostError("cut"), ConnectionLostError("cut")]

        async def main() -> None:
            async with backend(server.endpoint, queue, dead_letters=True) as q:
                call = q._link.call

                async def cut(service: str, operation: str, **rest: Any) -> dict[str, Any]:
                    if operation == "delete_message_batch" and failures:
                        raise failures.pop()
                    return await call(service, operation, **rest)

                monkeypatch.setattr(q._link, "call", cut)
                await q.publish("k", {"n": 0})
                async with q.consume() as stream:
                    await (await anext(stream)).reject("test")
                    await stream.flush()
                assert len(await q.dead_letters()) == 1

        run(main())
        assert not failures

    def test_a_release_is_not_overtaken_by_an_extension(
        self, server: SqsServer, queue: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.create_queue(queue)

        async def main() -> None:
            async with backend(server.endpoint, queue) as q:
                await q.publish("k", {"n": 0})
                receiver = q._receiver(None, KeyFilter())
                await receiver.open()
                (delivery,) = await receiver.receive(1, 5)
                call = q._link.call

                async def slow(service: str, operation: str, **rest: Any) -> dict[str, Any]:
                    if rest["Entries"][0].get("VisibilityTimeout") == 30:
                        await asyncio.sleep(0.2)
                    return await call(service, operation, **rest)

                monkeypatch.setattr(q._link, "call", slow)
                extending = asyncio.create_task(receiver.extend([delivery], 30))
                await asyncio.sleep(0)
                assert not await receiver.settle([Settlement(delivery, Outcome.RELEASE)])
                assert await extending == []
                assert await receiver.extend([delivery], 30) == []
                await receiver.aclose()
            async with backend(server.endpoint, queue) as q, q.consume() as stream:
                assert len(await stream.take(1, timeout=5)) == 1

        run(main())

    def test_a_fifo_queue_has_dead_letters_of_one_key(self, server: SqsServer, queue: str) -> None:
        name = f"{queue}.fifo"
        server.create_queue(name)

        async def main() -> None:
            async with backend(server.endpoint, name, dead_letters=True) as q:
                await q.publish_many([{"n": n} for n in range(25)], key="k")
                async with q.consume() as stream:
                    for _ in range(25):
                        await (await anext(stream)).reject("test")
                letters = await q.dead_letters()
                assert sorted(letter["n"] for letter in letters) == [*range(25)]
                assert await q.replay() == 25

        run(main())


class TestConsumer:
    @pytest.mark.parametrize("topic", [False, True])
    def test_a_dead_letter_key_that_its_group_receives_is_refused(
        self, server: SqsServer, queue: str, topic: bool
    ) -> None:
        server.create_queue(queue, dead_letters=False)
        arn = server.create_topic(queue, [queue]) if topic else None

        async def main() -> None:
            async with backend(server.endpoint, queue, topic=arn) as q:
                consumer = AsyncLoopConsumer(q, dead_letter_key="orders.dead")
                with pytest.raises(ConfigurationError, match="received by this consumer's own"):
                    await consumer.run(print)

        run(main())

    def test_releases_do_not_use_up_attempts(self, server: SqsServer, queue: str) -> None:
        server.create_queue(queue, dead_letters=False)
        once = RetryPolicy(max_attempts=1)

        async def interrupt(q: SqsBackend) -> None:
            started = asyncio.Event()

            async def handle(message: Message) -> None:
                started.set()
                await asyncio.Event().wait()

            consumer = AsyncLoopConsumer(q, retry=once, drain_timeout=0)
            running = asyncio.create_task(consumer.run(handle))
            await started.wait()
            await consumer.shutdown()
            await running

        async def main() -> None:
            handled: asyncio.Queue[Message] = asyncio.Queue()
            async with backend(server.endpoint, queue) as q:
                await q.publish("k", {"n": 1})
                for _ in range(3):
                    await interrupt(q)
                consumer = AsyncLoopConsumer(q, retry=once)
                running = asyncio.create_task(consumer.run(handled.put))
                assert await handled.get() == {"n": 1}
                await consumer.shutdown()
                await running
                assert (consumer.processed, consumer.dead) == (1, 0)

        run(main())


class TestTopic:
    def test_a_queue_must_be_subscribed_and_raw(self, server: SqsServer, queue: str) -> None:
        topic = server.create_topic(queue)
        server.create_queue(f"{queue}-a")
        arn = f"arn:aws:sqs:{REGION}:123456789012:{queue}-a"

        async def main() -> None:
            async with backend(
                server.endpoint, None, topic=topic, group_queue=f"{queue}-{{group}}"
            ) as q:
                with pytest.raises(ConfigurationError, match="does not exist"):
                    await anext(q.consume(group="a"))
                server._sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
                with pytest.raises(ConfigurationError, match="no raw message delivery"):
                    await anext(q.consume(group="a"))
                with pytest.raises(ConfigurationError, match=f"queue {queue}-b"):
                    await anext(q.consume(group="b"))

        run(main())

    def test_queues_may_be_given_by_their_arn(self, server: SqsServer, queue: str) -> None:
        names = [f"{queue}-main", f"{queue}-a"]
        for name in names:
            server.create_queue(name)
        topic = server.create_topic(queue, names)
        arn = f"arn:aws:sqs:{REGION}:123456789012:{queue}"

        async def main() -> None:
            async with backend(
                server.endpoint, f"{arn}-main", topic=topic, group_queue=f"{arn}-{{group}}"
            ) as q:
                assert {*await q.groups()} == {None, "a"}
                await q.publish("k", {"n": 0})
                for group in (None, "a"):
                    async with q.consume(group=group) as stream:
                        assert await stream.take(1, timeout=5) == [{"n": 0}]

        run(main())

    def test_what_nobody_would_receive_is_told_exactly(self, server: SqsServer, queue: str) -> None:
        topic = server.create_topic(queue)

        async def main() -> None:
            async with backend(server.endpoint, "x", topic=topic) as q:
                with pytest.raises(PublishError, match="no queue is subscribed") as caught:
                    await q.publish_many([{"n": 0}, {"n": 1}], key="k")
                assert [*caught.value.failed] == [0, 1]
                assert not caught.value.published

        run(main())

    def test_a_fifo_topic_keeps_order_for_each_group(self, server: SqsServer, queue: str) -> None:
        names = [f"{queue}-{group}.fifo" for group in "ab"]
        for name in names:
            server.create_queue(name)
        topic = server.create_topic(f"{queue}.fifo", names)

        async def main() -> None:
            async with backend(
                server.endpoint, None, topic=topic, group_queue=f"{queue}-{{group}}.fifo"
            ) as q:
                assert q.capabilities.ordering == "key"
                await q.publish_many([{"n": n} for n in range(15)], key="k")
                ids = []
                for group in "ab":
                    async with q.consume(group=group) as stream:
                        taken = [await anext(stream) for _ in range(15)]
                    assert [message["n"] for message in taken] == [*range(15)]
                    ids.append([message.id for message in taken])
                assert ids[0] == ids[1]

        run(main())

    def test_a_deleted_group_takes_its_own_dead_letters_only(
        self, server: SqsServer, queue: str
    ) -> None:
        names = [f"{queue}-{group}" for group in "ab"]
        for name in names:
            server.create_queue(name)
        topic = server.create_topic(queue, names)

        async def main() -> None:
            async with backend(
                server.endpoint, None, topic=topic, group_queue=f"{queue}-{{group}}"
            ) as q:
                assert sorted(map(str, await q.groups())) == ["a", "b"]
                await q.delete_group("a")
                assert await q.groups() == ["b"]
                with pytest.raises(ConfigurationError, match="-a"):
                    await q.delete_group("a")
                assert Raw(server, f"{queue}-b-dead").url
                await q.publish("k", {})
                await q.delete_group("b")
                with pytest.raises(PublishError, match="no queue is subscribed"):
                    await q.publish("k", {})

        run(main())
        with pytest.raises(ClientError, match="NonExistentQueue"):
            Raw(server, f"{queue}-a-dead")


class TestSetup:
    def test_the_server_answers_strict_clients(self, server: SqsServer) -> None:
        # In Python's development mode aiohttp refuses an answer with two of them.
        connection = http.client.HTTPConnection(server.endpoint.removeprefix("http://"))
        about = {
            "X-Amz-Target": "AmazonSQS.ListQueues",
            "Content-Type": "application/x-amz-json-1.0",
        }
        connection.request("POST", "/", "{}", about)
        answer = connection.getresponse()
        assert answer.status == 200
        assert len(answer.headers.get_all("Server", [])) == 1
        connection.close()

    def test_no_credentials_at_all(self, server: SqsServer) -> None:
        async def main() -> None:
            async with SqsBackend("q", endpoint=server.endpoint, access=Access(REGION)) as q:
                with pytest.raises(ConfigurationError, match="AWS_ACCESS_KEY_ID"):
                    await q.publish("k", {})

        run(main())

    @pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SQS"])
    def test_the_endpoint_of_one_backend(
        self, server: SqsServer, raw: Raw, queue: str, variable: str
    ) -> None:
        given = {**server.env, "ABE_SQS_ENDPOINT": "", variable: server.endpoint}

        async def main() -> None:
            async with abe.aconnect("sqs", env={**given, "ABE_SQS_QUEUE": queue}) as q:
                await q.publish("k", {"n": 1})

        run(main())
        assert len(raw.receive()) == 1

    @pytest.mark.parametrize("place", ["config", "credentials"])
    def test_configuration_files_of_one_backend(
        self, server: SqsServer, raw: Raw, queue: str, place: str, tmp_path: Path
    ) -> None:
        access = "aws_access_key_id = testing\naws_secret_access_key = testing\n"
        (tmp_path / "file").write_text(f"[{'profile ' * (place == 'config')}mine]\n{access}")
        name = {"config": "AWS_CONFIG_FILE", "credentials": "AWS_SHARED_CREDENTIALS_FILE"}[place]
        given = {
            "ABE_SQS_QUEUE": queue,
            "ABE_SQS_ENDPOINT": server.endpoint,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_PROFILE": "mine",
            name: str(tmp_path / "file"),
        }

        async def main() -> None:
            async with abe.aconnect("sqs", env=given) as q:
                await q.publish("k", {"n": 1})

        run(main())
        assert len(raw.receive()) == 1

    def test_a_variable_that_one_backend_cannot_have_is_refused(self, server: SqsServer) -> None:
        given = {**server.env, "ABE_SQS_QUEUE": "q", "AWS_ROLE_ARN": "arn:aws:iam::1:role/x"}

        async def main() -> None:
            async with abe.aconnect("sqs", env=given) as q:
                with pytest.raises(ConfigurationError, match="AWS_ROLE_ARN cannot be given"):
                    await q.publish("k", {})

        run(main())

    def test_no_region(self, server: SqsServer) -> None:
        async def main() -> None:
            async with SqsBackend("q", endpoint=server.endpoint) as q:
                with pytest.raises(ConfigurationError, match="ABE_SQS_REGION"):
                    await q.publish("k", {})

        run(main())

    @pytest.mark.parametrize("place", ["{name}", "{url}/1/{name}", "arn:aws:sqs:x:1:{name}"])
    def test_a_missing_queue_is_named(self, server: SqsServer, place: str) -> None:
        async def main() -> None:
            queue = place.format(name="no-such-queue", url=server.endpoint)
            async with backend(server.endpoint, queue) as q:
                for call in (q.publish("k", {}), anext(q.consume()), q.ping()):
                    with pytest.raises(ConfigurationError, match=r"queue .*no-such-queue: "):
                        await call

        run(main())

    def test_a_queue_that_is_deleted_ends_its_streams(self, server: SqsServer, raw: Raw) -> None:
        async def main() -> None:
            async with backend(server.endpoint, raw.url) as q, q.consume() as stream:
                waiting = asyncio.ensure_future(anext(stream))
                raw.client.delete_queue(QueueUrl=raw.url)
                with pytest.raises(ConfigurationError, match="create it first"):
                    await waiting

        run(main())

    def test_dead_letters_need_a_redrive_policy(self, server: SqsServer, queue: str) -> None:
        server.create_queue(queue, dead_letters=False)

        async def main() -> None:
            async with backend(server.endpoint, queue, dead_letters=True) as q:
                with pytest.raises(ConfigurationError, match="redrive policy"):
                    await anext(q.consume())

        run(main())
