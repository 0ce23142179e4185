"""A local stand-in for SQS and SNS, for tests and notebooks: moto's server, stopped for certain.

    from abe_backend_sqs.testing import SqsServer

    with SqsServer() as server:
        url = server.create_queue("orders")

Needs the extra ``testing``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self

import botocore.session

__all__ = ["SqsServer", "broker"]

START = 60.0
REGION: Final = "eu-central-1"
MAX_RECEIVES: Final = 1000
"""Receipts after which a queue made here moves a message to its dead letters by itself."""


@contextmanager
def broker() -> Iterator[Mapping[str, str]]:
    """Run a server with one queue and yield the variables that lead ``QUEUE_BACKEND=sqs`` to it.

    Raises:
        RuntimeError: If moto does not start.
    """
    with SqsServer() as server:
        yield {**server.env, "ABE_SQS_QUEUE": server.create_queue("abe")}


class SqsServer:
    """A server on a free loopback port, without any data of before.

    Args:
        endpoint: Use the server there instead of starting one.
        longest_wait: Seconds after which a long poll is answered, whatever it asked for.
    """

    def __init__(self, endpoint: str | None = None, *, longest_wait: float = 20.0) -> None:
        self._given = endpoint
        self._longest_wait = longest_wait
        self._process: subprocess.Popen[str] | None = None
        self._sqs: Any = None
        self._sns: Any = None
        self.endpoint = endpoint or ""

    @property
    def env(self) -> Mapping[str, str]:
        """Variables that lead a backend there; queues are to be added."""
        return {
            "ABE_SQS_ENDPOINT": self.endpoint,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
        }

    def start(self) -> None:
        """Start the server."""
        if self._given is None:
            self._launch()
        session = botocore.session.Session()
        options = {
            "region_name": REGION,
            "endpoint_url": self.endpoint,
            "aws_access_key_id": "testing",
            "aws_secret_access_key": "testing",
        }
        self._sqs = session.create_client("sqs", **options)
        self._sns = session.create_client("sns", **options)

    def _launch(self) -> None:
        # It ends when its standard input does, so however we end.
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", "abe_backend_sqs.moto_server", str(self._longest_wait)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # A Ctrl-C at the terminal is for the tests, not for their server.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        overdue = threading.Timer(START, self._process.kill)
        overdue.start()
        line = self._process.stdout.readline()
        overdue.cancel()
        if not line.strip().isdigit():
            self.close()
            raise RuntimeError('moto does not start; pip install "moto[server]"')
        self.endpoint = f"http://127.0.0.1:{line.strip()}"

    def close(self) -> None:
        """Stop the server."""
        for client in (self._sqs, self._sns):
            if client is not None:
                client.close()
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.kill()
            process.stdin.close()
            process.stdout.close()
            process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- what backends use -----------------------------------------------------------------

    def create_queue(
        self, name: str, *, dead_letters: bool = True, attributes: Mapping[str, str] | None = None
    ) -> str:
        """Create a queue, FIFO if its name ends in ``.fifo``, and return its URL.

        Args:
            name: Its name.
            dead_letters: Whether to create a dead-letter queue beside it.
            attributes: As SQS names them.
        """
        fifo = {"FifoQueue": "true"} if name.endswith(".fifo") else {}
        chosen = {**fifo, **(attributes or {})}
        if dead_letters:
            stem = name.removesuffix(".fifo")
            dead = f"{stem}-dead{'.fifo' if fifo else ''}"
            arn = self._arn(self._sqs.create_queue(QueueName=dead, Attributes=fifo)["QueueUrl"])
            policy = {"deadLetterTargetArn": arn, "maxReceiveCount": MAX_RECEIVES}
            chosen["RedrivePolicy"] = json.dumps(policy)
        return str(self._sqs.create_queue(QueueName=name, Attributes=chosen)["QueueUrl"])

    def create_topic(self, name: str, queues: Iterable[str] = ()) -> str:
        """Create a topic, FIFO if its name ends in ``.fifo``, with raw subscriptions of ``queues``.

        Returns:
            Its ARN.
        """
        options = {"FifoTopic": "true"} if name.endswith(".fifo") else {}
        arn = str(self._sns.create_topic(Name=name, Attributes=options)["TopicArn"])
        for queue in queues:
            self._sns.subscribe(
                TopicArn=arn,
                Protocol="sqs",
                Endpoint=self._arn(self._sqs.get_queue_url(QueueName=queue)["QueueUrl"]),
                Attributes={"RawMessageDelivery": "true"},
            )
        return arn

    def _arn(self, url: str) -> str:
        answer = self._sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
        return str(answer["Attributes"]["QueueArn"])

    # -- what only a stand-in can ----------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass for what is hidden or delayed."""
        self._control(f"advance?seconds={seconds}")

    def cut(self) -> None:
        """Break every connection."""
        self._control("cut")

    def _control(self, what: str) -> None:
        with urllib.request.urlopen(f"{self.endpoint}/control/{what}", timeout=START) as answer:  # noqa: S310
            answer.read()
