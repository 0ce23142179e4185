"""URLs, environment variables, and what must never be seen of them."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
import traceback
from typing import Any

import pytest
from redis import exceptions as driver

import abe
from abe.backends.message_queue.base import KeyFilter
from abe.errors import ConfigurationError, ConnectionLostError
from abe_backend_redis.backend import RedisBackend
from abe_backend_redis.failures import Translator, UnreachedError
from abe_backend_redis.server import Server
from abe_backend_redis.testing import RedisServer, broker

SENTINEL = "s3cr3t/pä$$:word"
QUOTED = "s3cr3t%2Fp%C3%A4%24%24%3Aword"


def test_the_defaults_need_no_variable() -> None:
    backend = RedisBackend.from_env()
    assert repr(backend) == "RedisBackend('localhost:6379/0', prefix='abe')"
    assert backend.capabilities.lease == 30.0


def test_every_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "URL": "rediss://example.com:7000/3",
        "USERNAME": "ada",
        "PASSWORD": SENTINEL,
        "PREFIX": "shop:eu",
        "LEASE": "12.5",
        "TIMEOUT": "2",
        "PUBLISH_TIMEOUT": "3",
        "MAX_BACKLOG": "1000",
        "RETAIN_LENGTH": "10",
        "RETAIN_AGE": "60",
        "DROP_UNSETTLED": "yes",
        "TLS_CA": "/ca.pem",
    }.items():
        monkeypatch.setenv(f"ABE_REDIS_{name}", value)
    backend = RedisBackend.from_env()
    assert repr(backend) == "RedisBackend('example.com:7000/3', prefix='shop:eu')"
    assert backend.capabilities.lease == 12.5
    assert backend._limits == (1000, 10, 60.0, True)
    options = backend._server._options
    assert options["username"] == "ada"
    assert options["password"] == SENTINEL
    assert options["ssl_ca_certs"] == "/ca.pem"


@pytest.mark.parametrize(
    ("url", "kind", "shown"),
    [
        ("redis://h", "plain", "h:6379/0"),
        ("rediss://u:p@h:1/2", "plain", "h:1/2"),
        ("unix:///run/redis.sock?db=1", "plain", "unix:///run/redis.sock"),
        ("redis+sentinel://a:1,b/mymaster/4", "sentinel", "a:1,b:26379/mymaster/4"),
        ("rediss+sentinel://u:p@a/mymaster", "sentinel", "a:26379/mymaster/0"),
        ("redis+cluster://u:p@a:1,b:2,c", "cluster", "a:1,b:2,c:6379/0"),
    ],
)
def test_urls(url: str, kind: str, shown: str) -> None:
    server = Server(url)
    assert server.kind == kind
    assert str(server) == shown


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://localhost",
        f"redis://:{QUOTED}@host:port",
        f"redis://:{QUOTED}@host/0?colour=red",
        f"redis://:{QUOTED}@host/0?ssl_ca_certs=/ca",
        f"rediss://:{QUOTED}@host/0?ssl_colour=red",
        f"redis://:{QUOTED}@host/orders",
        f"redis+sentinel://:{QUOTED}@host/mymaster/orders",
        f"redis+sentinel://:{QUOTED}@host",
        f"redis+cluster://:{QUOTED}@host/1",
        f"{SENTINEL}",
    ],
)
def test_malformed_urls_are_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^url is malformed") as caught:
        Server(url)
    text = "".join(traceback.format_exception(caught.value))
    assert SENTINEL not in text.replace(__file__, "")
    assert QUOTED not in text


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LEASE", "soon"),
        ("LEASE", "0"),
        ("TIMEOUT", "-1"),
        ("PREFIX", "{x}"),
        ("TLS_CA", "/ca.pem"),
        ("DROP_UNSETTLED", "maybe"),
        ("MAX_BACKLOG", "0.9"),
        ("RETAIN_LENGTH", "1e3"),
        ("URL", "localhost:6379"),
    ],
)
def test_malformed_variables_are_named(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ABE_REDIS_{variable}", value)
    with pytest.raises(ConfigurationError, match="ABE_REDIS_(TLS|" + variable + ")"):
        RedisBackend.from_env()


@pytest.mark.parametrize(
    ("argument", "value"),
    [("lease", 0), ("timeout", -1), ("publish_timeout", float("inf")), ("prefix", "{x}")],
)
def test_a_malformed_argument_is_named_and_no_variable(argument: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^{argument} is ") as caught:
        RedisBackend(**{argument: value})
    assert "ABE_REDIS" not in str(caught.value)


@pytest.mark.parametrize("end", ["CA", "CERT", "KEY"])
def test_a_file_that_is_not_there_is_named(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABE_REDIS_URL", "rediss://127.0.0.1:1")
    monkeypatch.setenv(f"ABE_REDIS_TLS_{end}", "/no/such.pem")

    async def main() -> None:
        async with RedisBackend.from_env() as queue:
            for call in (queue.publish("a", {}), anext(queue.consume())):
                with pytest.raises(ConfigurationError, match=rf"/no/such.pem' .*_TLS_{end}"):
                    await call

    asyncio.run(main())


def test_tls_that_makes_no_sense_is_not_tried_again() -> None:
    async def main() -> None:
        async with RedisBackend("rediss://127.0.0.1:1?ssl_cert_reqs=maybe") as queue:
            with pytest.raises(ConfigurationError, match=r"ABE_REDIS_URL.*maybe"):
                await queue.publish("a", {})

    asyncio.run(main())


def test_the_environment_of_a_broker_for_tests_leads_there(server: RedisServer) -> None:
    async def main() -> None:
        with broker() as env:
            backend = abe.load_backend("redis", env=env)
            assert isinstance(backend, RedisBackend)
            async with backend:
                assert env["ABE_REDIS_URL"].removeprefix("redis://") in repr(backend)
                await backend.ping()

    asyncio.run(main())


def test_dropping_unsettled_messages_warns(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABE_REDIS_DROP_UNSETTLED", "1")
    with caplog.at_level(logging.WARNING, logger="abe_backend_redis"):
        RedisBackend.from_env()
    assert "ABE_REDIS_DROP_UNSETTLED" in caplog.text


class TestSecrets:
    def test_every_form_is_hidden(self) -> None:
        secrets = Translator("h:1", None, SENTINEL, None, "")
        for form in (SENTINEL, QUOTED, repr(SENTINEL)[1:-1]):
            assert secrets.hide(f"a {form} b") == "a *** b"

    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (driver.AuthenticationError(f"bad {SENTINEL}"), ConfigurationError),
            (driver.ResponseError(f"NOPERM {SENTINEL}"), ConfigurationError),
            (driver.ResponseError(f"odd {SENTINEL}"), ConfigurationError),
            (driver.ConnectionError(f"redis://:{QUOTED}@h"), ConnectionLostError),
            (driver.TimeoutError(SENTINEL.encode()), ConnectionLostError),
            (driver.ReadOnlyError(f"READONLY {SENTINEL}"), UnreachedError),
            (driver.BusyLoadingError(f"{SENTINEL}"), UnreachedError),
            (driver.OutOfMemoryError(f"{SENTINEL}"), UnreachedError),
            (OSError(1, f"no way to {SENTINEL}"), ConnectionLostError),
        ],
    )
    def test_driver_exceptions_are_translated_without_secrets(
        self, error: Exception, kind: type[Exception]
    ) -> None:
        try:
            raise driver.RedisError(f"deep inside: {SENTINEL}")
        except driver.RedisError as deeper:
            error.__context__ = deeper
        translator = Translator("h:1/0", "redis+cluster://h:1", SENTINEL)
        translator.served = True
        translated = translator.translate(error)
        assert type(translated) is kind or isinstance(translated, kind)
        translated.__cause__ = error
        text = "".join(traceback.format_exception(translated)) + repr(translated)
        for form in (SENTINEL, QUOTED, SENTINEL.encode().__repr__()[2:-1]):
            assert form not in text

    @pytest.mark.parametrize(
        ("error", "advice"),
        [
            (driver.NoPermissionError("this user has no permissions"), "README"),
            (driver.ResponseError("The user can't run this command"), "README"),
            (driver.ReadOnlyError("You can't write"), "primary"),
            (driver.MovedError("15632 h:2"), r"redis\+cluster://h:1"),
            (driver.AskError("15632 h:2"), r"redis\+cluster://h:1"),
            (ssl.SSLError("tlsv13 alert certificate required"), "ABE_REDIS_TLS_CERT"),
        ],
    )
    def test_a_refusal_says_what_to_do(self, error: Exception, advice: str) -> None:
        translated = Translator("h:1/0", "redis+cluster://h:1").translate(error)
        assert isinstance(translated, ConfigurationError)
        assert re.search(advice, str(translated))

    def test_no_repr_tells(self) -> None:
        backend = RedisBackend(
            f"redis://ada:{QUOTED}@h", sentinel_password=SENTINEL, password=SENTINEL
        )
        things: list[Any] = [backend, backend._server, backend._control, backend._publisher]
        for thing in [*things, backend._receiver(None, KeyFilter()), backend.consume()]:
            assert SENTINEL not in repr(thing)
            assert SENTINEL not in str(thing)
            assert QUOTED not in repr(thing)
