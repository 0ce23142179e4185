"""From a name, or from what is installed, to a backend.

Backends are entry points in the group `ENTRY_POINT_GROUP`, abe's own included; `OLDER_GROUP` is
read too. Every call looks again at what is installed, so that a provider installed while a
notebook runs is found by the next call.
"""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from abe.backends.message_queue._environment import (
    checked_overlay,
    overlaid,
    presentable,
    read_variable,
)
from abe.errors import (
    AbeError,
    AmbiguousBackendError,
    BackendLoadError,
    UnknownBackendError,
)
from abe.types import MessageQueueBackendProtocol

if TYPE_CHECKING:
    from importlib.metadata import Distribution, EntryPoint

__all__ = [
    "BackendInfo",
    "Choice",
    "ENTRY_POINT_GROUP",
    "OLDER_GROUP",
    "VARIABLE",
    "choose_backend",
    "list_backends",
    "load_backend",
    "load_backend_class",
]

ENTRY_POINT_GROUP = "abe.backends.message_queue"
"""Where providers register their backends."""
OLDER_GROUP = "abe.backends.message_queue.service"
"""Where providers made for earlier versions registered them; still read."""
VARIABLE = "QUEUE_BACKEND"
"""The environment variable that names the backend to use."""

_NOTHING_ELSE = f"{VARIABLE} is not set and no provider is installed"
_WARNING_OF_MEMORY = (
    f"{_NOTHING_ELSE}: using 'memory', whose messages exist only in this process and are lost "
    "when it ends"
)
_OWN_DISTRIBUTION = "abstract-backend"
_BUILT_IN = ("memory", "sqlite")
_FIRST_PARTY = {"redis": "abe-backend-redis", "sqs": "abe-backend-sqs"}


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """One installed backend.

    Attributes:
        name: What `load_backend` and ``QUEUE_BACKEND`` call it.
        distribution: The distribution that registers it.
        version: Version of that distribution.
        target: The entry point's value, e.g. ``"abe_backend_x.backend:XBackend"``.
        group: The entry point group that it is registered in.
        builtin: Whether it comes with abe.
        deprecated: Why not to use it (PEP 702), ``None`` if nothing is known against it; known
            once it is loaded.
        status: ``"available"`` (installed, not imported), ``"loaded"`` (imported and usable),
            ``"broken"`` or ``"ambiguous"`` (another distribution registers the same name).
        error: Why it is broken or ambiguous, else ``None``.
    """

    name: str
    distribution: str
    version: str
    target: str
    group: str
    builtin: bool
    deprecated: str | None = None
    status: str = "available"
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """Which backend `load_backend` takes, and why.

    Attributes:
        info: The backend.
        reason: Why this one, e.g. ``"QUEUE_BACKEND is 'redis'"``.
        warning: What `load_backend` warns of when it takes it, ``None`` if nothing.
    """

    info: BackendInfo
    reason: str
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An entry point, and what is known of it without importing anything."""

    info: BackendInfo
    entry_point: EntryPoint

    def __str__(self) -> str:
        return f"{self.info.distribution} {self.info.version}".strip()


_Candidates = dict[str, list[_Candidate]]


def load_backend(
    name: str | None = None, *, env: Mapping[str, str] | None = None
) -> MessageQueueBackendProtocol:
    """Create the backend called ``name``, through its ``from_env()``.

    Without a name it is the one that ``QUEUE_BACKEND`` names; else the first by name that does not
    come with abe (with a warning that names the others, if there are any); else ``memory``, with a
    warning.

    Args:
        name: Name of an installed backend; see `list_backends`.
        env: Environment variables that are set while ``from_env()`` runs, ``QUEUE_BACKEND``
            included. Backends are created one at a time, so one process can hold two of a kind.

    Returns:
        A new backend, not connected yet.

    Raises:
        UnknownBackendError: If no backend of that name is installed.
        AmbiguousBackendError: If several distributions register that name.
        BackendLoadError: If it is installed, but importing or instantiating it fails.
        ConfigurationError: If ``env`` holds what cannot be an environment variable, or if
            ``from_env()`` says so; every other `AbeError` of ``from_env()`` passes as well.
        TypeError: If ``name`` is no string.

    Warns:
        FutureWarning: If the class is deprecated (PEP 702), with its text.
        UserWarning: If the choice was left to abe and deserves a second look.
    """
    overlay = checked_overlay(env)
    choice, candidate = _choose(name, overlay)
    if choice.warning is not None:
        _warn(choice.warning, UserWarning)
    backend_class = _import_class(candidate)
    deprecated = _deprecation(backend_class)
    if deprecated is not None:
        _warn(f"backend {choice.info.name!r} of {candidate} is deprecated: {deprecated}")
    return _instantiate(candidate, backend_class, overlay)


def load_backend_class(name: str) -> type[MessageQueueBackendProtocol]:
    """Import the backend called ``name`` and return its class, without instantiating it.

    For tools: it does not warn of a deprecated class.

    Raises:
        UnknownBackendError: If no backend of that name is installed.
        AmbiguousBackendError: If several distributions register that name.
        BackendLoadError: If importing it fails, or if it has no ``from_env``.
    """
    return _import_class(_choose(name, {})[1])


def choose_backend(name: str | None = None, *, env: Mapping[str, str] | None = None) -> Choice:
    """Tell which backend `load_backend` would take with these arguments, importing nothing.

    Args:
        name: Name of an installed backend.
        env: Environment variables that overlay the process's.

    Returns:
        The backend and why it would be taken.

    Raises:
        UnknownBackendError: If no backend of that name is installed.
        AmbiguousBackendError: If several distributions register that name.
        ConfigurationError: If ``env`` holds what cannot be an environment variable.
    """
    return _choose(name, checked_overlay(env))[0]


def list_backends(*, check: bool = False) -> list[BackendInfo]:
    """List the installed backends by name.

    Args:
        check: Import every backend to learn whether it is broken or deprecated; nothing is
            instantiated. Without it nothing is imported.

    Returns:
        One entry for each name and distribution.

    Raises:
        BackendLoadError: If the entry points of a distribution are malformed.
    """
    rows: list[BackendInfo] = []
    for name, candidates in sorted(_scan().items()):
        if len(candidates) > 1:
            error = str(_ambiguous(name, candidates))
            rows += [replace(c.info, status="ambiguous", error=error) for c in candidates]
        elif check or _module(candidates[0]) in sys.modules:
            rows.append(_inspected(candidates[0]))
        else:
            rows.append(candidates[0].info)
    return rows


def _inspected(candidate: _Candidate) -> BackendInfo:
    """Import a backend and return what that tells."""
    try:
        backend_class = _import_class(candidate)
    except BackendLoadError as error:
        return replace(candidate.info, status="broken", error=str(error))
    return replace(candidate.info, status="loaded", deprecated=_deprecation(backend_class))


# --- What is installed ----------------------------------------------------------------------------


def _scan() -> _Candidates:
    """Find every backend that an installed distribution registers."""
    # Costs 20 ms, which `import abe` must not.
    import importlib
    from importlib import metadata

    # The caches of importlib notice a new package by the time stamp of its directory, which is
    # too coarse for one installed a moment ago. All of this takes 1 to 2 ms for 100 distributions.
    importlib.invalidate_caches()
    metadata.MetadataPathFinder().invalidate_caches()  # Python 3.11 leaves this one out
    found: _Candidates = {}
    seen: set[str] = set()
    for distribution in metadata.distributions():
        # Reading the text of all is much cheaper than parsing all.
        if ENTRY_POINT_GROUP not in _text_of_entry_points(distribution):
            continue
        name = _name(distribution)
        # Without a name it is what a failed uninstallation left behind; pip ignores it as well.
        if not name or _normalized(name) in seen:
            continue
        seen.add(_normalized(name))
        with suppress(metadata.PackageNotFoundError):
            # Of two copies on sys.path the first counts, even if only the second has backends.
            distribution = metadata.distribution(name)
        for candidate in _registered(distribution):
            found.setdefault(candidate.info.name, []).append(candidate)
    return found


def _name(distribution: Distribution) -> str:
    metadata = distribution.metadata
    return metadata["Name"] if "Name" in metadata else ""  # noqa: SIM401 - no .get() in 3.11


def _text_of_entry_points(distribution: Distribution) -> str:
    try:
        return distribution.read_text("entry_points.txt") or ""
    except (OSError, UnicodeError):  # somebody else's file: not a reason to fail
        return ""


def _registered(distribution: Distribution) -> Iterator[_Candidate]:
    """Yield the backends of one distribution, each name once, the present group first."""
    name, version = distribution.metadata["Name"], distribution.metadata["Version"]
    try:
        entry_points = distribution.entry_points
    except Exception as error:  # whatever reading other people's metadata raises
        raise BackendLoadError(
            f"the entry points of {name} {version} are malformed; reinstall or uninstall it",
            distribution=name,
        ) from error
    yielded: set[str] = set()
    for group in (ENTRY_POINT_GROUP, OLDER_GROUP):
        for entry_point in entry_points.select(group=group):
            if entry_point.name not in yielded:
                yielded.add(entry_point.name)
                info = BackendInfo(
                    name=entry_point.name,
                    distribution=name,
                    version=version,
                    target=entry_point.value,
                    group=group,
                    builtin=_normalized(name) == _OWN_DISTRIBUTION,
                )
                yield _Candidate(info, entry_point)


def _module(candidate: _Candidate) -> str:
    # EntryPoint.module raises if the value is malformed.
    return candidate.info.target.partition(":")[0].strip()


def _normalized(distribution: str) -> str:
    """Spell the name of a distribution as package indexes do."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


