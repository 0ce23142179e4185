"""moto's server, made fit for concurrent clients: ``python -m abe_backend_sqs.moto_server``.

moto answers each request in a thread of its own, without a lock around its queues: messages sent
while another is deleted can vanish. Here requests take turns, long polls wait without holding up
others, and two requests of our own exist: ``/control/advance`` and ``/control/cut``.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from moto.sqs import models
from moto.sqs.models import SQSBackend, sqs_backends
from werkzeug.serving import ThreadedWSGIServer

__all__ = ["serve"]

PAUSE = 0.01

_turn = threading.RLock()
_connections: set[socket.socket] = set()


class Handler(MotoRequestHandler):
    """Keeps connections open, says nothing, and knows which there are."""

    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        # Header and body are two writes: without this each answer waits for an acknowledgement.
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _connections.add(self.connection)

    def finish(self) -> None:
        _connections.discard(self.connection)
        super().finish()

    def send_response(self, code: int, message: str | None = None) -> None:
        """Begin the answer; moto's has the header ``Server`` already, and two are refused."""
        self.send_response_only(code, message)

    def log(self, type: str, message: str, *args: Any) -> None:
        """Log nothing."""


def patient_receive(longest: float) -> Callable[..., list[Any]]:
    """Return a ``receive_message`` that lets others have their turn while it waits."""
    receive = SQSBackend.receive_message

    def receive_message(
        self: SQSBackend, name: str, count: int, wait: int, *rest: Any, **named: Any
    ) -> list[Any]:
        deadline = time.monotonic() + min(wait, longest)
        while True:
            found = receive(self, name, count, 0, *rest, **named)
            if found or time.monotonic() >= deadline:
                return found
            _turn.release()
            try:
                time.sleep(PAUSE)
            finally:
                _turn.acquire()

    return receive_message


def advance(seconds: float) -> None:
    """Let time pass for what is hidden or delayed."""
    for account in sqs_backends.values():
        for region in account.values():
            for queue in region.queues.values():
                for message in queue._messages:
                    message.visible_at -= seconds * 1000
                    message.delayed_until -= seconds * 1000


def cut(own: Any) -> None:
    """Break every connection but the one this was asked on."""
    for connection in list(_connections):
        if connection is not own:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def application(app: Any) -> Callable[[dict[str, Any], Any], Iterable[bytes]]:
    """Return ``app`` with our own requests, one request at a time."""

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        with _turn:
            if not path.startswith("/control/"):
                return [b"".join(app(environ, start_response))]
            if path.endswith("/cut"):
                cut(environ["werkzeug.socket"])
            else:
                advance(float(parse_qs(environ["QUERY_STRING"])["seconds"][0]))
        start_response("204 No Content", [])
        return []

    return answer


def serve(longest_wait: float) -> None:
    """Serve until standard input ends, on a port that is written to standard output."""
    SQSBackend.receive_message = patient_receive(longest_wait)  # type: ignore[method-assign]
    # Asked for at every message of a queue, every time; moto's own are twenty times slower.
    vars(models).update(unix_time=time.time, unix_time_millis=lambda: time.time() * 1000)
    app = application(DomainDispatcherApplication(create_backend_app))
    server = ThreadedWSGIServer("127.0.0.1", 0, app, Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    serve(float(sys.argv[1]))
