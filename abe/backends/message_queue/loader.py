"""From a name, or from what is installed, to a backend.

Backends are entry points in the group `BACKEND_ENTRY_POINT_GROUP`, abe's own included;
`OLDER_GROUP` is read too. A provider installed while a notebook runs is found by the next call.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from abe._redact import known
from abe.backends.message_queue._environment import (
    checked_overlay,
    declared_settings,
    off_standard_output,
    overlaid,
    read_variable,
    refuse_unknown,
    unread,
)
from abe.backends.message_queue._installed import (
    GROUP,
    OLDER_GROUP,
    BackendInfo,
    Candidate,
    installed,
)
from abe.errors import AbeError, AmbiguousBackendError, BackendLoadError, UnknownBackendError
from abe.types import MessageQueueBackendProtocol

if TYPE_CHECKING:
    from abe.backends.message_queue.base.settings import Setting

__all__ = [
    "BACKEND_ENTRY_POINT_GROUP",
    "BackendInfo",
    "Choice",
    "OLDER_GROUP",
    "VARIABLE",
    "choose_backend",
    "list_backends",
    "load_backend",
    "load_backend_class",
    "settings_of",
]

logger = logging.getLogger(__name__)

BACKEND_ENTRY_POINT_GROUP = GROUP
"""The entry point group in which providers register their backends."""
VARIABLE = "QUEUE_BACKEND"
"""The environment variable that names the backend to use."""

_NOTHING_ELSE = f"{VARIABLE} is not set and no provider is installed"
_WARNING_OF_MEMORY = (
    f"{_NOTHING_ELSE}: using 'memory', whose messages exist only in this process and are lost "
    "when it ends"
)
_FIRST_PARTY = {"redis": "abe-backend-redis", "sqs": "abe-backend-sqs"}

_Candidates = Mapping[str, Sequence[Candidate]]


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
    env = overlay = checked_overlay(env)  # no frame of a traceback shows what is in it
    choice, candidate = _choose(name, overlay)
    if choice.warning is not None:
        _warn(choice.warning, UserWarning)
    backend_class = _import_class(candidate)
    deprecated = _deprecation(backend_class)
    if deprecated is not None:
        _warn(f"backend {choice.info.name!r} of {candidate} is deprecated: {deprecated}")
    return _instantiate(candidate, backend_class, overlay)


def load_backend_class(name: str) -> type[MessageQueueBackendProtocol]:
    """Import the backend called ``name`` and return its class, warning of nothing, for tools.

    Raises:
        UnknownBackendError: If no backend of that name is installed.
        AmbiguousBackendError: If several distributions register that name.
        BackendLoadError: If importing it fails, or if it has no ``from_env``.
    """
    return _import_class(_choose(name, {})[1])


def choose_backend(name: str | None = None, *, env: Mapping[str, str] | None = None) -> Choice:
    """Tell which backend `load_backend` would take with ``name`` and ``env``, importing nothing.

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
        One entry for each name and distribution; one with malformed metadata goes by its own name.
    """
    here = installed()
    rows = list(here.damaged)
    for name, candidates in here.found.items():
        if len(candidates) > 1:
            error = str(_ambiguous(name, candidates))
            claims = [c.info for c in candidates if c.info.name == name]
            rows += [replace(info, status="ambiguous", error=error) for info in claims]
        elif check or candidates[0].module in sys.modules:
            rows.append(_inspected(candidates[0]))
        else:
            rows.append(candidates[0].info)
    return sorted(rows, key=lambda info: info.name)


def settings_of(name: str | None = None) -> tuple[Setting, ...]:
    """Return the variables that a backend reads; none if its class does not declare them.

    Args:
        name: Name of an installed backend; ``None`` for all that can be imported.

    Raises:
        UnknownBackendError: If no backend of that name is installed.
        AmbiguousBackendError: If several distributions register that name.
        BackendLoadError: If importing it fails.
    """
    if name is not None:
        return declared_settings(load_backend_class(name))
    usable = [info.name for info in list_backends(check=True) if info.status == "loaded"]
    return tuple(setting for each in usable for setting in settings_of(each))


def _inspected(candidate: Candidate) -> BackendInfo:
    try:
        backend_class = _import_class(candidate)
    except BackendLoadError as error:
        return replace(candidate.info, status="broken", error=str(error))
    return replace(candidate.info, status="loaded", deprecated=_deprecation(backend_class))


# --- Which one to take ----------------------------------------------------------------------------


def _choose(name: str | None, overlay: Mapping[str, str]) -> tuple[Choice, Candidate]:
    if not isinstance(name, str | None):
        raise TypeError(f"the name of a backend must be a str, not {type(name).__name__}")
    here = installed()
    found = here.found
    reason = "named by the caller"
    if name is None:
        name, reason = read_variable(VARIABLE, overlay) or None, f"named by {VARIABLE}"
    if name is not None:
        candidate = _the_one(name, found, reason, here.damaged)
        return Choice(candidate.info, reason), candidate
    external = sorted(n for n, cs in found.items() if not all(c.info.builtin for c in cs))
    if not external and here.damaged:
        damaged = here.damaged[0]
        raise BackendLoadError(
            f"{VARIABLE} is not set, and {damaged.error}", distribution=damaged.distribution
        )
    if not external:
        candidate = _the_one("memory", found, _NOTHING_ELSE)
        return Choice(candidate.info, _NOTHING_ELSE, _WARNING_OF_MEMORY), candidate
    candidate = _the_one(external[0], found, f"{VARIABLE} is not set")
    return _choice_of_first(candidate, external[1:]), candidate


def _choice_of_first(candidate: Candidate, others: Sequence[str]) -> Choice:
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


def _the_one(
    name: str, found: _Candidates, reason: str, damaged: Sequence[BackendInfo] = ()
) -> Candidate:
    candidates = found.get(name)
    if not candidates:
        raise _unknown(name, found, reason, damaged)
    if len(candidates) > 1:
        raise _ambiguous(name, candidates)
    return candidates[0]


def _ambiguous(name: str, candidates: Sequence[Candidate]) -> AmbiguousBackendError:
    claims = " and ".join(f"{c} ({c.info.target})" for c in candidates)
    external = {c.info.distribution: None for c in candidates if not c.info.builtin}
    verb = "uninstall one of them:" if len(external) > 1 else "uninstall"
    removable = " or ".join(external)
    names = dict.fromkeys(repr(c.info.name) for c in candidates)
    if len(names) > 1:
        spelled = " and ".join(names)
        return AmbiguousBackendError(
            f"backends {spelled}, which differ by case only, are registered by {claims}; {verb} "
            f"{removable}"
        )
    return AmbiguousBackendError(f"backend {name!r} is registered by {claims}; {verb} {removable}")


def _unknown(
    name: str, found: _Candidates, reason: str, damaged: Sequence[BackendInfo]
) -> UnknownBackendError:
    import difflib

    # Somebody may have given a URL: what follows the scheme is not for error messages.
    plain = re.split(r"[^\w.-]", name[:60])[0]
    shown = plain if plain == name else f"{plain}…"
    installed = ", ".join(f"{n} ({found[n][0]})" for n in sorted(found)) or "none"
    text = f"no backend named {shown!r} is installed ({reason}); installed: {installed}"
    text += "".join(f"; {info.error}" for info in damaged)
    spelled = {n.lower(): n for n in (*_FIRST_PARTY, *found)}
    near = difflib.get_close_matches(plain.lower(), spelled, n=1)
    meant = spelled[near[0]] if near else ""
    if meant and meant == name:
        text += "."
    elif meant:
        text += f". Did you mean {meant!r}?"
    if meant and meant not in found:
        # Both: the name of the core belongs to somebody else's package on the index.
        command = f"pip install -e . -e providers/{_FIRST_PARTY[meant]}"
        text += f" To install {meant!r}, from the checkout: {command}"
    return UnknownBackendError(text)


# --- Importing and instantiating ------------------------------------------------------------------


def _import_class(candidate: Candidate) -> type[MessageQueueBackendProtocol]:
    """Import what the entry point names; it must have a ``from_env`` that can be called."""
    failure: BaseException
    try:
        with _on_behalf_of(candidate, "importing it"):
            loaded = candidate.entry_point.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # importing runs the provider's code, which may even exit
        failure = error
    else:
        if not callable(getattr(loaded, "from_env", None)):
            raise _broken(candidate, "it has no from_env() class method")
        return cast("type[MessageQueueBackendProtocol]", loaded)
    # Raised here and not above: the error must not carry an unredacted __context__.
    cause, text = _presentable(failure)
    package = candidate.module.partition(".")[0]
    if isinstance(failure, ModuleNotFoundError) and failure.name == package:
        text += (
            ". If it was installed while this process ran, restart the process (editable "
            "installations need that); else reinstall it"
        )
    raise _broken(candidate, f"importing it failed: {text}") from cause


def _instantiate(
    candidate: Candidate,
    backend_class: type[MessageQueueBackendProtocol],
    overlay: Mapping[str, str],
) -> MessageQueueBackendProtocol:
    settings = declared_settings(backend_class)
    if settings:
        name = candidate.info.name
        refuse_unknown(name, settings, overlay, installed().found)
        for variable in unread(name, settings):
            _warn(f"backend {name!r} does not read the variable {variable}", UserWarning)
    failure: BaseException
    try:
        with overlaid(overlay), _one_deprecation_is_enough(backend_class):
            known.learn(os.environ, {setting.name: setting.secret for setting in settings})
            with _on_behalf_of(candidate, "from_env()"):
                backend = backend_class.from_env()
    except (AbeError, Warning) as error:  # a warning is raised only where the user wants errors
        known.clean(error)
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the provider's code again
        failure = error
    else:
        _require_methods(candidate, backend)
        return backend
    cause, text = _presentable(failure)
    raise _broken(candidate, f"from_env() raised {text}") from cause


@contextmanager
def _on_behalf_of(candidate: Candidate, what: str) -> Iterator[None]:
    with off_standard_output() as heard:
        yield
    if text := "".join(heard).strip():
        from abe.backends.message_queue.base.log_records import log

        name, shown = candidate.info.name, ascii(known.hide(text[:500]))
        record = "backend %s of %s: %s printed %s", name, candidate, what, shown
        log(logger, logging.WARNING, *record, extra={"backend": name})


def _presentable(error: BaseException) -> tuple[BaseException, str]:
    """Return ``error`` fit for chaining, and its text, both without secrets."""
    import traceback

    from abe.backends.message_queue.base.log_records import summary

    known.clean(error)
    text = known.hide(summary(error).removesuffix(": "))
    # limit=0: no source lines, but every chained exception, note and member of a group.
    whole = "".join(traceback.format_exception(error, limit=0))
    if known.hide(whole) == whole:
        return error, text
    return RuntimeError(text).with_traceback(error.__traceback__), text


def _require_methods(candidate: Candidate, backend: object) -> None:
    if inspect.iscoroutine(backend):
        backend.close()  # else Python warns of a coroutine that was never awaited
        raise _broken(candidate, "from_env() is a coroutine function; it must be a plain method")
    missing = [m for m in ("publish", "consume") if not callable(getattr(backend, m, None))]
    if missing:
        what = " and ".join(f"{m}()" for m in missing)
        raise _broken(candidate, f"from_env() returned a {type(backend).__name__} without {what}")


def _broken(candidate: Candidate, why: str) -> BackendLoadError:
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
