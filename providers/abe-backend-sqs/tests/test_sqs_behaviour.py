"""What the contract suite cannot know of SQS and SNS.

``server`` is moto. Where moto cannot fail as AWS does, `Aws` answers: a stub at the level of HTTP.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import botocore.session
import pytest
from aiohttp import web
from botocore.exceptions import ClientError

from abe.errors import AbeError, ConfigurationError, ConnectionLostError, PayloadError, PublishError
from abe_backend_sqs.backend import SqsBackend
from abe_backend_sqs.link import Access
from abe_backend_sqs.testing import REGION, SqsServer

SENTINEL = "s3cr3t/of+the==test"
ACCESS = Access(REGION, None, "AKIATEST", SENTINEL)
Parameters = dict[str, Any]
Answer = tuple[int, Parameters] | None


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 40))


def backend(endpoint: str, queue: str | None = "orders", **options: Any) -> SqsBackend:
    return SqsBackend(queue, endpoint=endpoint, access=ACCESS, **options)


@pytest.fixture
def queue(request: pytest.FixtureRequest) -> str:
    """A name of the test's own."""
    return "".join(c if c.isalnum() else "-" for c in request.node.name)[-60:]


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


@pytest.fixture
def raw(server: SqsServer, queue: str) -> Raw:
    """A queue with dead letters, seen from outside."""
    server.create_queue(queue)
    return Raw(server, queue)


