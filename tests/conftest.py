"""Fixtures that every suite shares."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("tests.support")

GROUP = "abe.backends.message_queue"
QUICK = ("tests/unit_test/", "tests/contract_test/backends/message_queue/test_memory.py")
MAX_WORKERS = 8
EXAMPLES = int(os.environ.get("ABE_TEST_EXAMPLES", "1"))
"""Multiplies the random examples; they are the same in every run unless there are more."""

settings.register_profile(
    "abe", max_examples=50 * EXAMPLES, derandomize=EXAMPLES == 1, deadline=None, database=None
)
settings.load_profile("abe")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return one worker more than there are cores: many tests wait for other processes."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(cores + 1, MAX_WORKERS)


def pytest_configure(config: pytest.Config) -> None:
    """Collect nothing but the quick tests where these are all that is wanted."""
    if config.option.markexpr == "quick" and config.args_source is config.ArgsSource.TESTPATHS:
        config.args = [str(config.rootpath / path) for path in QUICK]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make test ARGS="-m quick"` runs."""
    for item in items:
        if item.nodeid.startswith(QUICK):
            item.add_marker("quick")


@pytest.fixture(autouse=True, scope="session")
def _environment_of_the_caller_does_not_matter() -> Iterator[None]:
    """Forget which backend the developer who runs the tests has configured."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name == "QUEUE_BACKEND" or re.match(r"ABE_(?!TEST_)", name):
                patch.delenv(name)
        yield


class FakeDistribution:
    """Installs tiny distributions for the duration of one test: real files, found by real means.

    Args:
        root: Where they are written.
        patch: Undoes the change of ``sys.path``.
    """

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self._root = root
        self._patch = patch
        self.names: set[str] = set()
        self.packages: set[str] = set()

    def __call__(
        self,
        name: str,
        entry_points: Mapping[str, str] | None = None,
        modules: Mapping[str, str] | None = None,
        *,
        version: str = "1.0.0",
        older: Mapping[str, str] | None = None,
        folder: str = "site-packages",
    ) -> Path:
        """Install a distribution.

        Args:
            name: Its name.
            entry_points: What it registers: backend name to ``"package.module:Class"``.
            modules: Its files: relative path to source. Missing ``__init__.py`` are added.
            version: Its version.
            older: What it registers in the older entry point group.
            folder: The folder on ``sys.path``, relative to the test's own; created if new.

        Returns:
            That folder.
        """
        site = self._root / folder
        info = site / f"{re.sub('[-_.]+', '_', name)}-{version}.dist-info"
        files = {
            info / "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            info / "entry_points.txt": _sections({GROUP: entry_points, f"{GROUP}.service": older}),
            **{site / path: source for path, source in (modules or {}).items()},
        }
        for path in tuple(files):
            for parent in path.relative_to(site).parents[:-1]:
                if path.suffix == ".py":
                    files.setdefault(site / parent / "__init__.py", "")
        record = "".join(f"{path.relative_to(site).as_posix()},,\n" for path in files)
        for path, text in {**files, info / "RECORD": record}.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        self.names.add(name)
        self.packages |= {Path(path).parts[0].removesuffix(".py") for path in modules or {}}
        if str(site) not in sys.path:
            self._patch.syspath_prepend(site)
        return site


def _sections(groups: Mapping[str, Mapping[str, str] | None]) -> str:
    lines: list[str] = []
    for group, entry_points in groups.items():
        if entry_points:
            lines += [f"[{group}]", *(f"{k} = {v}" for k, v in entry_points.items()), ""]
    return "\n".join(lines)


@pytest.fixture
def fake_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeDistribution]:
    """Install fake distributions on disk; see `FakeDistribution`."""
    fake = FakeDistribution(tmp_path, monkeypatch)
    yield fake
    for module in list(sys.modules):
        if module.partition(".")[0] in fake.packages:
            del sys.modules[module]
    importlib.invalidate_caches()


@pytest.fixture(scope="session")
def providers() -> list[metadata.Distribution]:
    """The providers of the environment that runs the tests; to look through all takes a while."""
    return [
        found
        for found in metadata.distributions()
        if GROUP in (found.read_text("entry_points.txt") or "")
        and found.metadata["Name"] != "abstract-backend"
    ]


@pytest.fixture
def no_providers(
    providers: list[metadata.Distribution], fake_distribution: FakeDistribution
) -> None:
    """Hide the providers of the environment that runs the tests; abe's own backends stay.

    An installed distribution is hidden by one of the same name that comes first on ``sys.path``
    and registers nothing.
    """
    for provider in providers:
        if provider.metadata["Name"] not in fake_distribution.names:
            fake_distribution(provider.metadata["Name"], version=provider.version)
