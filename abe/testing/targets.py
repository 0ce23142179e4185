"""From whatever names a backend to a harness that makes it in fresh namespaces."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import tempfile
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from abe.backends.message_queue.base import capabilities_of
from abe.backends.message_queue.loader import list_backends, load_backend, load_backend_class
from abe.errors import ConfigurationError, ConnectionLostError
from abe.testing.harness import Harness
from abe.testing.process import kill_consumer, kill_publisher
from abe.types import ConsumerGroup, MessageQueueBackendProtocol

__all__ = ["FactoryHarness", "InstalledHarness", "harness_for", "imported"]

ISOLATION: Mapping[str, Mapping[str, str]] = {
    "memory": {"ABE_MEMORY_NAME": "{namespace}"},
    "sqlite": {"ABE_SQLITE_PATH": "{folder}/{namespace}.sqlite3"},
    "redis": {"ABE_REDIS_PREFIX": "{namespace}"},
}
"""Which variables keep the namespaces of first-party backends apart."""
QUIET = {"memory": 0.05, "sqlite": 0.1}
"""How long to wait for what must not come: the built-in backends are fast."""


class FactoryHarness(Harness):
    """Backends made by a function.

    Args:
        factory: Called with the namespace if it takes an argument; else it makes a backend whose
            messages are its own, and each namespace gets one.

    Raises:
        ConfigurationError: If it takes no argument and makes a durable backend: that would be
            tested, and purged, on whatever messages it has.
    """

    quiet = 0.1

    def __init__(self, factory: Callable[..., Any]) -> None:
        self._factory = factory
        self._by_namespace = _takes_an_argument(factory)
        if not self._by_namespace and _is_durable(factory):
            raise _not_apart(
                "the backend", "test a function that takes the namespace, or a Harness"
            )
        self.reopen = self._by_namespace
        self._made: dict[str, Any] = {}

    def make(self, namespace: str) -> Any:
        """Return a backend for ``namespace``."""
        if self._by_namespace:
            return self._factory(namespace)
        if namespace not in self._made:
            self._made[namespace] = self._factory()
        return self._made[namespace]


class InstalledHarness(Harness):
    """An installed backend, configured by environment variables.

    What keeps namespaces apart is known of first-party backends; another backend's class may name
    a variable for it in an attribute ``namespace_variable``, else ``env`` has to. A class whose
    messages no other process can see says ``in_process = True``.

    Args:
        name: As `abe.load_backend` knows it.
        env: Variables; ``{namespace}`` in a value stands for the namespace, ``{folder}`` for a
            temporary folder.

    Raises:
        ConfigurationError: If nothing keeps the namespaces of a durable backend apart: it would be
            tested, and purged, on whatever messages it has.
        ConnectionLostError: If it has ``ping()``, and its broker does not answer.
        AbeError: If the backend cannot be loaded.
    """

    def __init__(self, name: str, env: Mapping[str, str] | None = None) -> None:
        known = ISOLATION.get(name, {})
        backend_class = load_backend_class(name)
        declared = getattr(backend_class, "namespace_variable", None)
        if isinstance(declared, str):
            known = {declared: "{namespace}"}
        self.name = name
        self._in_process = name == "memory" or getattr(backend_class, "in_process", False) is True
        self.quiet = QUIET.get(name, Harness.quiet)
        self._env = {**known, **(env or {})}
        self.reopen = any("{namespace}" in value for value in self._env.values())
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._shared: dict[str, MessageQueueBackendProtocol] = {}
        try:
            self._probe()
        except BaseException:
            self.close()
            raise

    def env(self, namespace: str) -> dict[str, str]:
        """Return the variables for ``namespace``."""
        needed = any("{folder}" in value for value in self._env.values())
        if needed and self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="abe-contract-")
        known = {"{namespace}": namespace, "{folder}": self._folder.name if self._folder else ""}
        filled = dict(self._env)
        for placeholder, text in known.items():
            filled = {name: value.replace(placeholder, text) for name, value in filled.items()}
        return filled

    def make(self, namespace: str) -> MessageQueueBackendProtocol:
        """Load the backend, configured for ``namespace``."""
        if self.reopen:
            return self._load(namespace)
        if namespace not in self._shared:
            self._shared[namespace] = self._load(namespace)
        return self._shared[namespace]

    def _probe(self) -> None:
        """Fail once, and soon: each case would wait for a broker that is not there."""
        backend = self._load("probe")
        if not self.reopen and capabilities_of(backend).durable:
            remedy = "give a variable that does, e.g. ABE_X_PREFIX={namespace}"
            raise _not_apart(f"backend {self.name!r}", remedy)
        with ThreadPoolExecutor(1) as thread:  # an event loop may be running here
            thread.submit(asyncio.run, _ping(backend)).result()

    def _load(self, namespace: str) -> MessageQueueBackendProtocol:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # a deprecated one may be tested, too
            return load_backend(self.name, env=self.env(namespace))

    async def kill_consumer(self, namespace: str, group: ConsumerGroup, count: int) -> None:
        """Kill a process that holds messages."""
        await kill_consumer(self.name, self.env(namespace), group, count)

    async def kill_publisher(self, namespace: str, key: str) -> int:
        """Kill a process that publishes."""
        return await kill_publisher(self.name, self.env(namespace), key)

    def has(self, hook: str) -> bool:
        """Whether the hook works: a process cannot share a backend that lives in this one."""
        alone = self._in_process or not self.reopen
        return super().has(hook) and not (alone and hook.startswith("kill_"))

    def close(self) -> None:
        """Remove the temporary folder."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def harness_for(target: object, env: Mapping[str, str] | None = None) -> tuple[Harness, str]:
    """Return a harness for ``target`` and what to call it; targets as for `run_contract`."""
    if isinstance(target, str) and ":" not in target:
        return InstalledHarness(target, env), target
    if isinstance(target, str):
        return harness_for(imported(target), env)
    if env is not None:
        raise ConfigurationError("env configures a backend by name; this target is no name")
    if isinstance(target, Harness):
        return target, type(target).__name__
    if isinstance(target, type) and issubclass(target, Harness):
        return target(), target.__name__
    make = getattr(target, "from_env", None)
    if isinstance(target, type) and callable(make):
        installed = _installed_as(target)
        if installed is not None:
            return InstalledHarness(installed), installed
        # No namespace for from_env(): an argument that it may have means something else.
        return FactoryHarness(lambda: make()), target.__name__
    if isinstance(target, type) and not hasattr(target, "consume"):
        raise TypeError(f"cannot test {target!r}: it has no consume()")
    if isinstance(target, type) or (callable(target) and not hasattr(target, "consume")):
        return FactoryHarness(target), getattr(target, "__name__", type(target).__name__)
    raise TypeError(
        f"cannot test {target!r}: give a backend's name or class, a function that makes one, or a "
        "harness. One instance is not enough: each case needs a fresh backend"
    )


