"""What takes long to build: run once, then kept until something it depends on changes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from mkdocs.exceptions import PluginError

__all__ = ["ROOT", "Job", "clean_environment", "run_all", "source_files", "under_ci"]

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "build" / "docs"
PARALLEL = 2
LIMIT = 300.0
"""Seconds for one job."""


@dataclass(frozen=True)
class Job:
    """A program that writes one JSON file.

    Attributes:
        name: What its result is called.
        command: Arguments for this Python; ``{result}`` stands for the file to write.
        files: What the result depends on, besides abe and what is installed.
    """

    name: str
    command: Sequence[str]
    files: Sequence[Path]

    def result(self) -> Path:
        """Return where its result is kept: the name changes with all that it depends on."""
        digest = hashlib.sha256(_environment().encode())
        for path in [*source_files(ROOT / "abe"), *self.files]:
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
        return KEPT / f"{self.name}-{digest.hexdigest()[:16]}.json"

    def run(self) -> Path:
        """Run it, unless there is a result already.

        Raises:
            PluginError: If the program fails; the error holds what it said.
        """
        result = self.result()
        if result.exists():
            return result
        KEPT.mkdir(parents=True, exist_ok=True)
        draft = result.with_suffix(f".{os.getpid()}")
        command = [part.replace("{result}", str(draft)) for part in self.command]
        try:
            done = subprocess.run(  # noqa: S603 - this interpreter, our own arguments
                [sys.executable, *command],
                cwd=ROOT,
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=LIMIT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise PluginError(f"{self.name}: no end within {LIMIT:.0f} s") from None
        if done.returncode != 0:
            draft.unlink(missing_ok=True)
            raise PluginError(f"{self.name}: {done.stderr.strip() or done.stdout.strip()[-4000:]}")
        for older in KEPT.glob(f"{self.name}-{'?' * 16}.json"):
            older.unlink(missing_ok=True)
        draft.replace(result)
        return result


def run_all(jobs: Iterable[Job]) -> None:
    """Run jobs side by side."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        for _ in pool.map(Job.run, jobs):
            pass


def under_ci() -> bool:
    """Whether what is missing has to fail the build."""
    return bool(os.environ.get("CI"))


def clean_environment() -> Mapping[str, str]:
    """Return the environment without settings of the caller that would change a result."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith("ABE_TEST_")
        or not (name.startswith(("ABE_", "JUPYTER", "IPYTHON", "PYTEST_")) or name in _SETTINGS)
    }


_SETTINGS = {"QUEUE_BACKEND", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONWARNINGS"}


def source_files(folder: Path) -> list[Path]:
    """Return the files of a package."""
    found = (it for it in sorted(folder.rglob("*")) if it.is_file())
    return [path for path in found if "__pycache__" not in path.parts]


@cache
def _environment() -> str:
    installed = {f"{it.metadata['Name']}=={it.version}" for it in metadata.distributions()}
    return "\n".join([sys.version, *sorted(installed)])