@asynccontextmanager
async def aws(answer: Callable[[str, Parameters], Answer], port: int = 0) -> AsyncIterator[str]:
    """Serve what ``answer`` returns for an operation and its parameters; None breaks off."""

    async def handle(request: web.Request) -> web.Response:
        operation = request.headers["X-Amz-Target"].rpartition(".")[2]
        found = answer(operation, await request.json())
        if found is None:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return web.json_response(
            found[1], status=found[0], content_type="application/x-amz-json-1.0"
        )

    app = web.Application()
    app.router.add_post("/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


class Aws:
    """A stub with one queue, whose answers to ``SendMessageBatch`` a test decides on."""

    def __init__(
        self, *answers: Callable[[list[Parameters]], Answer], limit: int = 262_144
    ) -> None:
        self.sent: list[list[Parameters]] = []
        self._answers = list(answers)
        self._limit = limit

    def __call__(self, operation: str, parameters: Parameters) -> Answer:
        if operation == "GetQueueUrl":
            return 200, {"QueueUrl": f"https://sqs.test/1/{parameters['QueueName']}"}
        if operation == "GetQueueAttributes":
            arn = "arn:aws:sqs:eu-central-1:123456789012:orders"
            return 200, {"Attributes": {"QueueArn": arn, "MaximumMessageSize": str(self._limit)}}
        assert operation == "SendMessageBatch"
        self.sent.append(parameters["Entries"])
        return (self._answers.pop(0) if self._answers else accept)(parameters["Entries"])

    @property
    def bodies(self) -> list[list[int]]:
        """The number in each message of each call."""
        return [[json.loads(entry["MessageBody"])["n"] for entry in call] for call in self.sent]


def accept(entries: list[Parameters]) -> Answer:
    return 200, {"Successful": [{"Id": entry["Id"]} for entry in entries], "Failed": []}


def refuse(*numbers: int, final: bool) -> Callable[[list[Parameters]], Answer]:
    """Return an answer that refuses the messages with these numbers."""

    def answer(entries: list[Parameters]) -> Answer:
        bad = [e for e in entries if json.loads(e["MessageBody"])["n"] in numbers]
        failed = [
            {"Id": e["Id"], "SenderFault": final, "Code": "Odd", "Message": "no"} for e in bad
        ]
        good = [{"Id": e["Id"]} for e in entries if e not in bad]
        return 200, {"Successful": good, "Failed": failed}

    return answer


def break_off(entries: list[Parameters]) -> Answer:
    return None


def fault(code: str, status: int) -> Callable[..., Answer]:
    return lambda *_: (status, {"__type": f"com.amazonaws.sqs#{code}", "message": "refused"})


class TestPublishing:
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

    def test_a_repeated_sending_keeps_its_id(self) -> None:
        stub = Aws(break_off, fault("InternalFailure", 500), fault("RequestThrottled", 400))

        async def main() -> None:
            async with aws(stub) as endpoint, backend(endpoint, "orders.fifo") as q:
                await q.publish("k", {"n": 0})
                await q.publish("k", {"n": 1})

        run(main())
        ids = [entry["MessageDeduplicationId"] for (entry,) in stub.sent]
        assert len(ids) == 5
        assert len({*ids[:4]}) == 1
        assert ids[4] != ids[3]
        assert {entry["MessageGroupId"] for (entry,) in stub.sent} == {"k"}

    def test_only_what_failed_is_sent_again(self) -> None:
        stub = Aws(refuse(2, 5, final=False), refuse(5, final=False))

        async def main() -> None:
            async with aws(stub) as endpoint, backend(endpoint) as q:
                assert await q.publish_many([{"n": n} for n in range(8)], key="k") == 8

        run(main())
        assert stub.bodies == [[*range(8)], [2, 5], [5]]

    def test_a_fault_of_the_sender_is_final_and_told_exactly(self) -> None:
        stub = Aws(refuse(3, final=True))

        async def main() -> None:
            async with aws(stub) as endpoint, backend(endpoint, "orders.fifo") as q:
                with pytest.raises(PublishError, match=r"14 of 23 messages .*Odd: no") as caught:
                    await q.publish_many([{"n": n} for n in range(23)], key="k")
                error = caught.value
                assert list(error.published) == [0, 1, 2, *range(4, 10)]
                assert sorted(error.failed) == [3, *range(10, 23)]
                assert not error.retryable
                assert error.failed[3] == "Odd: no"
                assert "not sent" in error.failed[10]

        run(main())
        assert len(stub.sent) == 1

    def test_on_fifo_nothing_overtakes_its_key(self) -> None:
        stub = Aws(refuse(1, 4, final=False))
        items = [("a" if n < 3 else "b", {"n": n}) for n in range(5)]

        async def main() -> None:
            async with aws(stub) as endpoint, backend(endpoint, "orders.fifo") as q:
                with pytest.raises(PublishError, match="later message of its key") as caught:
                    await q.publish_many(items)
                assert list(caught.value.published) == [0, 2, 3, 4]
                assert caught.value.retryable

        run(main())
        assert stub.bodies == [[0, 1, 2, 3, 4], [4]]  # 4 was the last of its key

    def test_a_refused_batch_does_not_fail_its_innocent_items(self) -> None:
        def only_without_1(entries: list[Parameters]) -> Answer:
            if any(json.loads(entry["MessageBody"])["n"] == 1 for entry in entries):
                return fault("InvalidMessageContents", 400)()
            return accept(entries)

        stub = Aws(*[only_without_1] * 4)

        async def main() -> None:
            async with aws(stub) as endpoint, backend(endpoint) as q:
                calls = [q.publish("k", {"n": n}) for n in range(3)]
                results = await asyncio.gather(*calls, return_exceptions=True)
                assert results[0] is None
                assert results[2] is None
                assert isinstance(results[1], PublishError)
                assert not results[1].retryable

        run(main())

    def test_concurrent_publishes_share_calls(self) -> None:
        stub = Aws()

        async def main() -> None:
            async with aws(stub) as endpoint, backend(endpoint) as q:
                await q.publish("k", {"n": 0})
                await asyncio.gather(*(q.publish("k", {"n": n}) for n in range(1, 101)))

        run(main())
        assert sorted(n for call in stub.bodies for n in call) == [*range(101)]
        assert len(stub.sent) == 1 + 10

    def test_batches_stay_below_what_a_batch_may_weigh(self) -> None:
        stub = Aws(limit=1 << 20)

        async def main() -> None:
            async with aws(stub) as endpoint, backend(endpoint) as q:
                sizes = (100_000, 100_000, 100_000, 400_000, 10, 10)
                items = [{"n": n, "x": "x" * size} for n, size in enumerate(sizes)]
                await q.publish_many(items, key="k")

        run(main())
        assert sorted(stub.bodies) == [[0, 1], [2], [3], [4, 5]]

    def test_a_cancelled_publish_leaves_the_others_alone(self) -> None:
        stub = Aws()

        async def main() -> None:
            async with aws(stub) as endpoint, backend(endpoint) as q:
                await q.publish("k", {"n": 0})
                tasks = [asyncio.create_task(q.publish("k", {"n": n})) for n in range(1, 4)]
                await asyncio.sleep(0)
                tasks[1].cancel()
                await asyncio.wait(tasks)
                assert tasks[1].cancelled()
                assert not tasks[0].exception()
                assert not tasks[2].exception()

        run(main())
        assert {1, 3} <= {n for call in stub.bodies for n in call}


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
                assert await q.dead_letters() == []

        with caplog.at_level(logging.WARNING, logger="abe_backend_sqs"):
            run(main())
        assert "goes to the dead letters" in caplog.text
        assert "is not shown" in caplog.text
        (dead,) = Raw(server, f"{queue}-dead").receive()
        assert dead["Body"] == "<xml/>"
        assert "is not JSON" in dead["MessageAttributes"]["abe-headers"]["StringValue"]

    def test_a_poll_that_nobody_waits_for_gives_back_what_it_brings(self, queue: str) -> None:
        with SqsServer() as server:
            server.create_queue(queue)

            async def main() -> None:
                first = backend(server.endpoint, queue, wait=20)
                async with first:
                    async with first.consume() as stream:
                        assert await stream.take(1, timeout=0.3) == []
                        started = time.monotonic()
                    assert time.monotonic() - started < 1.0, "closing waited for its poll"
                    assert first._polls[Raw(server, queue).url]._left
                    await first.publish("k", {"n": 0})
                    async with backend(server.endpoint, queue) as q, q.consume() as stream:
                        (message,) = await stream.take(1, timeout=10)
                        assert message.attempt == 2, "the poll that was left got it before"

            run(main())

    def test_the_next_receiver_takes_over_the_poll(self, queue: str) -> None:
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
        dead = Raw(server, f"{queue}-dead")
        dead.client.set_queue_attributes(
            QueueUrl=dead.url, Attributes={"MaximumMessageSize": "2048"}
        )

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

        run(main())
        assert Raw(server, f"{queue}-b-dead").url
        with pytest.raises(ClientError, match="NonExistentQueue"):
            Raw(server, f"{queue}-a-dead")


class TestBroker:
    def test_refused_credentials_raise_at_once_and_are_not_shown(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def answer(operation: str, parameters: Parameters) -> Answer:
            text = f"The canonical string should have been {SENTINEL}"
            return 403, {"__type": "com.amazonaws.sqs#SignatureDoesNotMatch", "message": text}

        async def main() -> None:
            async with aws(answer) as endpoint, backend(endpoint) as q:
                started = time.monotonic()
                for call in (q.ping(), q.publish("k", {}), anext(q.consume()), q.stats()):
                    with pytest.raises(ConfigurationError, match="credentials") as caught:
                        await call
                    assert SENTINEL not in "".join(traceback.format_exception(caught.value))
                assert time.monotonic() - started < 5

        with caplog.at_level(logging.DEBUG, logger="abe"):
            run(main())
        assert SENTINEL not in caplog.text

    def test_no_credentials_at_all(self, server: SqsServer) -> None:
        async def main() -> None:
            async with SqsBackend("q", endpoint=server.endpoint, access=Access(REGION)) as q:
                with pytest.raises(ConfigurationError, match="AWS_ACCESS_KEY_ID"):
                    await q.publish("k", {})

        run(main())

    def test_no_region(self, server: SqsServer) -> None:
        async def main() -> None:
            async with SqsBackend("q", endpoint=server.endpoint) as q:
                with pytest.raises(ConfigurationError, match="ABE_SQS_REGION"):
                    await q.publish("k", {})

        run(main())

    def test_a_missing_queue_is_named(self, server: SqsServer) -> None:
        async def main() -> None:
            async with backend(server.endpoint, "no-such-queue") as q:
                for call in (q.publish("k", {}), anext(q.consume()), q.ping()):
                    with pytest.raises(ConfigurationError, match="no-such-queue"):
                        await call

        run(main())

    def test_dead_letters_need_a_redrive_policy(self, server: SqsServer, queue: str) -> None:
        server.create_queue(queue, dead_letters=False)

        async def main() -> None:
            async with backend(server.endpoint, queue, dead_letters=True) as q:
                with pytest.raises(ConfigurationError, match="redrive policy"):
                    await anext(q.consume())

        run(main())

    def test_a_broker_that_comes_late(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        stub = Aws()

        async def main() -> None:
            async with backend(f"http://127.0.0.1:{port}") as q:
                publishing = asyncio.create_task(q.publish("k", {"n": 0}))
                await asyncio.sleep(0.2)
                assert not publishing.done()
                async with aws(stub, port):
                    await publishing

        run(main())
        assert stub.bodies == [[0]]

    def test_a_broker_that_does_not_come(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]

        async def main() -> None:
            async with backend(f"http://127.0.0.1:{port}", publish_timeout=0.3) as q:
                with pytest.raises(ConnectionLostError, match="cannot be reached"):
                    await q.publish("k", {"n": 0})

        run(main())

    def test_a_broker_too_busy_has_stored_nothing(self) -> None:
        stub = Aws(*[fault("RequestThrottled", 400)] * 50)

        async def main() -> None:
            async with aws(stub) as endpoint, backend(endpoint, publish_timeout=0.3) as q:
                with pytest.raises(ConnectionLostError, match="too busy"):
                    await q.publish("k", {"n": 0})

        run(main())
        assert len(stub.sent) > 1

    def test_closing_tries_nothing_again(self) -> None:
        async def main() -> None:
            sent = asyncio.Event()

            def tell(entries: list[Parameters]) -> Answer:
                sent.set()
                return break_off(entries)

            async with aws(Aws(*[tell] * 1000)) as endpoint:
                q = backend(endpoint)
                publishing = asyncio.create_task(q.publish("k", {"n": 0}))
                await sent.wait()
                started = time.monotonic()
                await q.aclose()
                assert time.monotonic() - started < 5
                with pytest.raises(PublishError, match="may or may not"):
                    await publishing

        run(main())

    def test_an_answer_that_never_comes(self) -> None:
        stub = Aws(*[break_off] * 50)

        async def main() -> None:
            async with aws(stub) as endpoint, backend(endpoint, publish_timeout=0.5) as q:
                with pytest.raises(PublishError, match="may or may not") as caught:
                    await q.publish("k", {"n": 0})
                assert caught.value.retryable
                assert isinstance(caught.value.__cause__, AbeError)

        run(main())
        assert len(stub.sent) > 1
