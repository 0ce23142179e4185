"""A message queue behind one small contract: ``publish``, ``consume``, ``from_env``.

The broker is an installed package that ``QUEUE_BACKEND`` selects. `connect` opens a backend for
synchronous code and notebooks, `aconnect` for asyncio; `load_backend` returns the bare backend.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from abe._version import __version__
from abe.errors import (
    AbeError,
    AmbiguousBackendError,
    BackendClosedError,
    BackendLoadError,
    ConfigurationError,
    ConnectionLostError,
    InvalidKeyError,
    LoopError,
    PayloadError,
    PublishError,
    Reject,
    Retry,
    UnknownBackendError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from abe.backends.message_queue.base.message import Message, SyncMessage
    from abe.backends.message_queue.client import AsyncBackend, aconnect
    from abe.backends.message_queue.consumer import AsyncLoopConsumer, RetryPolicy
    from abe.backends.message_queue.loader import list_backends, load_backend
    from abe.display import Messages
    from abe.sync import SyncBackend, connect, enable_nesting

__all__ = [
    "AbeError",
    "AmbiguousBackendError",
    "AsyncBackend",
    "AsyncLoopConsumer",
    "BackendClosedError",
    "BackendLoadError",
    "ConfigurationError",
    "ConnectionLostError",
    "InvalidKeyError",
    "LoopError",
    "Message",
    "Messages",
    "PayloadError",
    "PublishError",
    "Reject",
    "Retry",
    "RetryPolicy",
    "SyncBackend",
    "SyncMessage",
    "UnknownBackendError",
    "UnsupportedError",
    "__version__",
    "aconnect",
    "connect",
    "enable_nesting",
    "list_backends",
    "load_backend",
]

_MODULES = {
    "AsyncBackend": "abe.backends.message_queue.client",
    "AsyncLoopConsumer": "abe.backends.message_queue.consumer",
    "Message": "abe.backends.message_queue.base.message",
    "Messages": "abe.display",
    "SyncMessage": "abe.backends.message_queue.base.message",
    "RetryPolicy": "abe.backends.message_queue.consumer",
    "SyncBackend": "abe.sync",
    "aconnect": "abe.backends.message_queue.client",
    "connect": "abe.sync",
    "enable_nesting": "abe.sync",
    "list_backends": "abe.backends.message_queue.loader",
    "load_backend": "abe.backends.message_queue.loader",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `import abe` costs a few milliseconds and loads no event loop or broker.
    if name not in _MODULES:
        raise AttributeError(f"module 'abe' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register the magics; called by ``%load_ext abe``."""
    from abe.ipython import load_ipython_extension as load

    load(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Remove everything the extension registered; called by ``%unload_ext abe``."""
    from abe.ipython import unload_ipython_extension as unload

    unload(shell)
