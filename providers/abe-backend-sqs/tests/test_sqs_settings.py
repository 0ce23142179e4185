"""Environment variables, names of queues, and what must never be seen of credentials."""

from __future__ import annotations

import traceback
from typing import Any

import aiohttp
import pytest
from botocore import exceptions as driver

from abe.backends.message_queue.base import KeyFilter, Outgoing
from abe.errors import ConfigurationError, ConnectionLostError, UnsupportedError
from abe.testing import GROUPS
from abe_backend_sqs.backend import SqsBackend
from abe_backend_sqs.codec import attributes_of, message_of, prepare, size_of
from abe_backend_sqs.failures import Refused, Translator, UnreachedError
from abe_backend_sqs.link import Access
from abe_backend_sqs.resolver import region_in

SENTINEL = "s3cr3t/pä$$:word"
QUOTED = "s3cr3t%2Fp%C3%A4%24%24%3Aword"
TOPIC = "arn:aws:sns:eu-west-1:123456789012:orders"


def test_a_queue_must_be_named() -> None:
    with pytest.raises(ConfigurationError, match="ABE_SQS_QUEUE is not set"):
        SqsBackend.from_env()


def test_every_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "QUEUE": "shop",
        "TOPIC": TOPIC,
        "GROUPS": '{"billing": "shop-billing"}',
        "GROUP_QUEUE": "shop-{group}-q",
        "ENDPOINT": "http://localhost:4566",
        "REGION": "us-east-2",
        "DEAD_LETTERS": "1",
        "LEASE": "12.5",
        "WAIT": "20",
        "TIMEOUT": "2",
        "PUBLISH_TIMEOUT": "3",
    }.items():
        monkeypatch.setenv(f"ABE_SQS_{name}", value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SENTINEL)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    backend = SqsBackend.from_env()
    assert repr(backend) == f"SqsBackend({TOPIC!r}, endpoint='http://localhost:4566')"
    assert backend.capabilities.lease == 13.0
    assert backend.capabilities.dead_letters
    assert backend._wait == 20
    assert backend._publish_timeout == 3.0
    assert backend._link._timeout == 2.0
    assert backend._link._access == Access("us-east-2", None, "AKIA", SENTINEL, "token")
    places = backend._resolver
    assert [places.configured(g) for g in (None, "billing", "a.b")] == [
        "shop",
        "shop-billing",
        "shop-a_2Eb-q",
    ]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TOPIC", "orders"),
        ("GROUPS", "billing=shop"),
        ("GROUPS", '{"billing": 1}'),
        ("GROUPS", '["billing"]'),
        ("GROUPS", '{"billing": "shop"}'),
        ("GROUPS", '{"a b": "shop"}'),
        ("GROUP_QUEUE", "shop-{group}"),
        ("LEASE", "soon"),
        ("LEASE", "0"),
        ("LEASE", "3600"),
        ("DEAD_LETTERS", "maybe"),
        ("QUEUE", f"https://user:{QUOTED}@sqs.eu-west-1.amazonaws.com/1/orders"),
        ("WAIT", "21"),
        ("WAIT", "0"),
        ("ENDPOINT", "localhost:4566"),
        ("ENDPOINT", "http://localhost:port"),
        ("ENDPOINT", f"http://user:{QUOTED}@localhost:4566"),
        ("ENDPOINT", f"http://user:{SENTINEL}@localhost:4566"),
    ],
)
def test_malformed_variables_are_named(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABE_SQS_QUEUE", "orders")
    monkeypatch.setenv(f"ABE_SQS_{variable}", value)
    with pytest.raises(ConfigurationError, match=f"ABE_SQS_{variable}") as caught:
        SqsBackend.from_env()
    text = "".join(traceback.format_exception(caught.value))
    assert SENTINEL not in text
    assert QUOTED not in text


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"queue": "a.fifo", "topic": TOPIC}, "all or none"),
        ({"topic": TOPIC, "groups": {"g": "a.fifo"}, "queue": "a"}, "all or none"),
        ({"topic": f"{TOPIC}.fifo", "group_queue": "a-{group}"}, "all or none"),
        ({"topic": TOPIC, "group_queue": "a"}, "must contain {group}"),
        ({"topic": TOPIC, "group_queue": "a" * 47 + "{group}"}, "leave 34 of the 80"),
    ],
)
def test_what_does_not_fit_together(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        SqsBackend(**options)


def test_capabilities_follow_the_settings() -> None:
    queue = SqsBackend("a").capabilities
    assert (queue.groups, queue.backlog, queue.ordering, queue.delay) == (False, True, "none", 900)
    assert (queue.reject, queue.dead_letters, queue.admin) == (False, False, True)
    fifo = SqsBackend("a.fifo").capabilities
    assert (fifo.ordering, fifo.delay, fifo.admin) == ("key", 0, False)
    topic = SqsBackend(topic=TOPIC, group_queue="a-{group}").capabilities
    assert (topic.groups, topic.backlog, topic.delay) == (True, False, 0)


@pytest.mark.parametrize(
    ("place", "region"),
    [
        ("https://sqs.eu-central-1.amazonaws.com/123456789012/q", "eu-central-1"),
        ("https://sqs.cn-north-1.amazonaws.com.cn/123456789012/q", "cn-north-1"),
        ("https://us-east-2.queue.amazonaws.com/123456789012/q", "us-east-2"),
        (TOPIC, "eu-west-1"),
        ("http://localhost:4566/000000000000/q", None),
        ("orders", None),
    ],
)
def test_the_region_may_be_in_the_place(place: str, region: str | None) -> None:
    assert region_in(place) == region


class TestGroups:
    def test_each_has_a_queue_of_its_own(self) -> None:
        places = SqsBackend("main", topic=TOPIC, group_queue="shop-{group}")._resolver
        names = [places.configured(group) for group in GROUPS]
        assert len({*names}) == len(GROUPS)
        assert all(len(name) <= 80 for name in names)

    def test_a_group_without_a_queue_says_what_to_set(self) -> None:
        backend = SqsBackend(topic=TOPIC, groups={"billing": "shop-billing"})
        with pytest.raises(ConfigurationError, match=r"ABE_SQS_GROUPS.*ABE_SQS_GROUP_QUEUE"):
            backend._receiver("reports", KeyFilter())
        with pytest.raises(ConfigurationError, match="ABE_SQS_QUEUE"):
            backend._receiver(None, KeyFilter())

    def test_without_a_topic_there_are_none(self) -> None:
        with pytest.raises(UnsupportedError, match="groups"):
            SqsBackend("a").consume(group="billing")


class TestCodec:
    HEADERS = {f"h{n}": str(n) for n in range(20)} | {
        "abe-own": "reserved",
        "AWS.x": "reserved",
        "a..b": "dots",
        "größe": "ß",
        "empty": "",
        "control": "\x00\uffff",
        "x" * 257: "long",
    }

    def test_headers_fit_into_ten_attributes(self) -> None:
        attributes = attributes_of("1-1", "orders", self.HEADERS)
        assert len(attributes) <= 10
        assert {"h0", "h6", "abe-id", "abe-key", "abe-headers"} <= {*attributes}
        raw = {"Body": "{}", "MessageId": "m", "MessageAttributes": attributes}
        assert message_of(raw, "q").headers == self.HEADERS

    def test_attributes_count(self) -> None:
        assert size_of("é", {"name": {"DataType": "String", "StringValue": "ü"}}) == 2 + 4 + 6 + 2

    def test_nothing_is_sent_that_sqs_forbids(self) -> None:
        item = Outgoing("a\uffff%41.\ufffe", '{"a":"\ufffe\uffff é"}', {}, 0.2)
        prepared = prepare(item)
        sent = prepared.body + prepared.attributes["abe-key"]["StringValue"]
        assert not {"\ufffe", "\uffff"} & {*sent}
        raw = {
            "Body": prepared.body,
            "MessageId": "m",
            "MessageAttributes": prepared.attributes,
        }
        message = message_of(raw, "q")
        assert message == {"a": "\ufffe\uffff é"}
        assert message.key == item.key
        assert prepared.delay == 1

    def test_every_publish_has_an_id_of_its_own(self) -> None:
        item = Outgoing("orders", "{}", {}, 0.0)
        assert prepare(item).id != prepare(item).id

    @pytest.mark.parametrize("packed", ["no JSON", "[1]", '{"a": 1}'])
    def test_what_looks_like_ours_and_is_not_stays_as_it_is(self, packed: str) -> None:
        attributes = {"abe-headers": {"DataType": "String", "StringValue": packed}}
        raw = {"Body": "{}", "MessageId": "m", "MessageAttributes": attributes}
        assert message_of(raw, "q").headers == {"abe-headers": packed}


def _answer(code: str, status: int = 400, message: str = "") -> driver.ClientError:
    about = {"Error": {"Code": code, "Message": message or f"about {SENTINEL}"}}
    return driver.ClientError({**about, "ResponseMetadata": {"HTTPStatusCode": status}}, "Send")


class TestSecrets:
    def test_every_form_is_hidden(self) -> None:
        secrets = Translator()
        secrets.add(SENTINEL, None, "")
        for form in (SENTINEL, QUOTED, repr(SENTINEL.encode())[2:-1]):
            assert secrets.hide(f"a {form} b") == "a *** b"

    def test_a_token_that_is_not_known_is_hidden(self) -> None:
        text = "should have been 'host:sqs\nx-amz-security-token:IQoJb3/x==\n'"
        assert Translator().hide(text) == "should have been 'host:sqs\nx-amz-security-token:***\n'"

    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (_answer("InvalidClientTokenId", 403), ConfigurationError),
            (_answer("AccessDeniedException"), ConfigurationError),
            (_answer("KMS.AccessDeniedException"), ConfigurationError),
            (_answer("AWS.SimpleQueueService.NonExistentQueue"), ConfigurationError),
            (_answer("RequestThrottled"), UnreachedError),
            (_answer("Whatever", 503), ConnectionLostError),
            (_answer("Whatever", 429), UnreachedError),
            (_answer("InternalFailure"), ConnectionLostError),
            (_answer("InvalidMessageContents"), Refused),
            (driver.NoCredentialsError(), ConfigurationError),
            (driver.NoRegionError(), ConfigurationError),
            (driver.ParamValidationError(report=SENTINEL), Refused),
            (driver.EndpointConnectionError(endpoint_url=f"http://{SENTINEL}"), UnreachedError),
            (driver.ReadTimeoutError(endpoint_url=f"http://{QUOTED}"), ConnectionLostError),
            (driver.HTTPClientError(error=SENTINEL), ConnectionLostError),
            (aiohttp.ServerDisconnectedError(SENTINEL), ConnectionLostError),
            (OSError(1, f"no way to {SENTINEL}"), ConnectionLostError),
            (TimeoutError(SENTINEL), ConnectionLostError),
        ],
    )
    def test_driver_exceptions_are_translated_without_secrets(
        self, error: Exception, kind: type[Exception]
    ) -> None:
        try:
            raise ValueError(f"deep inside: {SENTINEL}")
        except ValueError as deeper:
            error.__context__ = deeper
        secrets = Translator()
        secrets.add(SENTINEL)
        translated = secrets.translate(error, "SQS at AWS")
        assert type(translated) is kind
        translated.__cause__ = error
        text = (
            "".join(traceback.format_exception(translated)) + repr(translated) + repr(vars(error))
        )
        assert SENTINEL not in text
        assert QUOTED not in text

    def test_no_repr_tells(self) -> None:
        access = Access("eu-west-1", None, "AKIA", SENTINEL, SENTINEL)
        backend = SqsBackend("orders", access=access)
        things: list[Any] = [backend, access, backend._link, backend._resolver]
        for thing in [*things, backend._receiver(None, KeyFilter()), backend.consume()]:
            assert SENTINEL not in repr(thing)
            assert SENTINEL not in str(thing)