# --- Which one to take ----------------------------------------------------------------------------


def _choose(name: str | None, overlay: Mapping[str, str]) -> tuple[Choice, _Candidate]:
    """Apply the order of selection."""
    if not isinstance(name, str | None):
        raise TypeError(f"the name of a backend must be a str, not {type(name).__name__}")
    found = _scan()
    reason = "named by the caller"
    if name is None:
        name, reason = read_variable(VARIABLE, overlay) or None, f"named by {VARIABLE}"
    if name is not None:
        candidate = _the_one(name, found, reason)
        return Choice(candidate.info, reason), candidate
    external = sorted(n for n, cs in found.items() if not all(c.info.builtin for c in cs))
    if not external:
        candidate = _the_one("memory", found, _NOTHING_ELSE)
        return Choice(candidate.info, _NOTHING_ELSE, _WARNING_OF_MEMORY), candidate
    candidate = _the_one(external[0], found, f"{VARIABLE} is not set")
    return _choice_of_first(candidate, external[1:]), candidate


def _choice_of_first(candidate: _Candidate, others: Sequence[str]) -> Choice:
    name = candidate.info.name
    if not others:
        return Choice(
            candidate.info, f"{VARIABLE} is not set and it is the only one beside abe's own"
        )
    rest = ", ".join(map(repr, others))
    return Choice(
        candidate.info,
        f"{VARIABLE} is not set and it is the first by name; the others: {rest}",
        f"{VARIABLE} is not set and several backends are installed: using {name!r} "
        f"of {candidate}, the first by name; set {VARIABLE} to choose (also installed: {rest})",
    )


