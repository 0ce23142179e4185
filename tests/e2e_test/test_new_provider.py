"""A new provider, as its author meets it: written, built, installed beside the core, tested."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat
import pytest

from abe.cli.scaffold import MAX_LENGTH

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = str(ROOT / "constraints.txt")
TUTORIAL = ROOT / "notebooks" / "05_provider_authoring.ipynb"
PROVIDER = "abe-backend-my-nats"


def run(command: Sequence[str | Path], folder: Path, **env: str) -> str:
    """Run a program that must succeed, without the settings of whoever runs the tests."""
    settings = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ABE_", "PYTEST_", "PYTHON")) and name != "QUEUE_BACKEND"
    }
    done = subprocess.run(
        command,
        cwd=folder,
        env={**settings, **env, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def generate(name: str, folder: Path) -> Path:
    """Create a provider with the command."""
    run([sys.executable, "-m", "abe", "new-provider", name, "-o", folder], ROOT)
    return folder / f"abe-backend-{name}"


def follow(tutorial: Path, workshop: Path) -> Path:
    """Do what the tutorial has its reader do for the provider: its command and its files."""
    project = workshop / "abe-backend-spool"
    names = {"workshop": workshop, "project": project, "package": project / "abe_backend_spool"}
    for cell in nbformat.read(tutorial, as_version=4).cells:
        first, _, rest = cell.source.partition("\n")
        if first.startswith("!"):
            run(shlex.split(first[1:].format(sys=sys, **names)), workshop)
        elif first.startswith("%%writefile "):
            path = first.removeprefix("%%writefile ").strip('"').format(**names)
            Path(path).write_text(f"{rest}\n", encoding="utf-8")
        elif cell.id == "fill-transport":
            exec(cell.source, dict(names))
    return project


def build(project: Path, wheels: Path) -> None:
    """Build the wheels of the core and of a provider."""
    options = ["-qq", "--no-deps", "--build-constraint", CONSTRAINTS, "--wheel-dir", str(wheels)]
    run([sys.executable, "-m", "pip", "wheel", *options, ROOT, project], wheels)


def install(provider: str, wheels: Path, environment: Path) -> Path:
    """Make an environment that holds the two wheels and what tests need; return its Python."""
    run([sys.executable, "-m", "venv", "--without-pip", environment], wheels)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    core, wheel = (next(wheels.glob(f"{it}-*.whl")) for it in ("abstract_backend", "abe_*"))
    requirements = [
        f"abstract-backend[testing] @ {core.as_uri()}",
        f"{provider}[test] @ {wheel.as_uri()}",
    ]
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-qq"]
    run([*pip, "-c", CONSTRAINTS, *requirements], wheels)
    return python


@pytest.mark.timeout(900)
def test_generated_provider(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is found, its README runs, and its own tests pass, all from wheels."""
    started = time.monotonic()
    project = generate("my-nats", tmp_path)
    wheels, away = tmp_path / "wheels", tmp_path / "away"
    wheels.mkdir()
    build(project, wheels)
    python = install(PROVIDER, wheels, tmp_path / "environment")
    installed = time.monotonic()

    # Away from the sources, so that only the wheels count.
    shutil.copytree(project / "tests", away / "tests")
    shutil.copy(project / "pyproject.toml", away)
    shutil.copy(ROOT / "scripts" / "ci" / "smoke_provider.py", away)
    smoke = run([python, "-I", "-W", "error", "smoke_provider.py", PROVIDER], away)
    assert smoke == f"{PROVIDER} registers my-nats\n"
    (found,) = json.loads(run([python, "-W", "error", "-c", DISCOVER], away))
    assert found == ["my-nats", PROVIDER, "0.1.0", "abe_backend_my_nats.backend:MyNatsBackend"]
    (example,) = re.findall(r"```python\n(.*?)```", (project / "README.md").read_text(), re.DOTALL)
    assert "orders.created" in run([python, "-W", "error", "-c", example], away)
    summary = run_tests(python, away)

    total = time.monotonic() - started
    with capsys.disabled():
        print(
            f"\nnew provider: {installed - started:.0f} s to generate, build and install,"
            f" {total:.0f} s in all; its tests: {summary}"
        )


@pytest.mark.timeout(900)
def test_authoring_tutorial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Followed literally, it yields a provider that passes the suite where only wheels are."""
    started = time.monotonic()
    workshop, wheels, away = (tmp_path / name for name in ("workshop", "wheels", "away"))
    workshop.mkdir()
    wheels.mkdir()
    project = follow(TUTORIAL, workshop)
    build(project, wheels)
    python = install("abe-backend-spool", wheels, tmp_path / "environment")
    installed = time.monotonic()

    shutil.copytree(project / "tests", away / "tests")
    shutil.copy(project / "pyproject.toml", away)
    (found,) = json.loads(run([python, "-W", "error", "-c", DISCOVER], away))
    assert found == [
        "spool",
        "abe-backend-spool",
        "0.1.0",
        "abe_backend_spool.backend:SpoolBackend",
    ]
    summary = run_tests(python, away)

    total = time.monotonic() - started
    with capsys.disabled():
        print(
            f"\nauthoring tutorial: {installed - started:.0f} s to follow, build and install,"
            f" {total:.0f} s in all; the provider's tests: {summary}"
        )


def run_tests(python: Path, folder: Path) -> str:
    """Run a provider's tests, the contract suite among them; return the line that sums them up."""
    summary = run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider"], folder).splitlines()[-1]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", summary)}
    assert counts["passed"] > 80
    assert "failed" not in counts
    return summary


DISCOVER = """
import json
import abe

backends = [it for it in abe.list_backends(check=True) if not it.builtin]
print(json.dumps([[it.name, it.distribution, it.version, it.target] for it in backends]))
"""


needs_ruff = pytest.mark.skipif(
    importlib.util.find_spec("ruff") is None, reason="ruff is not installed"
)


@needs_ruff
@pytest.mark.parametrize("name", ["x", "my-nats", "a" * MAX_LENGTH])
def test_generated_code_is_clean(tmp_path: Path, name: str) -> None:
    """Under the rules that it brings, whatever the length of its name."""
    project = generate(name, tmp_path)
    run([sys.executable, "-m", "ruff", "check", "--no-cache", "."], project)


@needs_ruff
def test_code_of_the_tutorial_is_clean(tmp_path: Path) -> None:
    """Under the same rules."""
    project = follow(TUTORIAL, tmp_path)
    run([sys.executable, "-m", "ruff", "check", "--no-cache", "."], project)
    run([sys.executable, "-m", "ruff", "format", "--check", "--no-cache", "."], project)