def imported(path: str) -> object:
    """Return what ``"package.module:attribute"`` names."""
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # importing runs the author's code
        known = isinstance(error, ImportError | AttributeError)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        raise ConfigurationError(f"{path!r} cannot be imported: {text}") from error


def _is_durable(make: Callable[[], Any]) -> bool:
    if inspect.iscoroutinefunction(make):
        return False  # it belongs to an event loop that does not run yet
    try:
        return capabilities_of(make()).durable
    except Exception:  # that it cannot be made is what every case will say, and where
        return False


def _not_apart(what: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(
        f"{what} is durable, and nothing keeps the namespaces of its cases apart; {remedy}"
    )


def _installed_as(backend_class: type) -> str | None:
    """Return the name under which a class is installed, if it is: then it can be isolated."""
    for info in list_backends():
        module, _, attribute = info.target.partition(":")
        if (module.strip(), attribute.strip()) == (
            backend_class.__module__,
            backend_class.__qualname__,
        ):
            return info.name if info.status not in ("ambiguous", "broken") else None
    return None


async def _ping(backend: Any) -> None:
    """Raise if the broker does not answer; what else may be wrong is for the cases to say."""
    try:
        async with asyncio.timeout(Harness.patience):
            await backend.ping()
    except ConnectionLostError:
        raise
    except Exception:  # noqa: S110
        pass
    finally:
        with suppress(Exception):
            await backend.aclose()


def _takes_an_argument(factory: Callable[..., Any]) -> bool:
    try:
        inspect.signature(factory).bind("namespace")
    except (TypeError, ValueError):
        return False
    return True
