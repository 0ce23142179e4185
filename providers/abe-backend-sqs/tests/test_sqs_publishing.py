"""Publishing, and AWS when it fails as moto cannot: a stub at the level of HTTP answers."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

import abe
from abe.errors import AbeError, ConfigurationError, ConnectionLostError, PublishError
from abe_backend_sqs.backend import SqsBackend
from abe_backend_sqs.link import Access
from abe_backend_sqs.testing import REGION

SENTINEL = "s3cr3t/of+the==test"
ACCESS = Access(REGION, None, "AKIATEST", SENTINEL)
Parameters = dict[str, Any]
Answer = tuple[int, Parameters] | None


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 40))


def backend(endpoint: str, queue: str | None = "orders", **options: Any) -> SqsBackend:
    return SqsBackend(queue, endpoint=endpoint, access=ACCESS, **options)


@asynccontextmanager
async def aws(
    answer: Callable[[str, Parameters], Answer],
    port: int = 0,
    *,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[str]:
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
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls)
    await site.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{runner.addresses[0][1]}"
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


def self_signed(place: Path) -> ssl.SSLContext:
    """Return the context of a server that no client trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now, address = datetime.now(UTC), ip_address("127.0.0.1")
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(address)]), critical=False)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(Encoding.PEM)
    pem += key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (place / "server.pem").write_bytes(pem)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(place / "server.pem")
    return context


class TestPublishing:
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
                with pytest.raises(
                    PublishError, match=r"published 9 of 23; item 3 failed: Odd: no"
                ) as caught:
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
                assert list(caught.value.published) == [0, 2, 3]
                assert caught.value.retryable

        run(main())
        assert stub.bodies == [[0, 1, 2, 3, 4]]

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

    def test_a_certificate_that_cannot_be_verified_is_refused_at_once(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with (
                aws(Aws(), tls=self_signed(tmp_path)) as endpoint,
                backend(endpoint) as q,
            ):
                for call in (q.ping(), q.publish("k", {}), anext(q.consume()), q.stats()):
                    with pytest.raises(ConfigurationError, match="AWS_CA_BUNDLE"):
                        await asyncio.wait_for(call, 5)

        run(main())

    def test_the_certificate_may_be_one_of_our_own(self, tmp_path: Path) -> None:
        stub = Aws()

        async def main() -> None:
            async with aws(stub, tls=self_signed(tmp_path)) as endpoint:
                settings = {
                    "ABE_SQS_QUEUE": "orders",
                    "ABE_SQS_ENDPOINT": endpoint,
                    "AWS_DEFAULT_REGION": REGION,
                    "AWS_ACCESS_KEY_ID": "AKIATEST",
                    "AWS_SECRET_ACCESS_KEY": SENTINEL,
                    "AWS_CA_BUNDLE": str(tmp_path / "server.pem"),
                }
                async with abe.aconnect("sqs", env=settings) as q:
                    await q.publish("k", {"n": 0})

        run(main())
        assert stub.bodies == [[0]]

    def test_tls_to_a_port_that_speaks_none(self) -> None:
        async def main() -> None:
            async with (
                aws(Aws()) as endpoint,
                backend(endpoint.replace("http://", "https://")) as q,
            ):
                for call in (q.ping(), q.publish("k", {}), anext(q.consume())):
                    with pytest.raises(ConfigurationError, match="begin with http://"):
                        await asyncio.wait_for(call, 5)

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

    def test_closing_ends_waiting_for_a_broker(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        stub = Aws()

        async def main() -> None:
            q = backend(f"http://127.0.0.1:{port}", publish_timeout=60.0)
            publishing = asyncio.create_task(q.publish("k", {"n": 0}))
            await asyncio.sleep(0.1)
            await q.aclose()
            async with aws(stub, port):
                with pytest.raises(ConnectionLostError, match=r"closed|cannot be reached"):
                    await asyncio.wait_for(publishing, 10)

        run(main())
        assert not stub.sent

    def test_closing_waits_for_calls_on_their_way(self) -> None:
        """Or what they open would be left behind, which is a warning and so an error."""

        async def main() -> None:
            async with aws(Aws()) as endpoint:
                q = backend(endpoint)
                publishing = asyncio.create_task(q.publish("k", {"n": 0}))
                pinging = asyncio.create_task(q.ping())
                await asyncio.sleep(0)
                await q.aclose()
                assert q._link.closed
                done, late = await asyncio.wait({publishing, pinging}, timeout=10)
                assert not late
                assert all(isinstance(it.exception(), ConnectionLostError | None) for it in done)

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
