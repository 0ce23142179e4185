"""The checks, each defined once; `make`, `.ci/run` and every other runner call these sessions."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
PYTEST = ("-m", "pytest", "-n", "auto", "--dist", "worksteal")
# Inside the project's .venv everything is installed already; elsewhere nox makes an environment.
BACKEND = "none" if Path(sys.prefix).resolve() == ROOT / ".venv" else "venv"

nox.needs_version = ">=2025.5"
nox.options.download_python = "never"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "typing", "wheel", "docs", "tests"]


def interpreters() -> list[str]:
    """Return the fitting Python versions of this machine, within reach of nox, newest first."""
    command = ["sh", str(ROOT / "scripts" / "find_python.sh"), "--all"]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    found = dict(line.split(" ", 1) for line in lines)
    folders = [str(Path(path).parent) for path in found.values()]
    os.environ["PATH"] = os.pathsep.join([*folders, os.environ["PATH"]])
    return list(found)


def prepare(session: nox.Session, *groups: str, providers: str = "none") -> None:
    """Install the project, providers and the named dependency groups, unless they are there."""
    if session.venv_backend == "none":
        return
    session.install("-c", "constraints.txt", "pip")
    options = [option for group in groups for option in ("--group", group)]
    for file in sorted(ROOT.glob(f"{providers}/pyproject.toml")):
        options += ["-e", str(file.parent.relative_to(ROOT))]
    session.install("-c", "constraints.txt", "-e", ".[all]", *options)


def tool(session: nox.Session, name: str) -> str:
    """Return the path of a program of the session's environment."""
    folder = session.bin_paths[0] if session.bin_paths else Path(sys.executable).parent
    return str(Path(folder) / name)


def run(session: nox.Session, *arguments: str, **env: str) -> None:
    """Run the session's Python."""
    session.run(tool(session, "python"), *arguments, external=True, env=env)


def run_script(session: nox.Session, name: str, *arguments: str) -> None:
    """Run a shell script that works with the session's Python."""
    env = {"PYTHON": tool(session, "python")}
    session.run("bash", f"scripts/ci/{name}", *arguments, external=True, env=env)


@nox.session(venv_backend=BACKEND)
def lint(session: nox.Session) -> None:
    """Style, import rules, structure, docstrings, spelling, scripts, workflows, notebooks."""
    prepare(session, "lint", providers="providers/*")
    run(session, "-m", "ruff", "check", ".")
    # Private names of the core are not for providers; the rule is still a preview.
    run(session, "-m", "ruff", "check", "--preview", "--select=PLC2701", "providers")
    run(session, "-m", "ruff", "format", "--check", ".")
    session.run(tool(session, "lint-imports"), "--no-logo", external=True)
    session.run(tool(session, "codespell"), external=True)
    shellcheck = tool(session, "shellcheck")
    session.run(shellcheck, ".ci/run", *map(str, Path("scripts").rglob("*.sh")), external=True)
    session.run(tool(session, "actionlint"), "-shellcheck", shellcheck, external=True)
    for check in ("docstrings", "notebooks", "repository", "structure"):
        run(session, f"scripts/ci/check_{check}.py")


@nox.session(venv_backend=BACKEND)
def typing(session: nox.Session) -> None:
    """Types of the project, and of an application that uses the built wheel."""
    prepare(session, "typing", providers="providers/*")
    run(session, "-m", "mypy")
    for file in sorted(ROOT.glob("providers/*/pyproject.toml")):
        run(session, "-m", "mypy", str(file.parent.relative_to(ROOT)))
    run_script(session, "type_check.sh")


@nox.session(venv_backend=BACKEND)
def wheel(session: nox.Session) -> None:
    """Sdists and wheels of the core and the providers, or of a folder given, and their use."""
    prepare(session, "dev")
    run_script(session, "verify.sh", *session.posargs)


@nox.session(venv_backend=BACKEND)
def docs(session: nox.Session) -> None:
    """The documentation, where every warning is an error; says what it consists of."""
    prepare(session, "docs", providers="providers/*")
    run(session, "scripts/ci/check_docs.py")
    run(session, "-m", "doctest", *map(str, Path("docs/.hooks").glob("*.py")))
    started = time.monotonic()
    run(session, "-m", "mkdocs", "build", "--strict", NO_MKDOCS_2_WARNING="1")
    run(session, "-m", "scripts.docs.figures", "site", f"{time.monotonic() - started:.1f}")


@nox.session(venv_backend=BACKEND)
def site(session: nox.Session) -> None:
    """The documentation in a real browser: links, requests, accessibility, search."""
    prepare(session, "docs", providers="providers/*")
    run(session, "-m", "pytest", "tests/e2e_test", "-k", "test_site", *session.posargs)


@nox.session(venv_backend=BACKEND)
def matrix(session: nox.Session) -> None:
    """Run the contract suite on every backend, or those named; renews the provider matrix."""
    prepare(session, "docs", providers="providers/*")
    run(session, "docs/.hooks/matrix.py", *session.posargs)


@nox.session(venv_backend="venv", python=interpreters())
def tests(session: nox.Session) -> None:
    """All tests, once for each interpreter found."""
    prepare(session, "test", providers="providers/*")
    run(session, *PYTEST, *session.posargs)


@nox.session(venv_backend=BACKEND)
def model(session: nox.Session) -> None:
    """Play random histories on every backend: `-- --seeds 200`, which is also the default."""
    prepare(session, "test", providers="providers/*")
    options = session.posargs or ["--seeds", "200"]
    env = {"ABE_TEST_SEEDS": options[1]}
    run(session, "-m", "pytest", "-k", "Histories", "--timeout", "3600", *options[2:], **env)


@nox.session(venv_backend=BACKEND)
def distribution(session: nox.Session) -> None:
    """All tests, the contract suite among them; of the core, or of a folder given."""
    (folder,) = session.posargs or ["."]
    if folder == ".":
        prepare(session, "test")
        run(session, *PYTEST, "tests")
        return
    prepare(session, "test", providers=folder)
    run(session, *PYTEST, folder)


@nox.session(venv_backend=BACKEND)
def notebooks(session: nox.Session) -> None:
    """Only the tests that execute notebooks."""
    prepare(session, "test", providers="providers/*")
    run(session, *PYTEST, "-k", "notebook", *session.posargs)


@nox.session(venv_backend=BACKEND)
def bench(session: nox.Session) -> None:
    """Every benchmark beside its peers; writes the page that the documentation shows."""
    prepare(session, "bench", providers="providers/*")
    run(session, "benchmarks", *session.posargs)


@nox.session(venv_backend=BACKEND)
def demo(session: nox.Session) -> None:
    """The quickstart notebook in a real kernel."""
    prepare(session, "demo")
    run(session, "-m", "scripts.demo")