def _the_one(name: str, found: _Candidates, reason: str) -> _Candidate:
    """Return the only candidate for ``name``.

    Raises:
        UnknownBackendError: If there is none.
        AmbiguousBackendError: If there are several.
    """
    candidates = found.get(name)
    if not candidates:
        raise _unknown(name, found, reason)
    if len(candidates) > 1:
        raise _ambiguous(name, candidates)
    return candidates[0]


def _ambiguous(name: str, candidates: Sequence[_Candidate]) -> AmbiguousBackendError:
    claims = " and ".join(f"{c} ({c.info.target})" for c in candidates)
    removable = " or ".join(c.info.distribution for c in candidates if not c.info.builtin)
    verb = "uninstall one of them:" if removable.count(" or ") else "uninstall"
    return AmbiguousBackendError(f"backend {name!r} is registered by {claims}; {verb} {removable}")


def _unknown(name: str, found: _Candidates, reason: str) -> UnknownBackendError:
    import difflib

    # Somebody may have given a URL: what follows the scheme is not for error messages.
    plain = re.split(r"[^\w.-]", name[:60])[0]
    shown = plain if plain == name else f"{plain}…"
    installed = ", ".join(f"{n} ({found[n][0]})" for n in sorted(found)) or "none"
    text = f"no backend named {shown!r} is installed ({reason}); installed: {installed}"
    known = {n.lower(): n for n in (*_FIRST_PARTY, *_BUILT_IN, *found)}
    near = difflib.get_close_matches(plain.lower(), known, n=1)
    meant = known[near[0]] if near else ""
    if meant and meant == name:
        text += "."
    elif meant:
        text += f". Did you mean {meant!r}?"
    if meant and meant not in found:
        what = f"providers/{_FIRST_PARTY[meant]}" if meant in _FIRST_PARTY else "."
        text += f" To install {meant!r}, from the checkout: pip install -e {what}"
    return UnknownBackendError(text)


