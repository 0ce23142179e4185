"""A real moto server for the tests, on loopback; skipped without moto, and failed under CI."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from zlib import crc32

import pytest

from abe_backend_sqs.testing import SqsServer


@pytest.fixture(autouse=True, scope="session")
def _environment_of_the_caller_does_not_matter() -> Iterator[None]:
    """Forget which backend and which AWS account the developer has configured."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name == "QUEUE_BACKEND" or re.match(r"AWS_|ABE_(?!TEST_)", name):
                patch.delenv(name)
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


@pytest.fixture(scope="session")
def server() -> Iterator[SqsServer]:
    """The server; its long polls are short, so that closing waits for none."""
    if importlib.util.find_spec("moto") is None:
        reason = "moto is not installed"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with SqsServer(longest_wait=0.05) as started:
        yield started


@pytest.fixture
def queue(request: pytest.FixtureRequest) -> str:
    """A name of the test's own, short enough to be part of a longer one."""
    name = request.node.name
    return f"{re.sub(r'[^a-z]+', '-', name)[-24:]}-{crc32(name.encode()):08x}"
