"""The SQS backend fulfils the contract: standard queues, FIFO queues, and a topic before them."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from abe.testing import GROUPS, BackendContract, Case, ConsumerContract, Harness
from abe.testing.process import kill_consumer, kill_publisher
from abe.types import ConsumerGroup
from abe_backend_sqs.backend import SqsBackend
from abe_backend_sqs.link import Access
from abe_backend_sqs.testing import REGION, SqsServer

LEASE = 5.0
"""Short: what a broken connection was bringing comes back after it."""
SHORTEST_LEASE = 2.0
ACCESS = Access(REGION, None, "testing", "testing")
OTHER_ENDPOINT = os.environ.get("ABE_TEST_SQS_ENDPOINT", "")


class SqsHarness(Harness):
    """One queue for each namespace, and a dead-letter queue beside it."""

    suffix = ""
    patience = 30.0
    quiet = 0.1
    short_delay = 1.0

    def __init__(self, server: SqsServer) -> None:
        self._server = server
        self._ahead = 0.0
        self._made: set[str] = set()

    def _clock(self) -> float:
        return time.monotonic() + self._ahead

    def make(self, namespace: str, **options: Any) -> SqsBackend:
        name = f"{namespace}{self.suffix}"
        if namespace not in self._made:
            self._made.add(namespace)
            self._server.create_queue(name)
        return self._backend(name, **options)

    def _backend(self, queue: str | None, **options: Any) -> SqsBackend:
        options = {
            "endpoint": self._server.endpoint,
            "access": ACCESS,
            "dead_letters": True,
            "lease": LEASE,
            "clock": self._clock,
            **options,
        }
        return SqsBackend(queue, **options)

    def make_short_lease(self, namespace: str, seconds: float) -> SqsBackend:
        return self.make(namespace, lease=max(seconds, SHORTEST_LEASE))

    def make_unreachable(self, namespace: str) -> SqsBackend:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        return self.make(namespace, endpoint=endpoint, timeout=0.3, publish_timeout=0.5)

    def advance_time(self, seconds: float) -> None:
        self._ahead += seconds
        self._server.advance(seconds)

    def cut_connections(self) -> None:
        self._server.cut()

    async def kill_consumer(self, namespace: str, group: ConsumerGroup, count: int) -> None:
        await kill_consumer("sqs", self._env(namespace), group, count)

    async def kill_publisher(self, namespace: str, key: str) -> int:
        return await kill_publisher("sqs", self._env(namespace), key)

    def _env(self, namespace: str) -> dict[str, str]:
        return {
            **self._server.env,
            "ABE_SQS_QUEUE": f"{namespace}{self.suffix}",
            "ABE_SQS_DEAD_LETTERS": "1",
            "ABE_SQS_LEASE": str(LEASE),
        }


class FifoHarness(SqsHarness):
    suffix = ".fifo"


class TopicHarness(SqsHarness):
    """One topic for each namespace, and a queue for each group that the case uses."""

    groups: tuple[ConsumerGroup, ...] = (None,)

    def make(self, namespace: str, **options: Any) -> SqsBackend:
        backend = self._backend(
            f"{namespace}-main{self.suffix}",
            topic=self._server.create_topic(f"{namespace}{self.suffix}"),
            group_queue=f"{namespace}-g-{{group}}{self.suffix}",
            **options,
        )
        if namespace not in self._made:
            self._made.add(namespace)
            names = [backend._resolver.configured(group) for group in self.groups]
            for name in names:
                self._server.create_queue(name)
            self._server.create_topic(f"{namespace}{self.suffix}", names)
        return backend

    def make_without_groups(self, namespace: str) -> SqsBackend:
        topic = self._server.create_topic(f"{namespace}-deserted{self.suffix}")
        return self._backend(None, topic=topic, group_queue=f"nowhere-{{group}}{self.suffix}")

    def _env(self, namespace: str) -> dict[str, str]:
        return {
            **super()._env(namespace),
            "ABE_SQS_TOPIC": self._server.create_topic(f"{namespace}{self.suffix}"),
            "ABE_SQS_QUEUE": f"{namespace}-main{self.suffix}",
            "ABE_SQS_GROUP_QUEUE": f"{namespace}-g-{{group}}{self.suffix}",
        }


class FifoTopicHarness(TopicHarness):
    suffix = ".fifo"


class _OnStandard:
    stress_messages = 60

    @pytest.fixture(autouse=True)
    def _serve(self, server: SqsServer) -> None:
        self._harness = SqsHarness(server)

    def harness(self) -> Harness:
        return self._harness


class _OnFifo(_OnStandard):
    @pytest.fixture(autouse=True)
    def _serve(self, server: SqsServer) -> None:
        self._harness = FifoHarness(server)


class TestStandard(_OnStandard, BackendContract): ...


class TestStandardConsumer(_OnStandard, ConsumerContract): ...


class TestFifo(_OnFifo, BackendContract): ...


class TestFifoConsumer(_OnFifo, ConsumerContract): ...


class _OnTopic:
    stress_messages = 60

    @pytest.fixture(autouse=True)
    def _serve(self, server: SqsServer) -> None:
        self._harness = TopicHarness(server)

    def harness(self) -> Harness:
        return self._harness

    def run_case(self, case: Case) -> None:
        # Most cases are about the default group alone, and making a queue takes its time.
        self._harness.groups = GROUPS if "groups" in case.capabilities else (None,)
        super().run_case(case)  # type: ignore[misc]


class TestTopic(_OnTopic, BackendContract): ...


class TestTopicConsumer(_OnTopic, ConsumerContract): ...


class _OnFifoTopic(_OnTopic):
    @pytest.fixture(autouse=True)
    def _serve(self, server: SqsServer) -> None:
        self._harness = FifoTopicHarness(server)


class TestFifoTopic(_OnFifoTopic, BackendContract): ...


class TestFifoTopicConsumer(_OnFifoTopic, ConsumerContract): ...


class OtherHarness(SqsHarness):
    """A server that is not ours: slower, and without a hand on its clock and its connections."""

    quiet = 1.0
    unavailable = frozenset({"advance_time", "cut_connections"})


if OTHER_ENDPOINT:

    class TestOther(BackendContract):
        stress_messages = 60

        @pytest.fixture(autouse=True)
        def _serve(self) -> Iterator[None]:
            with SqsServer(OTHER_ENDPOINT) as server:
                self._harness = OtherHarness(server)
                yield

        def harness(self) -> Harness:
            return self._harness