# --- Importing and instantiating ------------------------------------------------------------------


def _import_class(candidate: _Candidate) -> type[MessageQueueBackendProtocol]:
    """Import what the entry point names; it must have a ``from_env`` that can be called."""
    failure: Exception
    try:
        loaded = candidate.entry_point.load()
    except Exception as error:  # importing runs the provider's code
        failure = error
    else:
        if not callable(getattr(loaded, "from_env", None)):
            raise _broken(candidate, "it has no from_env() class method")
        return cast("type[MessageQueueBackendProtocol]", loaded)
    # Raised here and not above: the error must not carry an unredacted __context__.
    cause, text = presentable(failure, {})
    package = _module(candidate).partition(".")[0]
    if isinstance(failure, ModuleNotFoundError) and failure.name == package:
        text += (
            ". If it was installed while this process ran, restart the process (editable "
            "installations need that); else reinstall it"
        )
    raise _broken(candidate, f"importing it failed: {text}") from cause


def _instantiate(
    candidate: _Candidate,
    backend_class: type[MessageQueueBackendProtocol],
    overlay: Mapping[str, str],
) -> MessageQueueBackendProtocol:
    """Call ``from_env()`` under the overlay and check what it returns."""
    failure: Exception
    try:
        with overlaid(overlay), _one_deprecation_is_enough(backend_class):
            backend = backend_class.from_env()
    except (AbeError, Warning):  # a warning is raised only if the user made warnings errors
        raise
    except Exception as error:  # the provider's code again
        failure = error
    else:
        _require_methods(candidate, backend)
        return backend
    cause, text = presentable(failure, overlay)
    raise _broken(candidate, f"from_env() raised {text}") from cause


def _require_methods(candidate: _Candidate, backend: object) -> None:
    if inspect.iscoroutine(backend):
        backend.close()  # else Python warns of a coroutine that was never awaited
        raise _broken(candidate, "from_env() is a coroutine function; it must be a plain method")
    missing = [m for m in ("publish", "consume") if not callable(getattr(backend, m, None))]
    if missing:
        what = " and ".join(f"{m}()" for m in missing)
        raise _broken(candidate, f"from_env() returned a {type(backend).__name__} without {what}")


def _broken(candidate: _Candidate, why: str) -> BackendLoadError:
    info = candidate.info
    return BackendLoadError(
        f"backend {info.name!r} of {candidate} (entry point {info.target}) cannot be used: {why}",
        distribution=info.distribution,
        entry_point=info.target,
    )


def _deprecation(backend_class: object) -> str | None:
    """Return the text of PEP 702; a subclass does not inherit it."""
    text = getattr(backend_class, "__dict__", {}).get("__deprecated__")
    return text if isinstance(text, str) else None


@contextmanager
def _one_deprecation_is_enough(backend_class: object) -> Iterator[None]:
    """Silence what ``@deprecated`` itself says on instantiation: `load_backend` has said it."""
    text = _deprecation(backend_class)
    if text is None:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", re.escape(text), Warning)
        yield


def _warn(text: str, category: type[Warning] = FutureWarning) -> None:
    """Warn at the first caller outside abe, however deep inside abe this is."""
    level, frame = 1, sys._getframe()
    while frame.f_back and f"{frame.f_globals.get('__name__')}.".startswith("abe."):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)
