"""The Redis backend fulfils the contract, on every server there is."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from typing import Any

import pytest
import redis

from abe.testing import BackendContract, ConsumerContract, Harness
from abe.testing.model import Histories
from abe.testing.process import kill_consumer, kill_publisher
from abe.types import ConsumerGroup
from abe_backend_redis.backend import RedisBackend
from abe_backend_redis.publisher import Limits
from abe_backend_redis.testing import RedisServer, find_server, has_wheel

LEASE = 30.0
OTHER_URL = os.environ.get("ABE_TEST_REDIS_URL", "")


class RedisHarness(Harness):
    """One prefix for each namespace.

    Args:
        url: Where the server is.
        server: The server itself, where it is ours to restart.
    """

    quiet = 0.1
    short_delay = 0.15

    def __init__(self, url: str, server: RedisServer | None = None) -> None:
        self._url = url
        self._server = server
        self._namespace = ""
        if server is None:
            self.unavailable = frozenset({"restart_broker", "cut_connections", "lose_data"})

    def make(self, namespace: str, **options: Any) -> RedisBackend:
        self._namespace = namespace
        return RedisBackend(self._url, prefix=namespace, **{"lease": LEASE, **options})

    def make_bounded(self, namespace: str, capacity: int) -> RedisBackend:
        return self.make(namespace, limits=Limits(backlog=capacity))

    def make_short_lease(self, namespace: str, seconds: float) -> RedisBackend:
        return self.make(namespace, lease=seconds)

    def make_unreachable(self, namespace: str) -> RedisBackend:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            url = f"redis://127.0.0.1:{closed.getsockname()[1]}"
        return RedisBackend(url, prefix=namespace, timeout=0.3, publish_timeout=0.5)

    def advance_time(self, seconds: float) -> None:
        """Date back what Redis knows of leases and delays; the backend has no clock to set."""
        with redis.Redis.from_url(self._url) as client:
            _age(client, f"{{{self._namespace}}}:", int(seconds * 1000))

    def restart_broker(self) -> None:
        assert self._server is not None
        self._server.restart()

    def lose_data(self) -> None:
        with redis.Redis.from_url(self._url) as client:
            client.flushall()

    def cut_connections(self) -> None:
        with redis.Redis.from_url(self._url) as client:
            client.execute_command("CLIENT KILL TYPE normal SKIPME yes")

    async def kill_consumer(self, namespace: str, group: ConsumerGroup, count: int) -> None:
        await kill_consumer("redis", self._env(namespace), group, count)

    async def kill_publisher(self, namespace: str, key: str) -> int:
        return await kill_publisher("redis", self._env(namespace), key)

    def _env(self, namespace: str) -> dict[str, str]:
        return {
            "ABE_REDIS_URL": self._url,
            "ABE_REDIS_PREFIX": namespace,
            "ABE_REDIS_LEASE": str(LEASE),
        }


def _age(client: Any, base: str, milliseconds: int) -> None:
    messages = f"{base}messages"
    for id_ in client.zrange(f"{base}scheduled", 0, -1):
        client.zincrby(f"{base}scheduled", -milliseconds, id_)
    for group in client.xinfo_groups(messages) if client.exists(messages) else ():
        name = group["name"].decode()
        for id_ in client.zrange(f"{base}later:{name}", 0, -1):
            client.zincrby(f"{base}later:{name}", -milliseconds, id_)
        for held in client.xpending_range(messages, name, "-", "+", 10_000):
            idle = held["time_since_delivered"] + milliseconds
            client.xclaim(
                messages, name, held["consumer"], 0, [held["message_id"]], idle=idle, justid=True
            )
        client.set(f"{base}sweep:{name}", 0)
        client.xadd(f"{base}wake:{name}", {"x": 1}, maxlen=1)


class _OnNewest:
    @pytest.fixture(autouse=True)
    def _serve(self, server: RedisServer) -> None:
        self._harness = RedisHarness(server.url, server)

    def harness(self) -> Harness:
        return self._harness


class _OnOldest:
    @pytest.fixture(autouse=True)
    def _serve(self, old_server: RedisServer) -> None:
        self._harness = RedisHarness(old_server.url, old_server)

    def harness(self) -> Harness:
        return self._harness


class TestRedis(_OnNewest, BackendContract): ...


class TestRedisConsumer(_OnNewest, ConsumerContract): ...


@pytest.mark.timeout(300)  # a failure is shortened before it is told
class TestRedisHistories(_OnNewest, Histories): ...


if has_wheel("6.2") or find_server("6.2") is not None:

    class TestRedis62(_OnOldest, BackendContract): ...

    class TestRedis62Consumer(_OnOldest, ConsumerContract): ...

else:

    def test_redis_62() -> None:
        pytest.skip("there is no wheel with Redis 6.2 for this Python or platform")


if OTHER_URL:

    class TestOtherRedis(BackendContract):
        def harness(self) -> Harness:
            return RedisHarness(OTHER_URL)


def test_claims_follow_the_lease() -> None:
    short = RedisBackend(lease=2.0).capabilities
    assert short == replace(RedisBackend().capabilities, lease=2.0)
