"""Which backends the installed distributions register."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from abe._version import __version__

if TYPE_CHECKING:
    from importlib.metadata import Distribution, EntryPoint

__all__ = ["GROUP", "OLDER_GROUP", "BackendInfo", "Candidate", "Installed", "installed"]

GROUP = "abe.backends.message_queue"
OLDER_GROUP = "abe.backends.message_queue.service"

_OWN_DISTRIBUTION = "abstract-backend"
_BUILT_IN = {
    "memory": f"{GROUP}.service.memory:MemoryBackend",
    "sqlite": f"{GROUP}.service.sqlite:SQLiteBackend",
}
_UNSETTLED = 2.0
"""Seconds for which a folder may change again without a new time stamp."""


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
class Candidate:
    """An entry point, and what is known of it without importing anything."""

    info: BackendInfo
    entry_point: EntryPoint

    def __str__(self) -> str:
        return f"{self.info.distribution} {self.info.version}".strip()

    @property
    def module(self) -> str:
        """The module to import; unlike `EntryPoint.module`, also of a malformed target."""
        return self.info.target.partition(":")[0].strip()


@dataclass(slots=True)
class Installed:
    """Who claims which name, and the distributions whose metadata cannot be read."""

    found: dict[str, list[Candidate]] = field(default_factory=dict)
    damaged: list[BackendInfo] = field(default_factory=list)


_cached: tuple[object, Installed] = (None, Installed())


def installed() -> Installed:
    """Return what is installed; looked up again once a folder of ``sys.path`` has changed."""
    global _cached
    key, youngest = _time_stamps()
    if _cached[0] != key or time.time() - youngest < _UNSETTLED:
        _cached = (key, _scan())
    return _cached[1]


def _time_stamps() -> tuple[object, float]:
    stamps: list[object] = []
    youngest = 0.0
    for folder in sys.path:
        try:
            status = Path(folder).stat()
        except (OSError, ValueError, TypeError):
            stamps.append((folder, None))
            continue
        # The time of change too: installers set the other one.
        stamps.append((folder, status.st_mtime_ns, status.st_ctime_ns))
        youngest = max(youngest, status.st_mtime, status.st_ctime)
    return stamps, youngest


def _scan() -> Installed:
    """Find every backend that an installed distribution registers, and abe's own in any case."""
    # Costs 20 ms, which `import abe` must not.
    import importlib
    from importlib import metadata

    # The caches of importlib go by time stamps that may be too coarse.
    importlib.invalidate_caches()
    metadata.MetadataPathFinder().invalidate_caches()  # Python 3.11 leaves this one out
    result = Installed()
    seen: set[str] = set()
    for distribution in metadata.distributions():
        # Reading the text of all is much cheaper than parsing all.
        if GROUP not in _text_of_entry_points(distribution):
            continue
        name = ""
        try:
            name = _name(distribution)
            # Without a name it is what a failed uninstallation left behind; pip ignores it too.
            if not name or _normalized(name) in seen:
                continue
            seen.add(_normalized(name))
            with suppress(metadata.PackageNotFoundError):
                # Of two copies on sys.path the first counts, even if only the second has backends.
                distribution = metadata.distribution(name)
            for candidate in _registered(distribution):
                result.found.setdefault(candidate.info.name, []).append(candidate)
        except Exception as error:  # whatever reading other people's metadata raises
            result.damaged.append(_damaged(distribution, name, error))
    for name, target in _BUILT_IN.items():
        claims = result.found.setdefault(name, [])
        if not any(claim.info.builtin for claim in claims):  # frozen, or without its metadata
            claims.append(_candidate(metadata.EntryPoint(name, target, GROUP), "", __version__))
    return _with_conflicts(result)


def _with_conflicts(result: Installed) -> Installed:
    by_case: dict[str, list[Candidate]] = {}
    for name, claims in result.found.items():
        by_case.setdefault(name.lower(), []).extend(claims)
    result.found = {name: by_case[name.lower()] for name in result.found}
    return result


def _damaged(distribution: Distribution, name: str, error: Exception) -> BackendInfo:
    path = getattr(distribution, "_path", None)
    name = name or getattr(path, "name", "a distribution")
    text = (
        f"the metadata of {name} is malformed ({type(error).__name__}); reinstall or uninstall it"
    )
    return BackendInfo(name, name, "", "", GROUP, builtin=False, status="broken", error=text)


def _name(distribution: Distribution) -> str:
    metadata = distribution.metadata
    return metadata["Name"] if "Name" in metadata else ""  # noqa: SIM401 - no .get() in 3.11


def _text_of_entry_points(distribution: Distribution) -> str:
    try:
        return distribution.read_text("entry_points.txt") or ""
    except (OSError, UnicodeError):  # somebody else's file: not a reason to fail
        return ""


def _registered(distribution: Distribution) -> Iterator[Candidate]:
    """Yield the backends of one distribution, each name once, the present group first."""
    yielded: set[str] = set()
    entry_points = distribution.entry_points
    for group in (GROUP, OLDER_GROUP):
        for entry_point in entry_points.select(group=group):
            if entry_point.name not in yielded:
                yielded.add(entry_point.name)
                yield _candidate(
                    entry_point, distribution.metadata["Name"], distribution.metadata["Version"]
                )


def _candidate(entry_point: EntryPoint, distribution: str, version: str) -> Candidate:
    info = BackendInfo(
        name=entry_point.name,
        distribution=distribution or _OWN_DISTRIBUTION,
        version=version,
        target=entry_point.value,
        group=entry_point.group,
        builtin=_normalized(distribution or _OWN_DISTRIBUTION) == _OWN_DISTRIBUTION,
    )
    return Candidate(info, entry_point)


def _normalized(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()
