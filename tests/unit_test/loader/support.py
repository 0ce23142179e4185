"""Distributions that offer backends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from abe.backends.message_queue.loader import BackendInfo, list_backends

if TYPE_CHECKING:
    from abe.types import MessageQueueBackendProtocol
    from tests.conftest import FakeDistribution

HEALTHY = """
import os

class Backend:
    def __init__(self, url):
        self.url = url

    @classmethod
    def from_env(cls):
        return cls(os.environ.get("ABE_ACME_URL", "the default"))

    async def publish(self, key, payload): ...

    async def consume(self, *, group=None):
        yield {}

class Second(Backend):
    pass
"""


def install(fake: FakeDistribution, body: str, name: str = "odd") -> None:
    """Install a provider whose module ``odd_backend`` holds ``body``, registered as ``name``."""
    fake("abe-odd", {name: "odd_backend:Backend"}, {"odd_backend.py": body}, version="2.5")


def from_env_that(statement: str) -> str:
    """Source of a backend with this statement as the body of ``from_env``."""
    return HEALTHY.replace('return cls(os.environ.get("ABE_ACME_URL", "the default"))', statement)


def url_of(backend: MessageQueueBackendProtocol) -> Any:
    """What the fake backend found in its environment."""
    return getattr(backend, "url")  # noqa: B009 - not part of the protocol


def row(name: str, *, check: bool = False) -> BackendInfo:
    """The only entry of `list_backends` for ``name``."""
    (info,) = [info for info in list_backends(check=check) if info.name == name]
    return info
