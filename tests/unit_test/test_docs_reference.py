"""Pages written by hand say what the code does: variables, errors, folders."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import abe
from abe import errors
from abe.backends.message_queue.base.subscription import (
    outbox,
    stream,
)
from abe.backends.message_queue.base.subscription import (
    prefetch as pace,
)
from abe.backends.message_queue.base.subscription import (
    reconnect as connection,
)
from abe.backends.message_queue.base.subscription import (
    subscription as engine,
)
from abe.backends.message_queue.service.memory import MemoryBackend
from abe.sync import feed

ROOT = Path(__file__).resolve().parents[2]
SNIPPET = re.compile(r'^--8<-- "(.+):(\w+)"$', re.MULTILINE)


def section_of(snippet: re.Match[str]) -> str:
    """Return the part of another file that ``snippet`` includes."""
    file, name = snippet.groups()
    text = (ROOT / file).read_text(encoding="utf-8")
    return text.partition(f"[start:{name}]")[2].partition(f"[end:{name}]")[0]


ENVIRONMENT = SNIPPET.sub(
    section_of, (ROOT / "docs/reference/environment.md").read_text(encoding="utf-8")
)
ERRORS = (ROOT / "docs/reference/errors.md").read_text(encoding="utf-8")
STRUCTURE = (ROOT / "docs/explanation/project-structure.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs/explanation/architecture.md").read_text(encoding="utf-8")
SEMANTICS = (ROOT / "docs/explanation/delivery-semantics.md").read_text(encoding="utf-8")
FLOW = (ROOT / "docs/explanation/runtime-flow.md").read_text(encoding="utf-8")

VARIABLE = re.compile(r"\b(?:ABE_[A-Z0-9_]+|QUEUE_BACKEND)\b")
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", ENVIRONMENT, flags=re.MULTILINE))
BACKENDS = [title for title in SECTIONS if title.islower()]


def samples_of(backend: str) -> dict[str, str]:
    """Return the sample of every variable in the section of ``backend``."""
    rows = re.findall(r"^\| `(ABE_\w+)` \|.*\| `([^`]+)` \|$", SECTIONS[backend], re.MULTILINE)
    return dict(rows)


def texts_of(folders: Iterable[Path]) -> Iterator[str]:
    """Yield every string of the code in ``folders``, apart from docstrings."""
    for file in sorted(file for folder in folders for file in folder.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        docstrings = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or id(node) in docstrings:
                continue
            if isinstance(node.value, str):
                yield node.value


def variables_of(*patterns: str) -> set[str]:
    """Return the variables that code names; one that ends in ``_`` is put together there."""
    folders = [folder for pattern in patterns for folder in ROOT.glob(pattern)]
    assert folders
    return {name for text in texts_of(folders) for name in VARIABLE.findall(text)}


def without_page(names: set[str], page: set[str]) -> set[str]:
    """Return the names that the page leaves out."""
    return {
        name
        for name in names
        if not (any(n.startswith(name) for n in page) if name.endswith("_") else name in page)
    }


class TestEnvironment:
    """The page of environment variables."""

    def test_every_variable_read_is_on_the_page(self) -> None:
        read = variables_of("abe", "providers/*/abe_backend_*")
        read -= {"ABE_X_PREFIX"}  # an example in the text of an error
        assert {"QUEUE_BACKEND", "ABE_MEMORY_NAME", "ABE_SQLITE_PATH", "ABE_REDIS_TLS_"} <= read
        assert without_page(read, set(VARIABLE.findall(ENVIRONMENT))) == set()

    def test_every_variable_on_the_page_is_read(self) -> None:
        read = variables_of("abe", "providers/*/abe_backend_*")
        prefixes = tuple(name for name in read if name.endswith("_"))
        shown = {n for n in VARIABLE.findall(ENVIRONMENT) if not n.startswith("ABE_TEST_")}
        assert {n for n in shown - read if not (prefixes and n.startswith(prefixes))} <= {"ABE_"}

    def test_the_variables_of_tests_are_on_the_page(self) -> None:
        read = {n for n in variables_of("tests", "providers/*/tests") if n.startswith("ABE_TEST_")}
        shown = {n for n in VARIABLE.findall(ENVIRONMENT) if n.startswith("ABE_TEST_")}
        assert read - {"ABE_TEST_"} == shown - {"ABE_TEST_"}

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_samples_are_accepted(self, backend: str) -> None:
        samples = samples_of(backend)
        assert len(samples) > 2
        if backend not in {info.name for info in abe.list_backends()}:
            pytest.skip(f"the provider of {backend} is not installed")
        assert abe.load_backend(backend, env=samples) is not None


class TestErrors:
    """The page of errors."""

    @pytest.mark.parametrize("name", sorted({*errors.__all__} - {"AbeError", "Reject", "Retry"}))
    def test_each_has_a_section_and_its_bases(self, name: str) -> None:
        assert f"\n## {name}\n\n[abe.{name}][]" in ERRORS
        builtins = [base.__name__ for base in getattr(errors, name).__bases__[1:]]
        row = f"| [{name}](#{name.lower()}) | {', '.join(f'`{b}`' for b in builtins)} |"
        assert row in ERRORS

    @pytest.mark.parametrize("name", ["AbeError", "Reject", "Retry"])
    def test_the_others_are_linked(self, name: str) -> None:
        assert f"[abe.{name}]" in ERRORS


def test_every_path_of_the_tree_exists() -> None:
    """The tree in the page of the project's structure."""
    (tree,) = re.findall(r"```text\n(.*?)```", STRUCTURE, flags=re.DOTALL)
    folders: list[tuple[int, Path]] = []
    count = 0
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        while folders and folders[-1][0] >= indent:
            folders.pop()
        parent = folders[-1][1] if folders else ROOT
        for name in line[:28].split():
            path = parent / name
            assert path.exists(), line
            assert path.is_dir() == name.endswith("/"), line
            count += 1
            if path.is_dir():
                folders.append((indent, path))
    assert count > 30


def test_the_layers_are_those_that_the_linter_enforces() -> None:
    """Who may import whom, in the page of the architecture."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (layers,) = (
        contract["layers"]
        for contract in settings["tool"]["importlinter"]["contracts"]
        if contract["id"] == "layers"
    )
    enforced = [{m.strip(" ()").removeprefix("abe.") for m in layer.split("|")} for layer in layers]
    rows = re.findall(r"^\| \d \| (.+?) \|", ARCHITECTURE, flags=re.MULTILINE)
    names = [re.findall(r"`(.+?)`", row) for row in rows]
    shown = [{n.replace("…", "backends.message_queue") for n in row} for row in names]
    assert shown == enforced


def test_figures_are_those_of_the_code() -> None:
    """The numbers that the pages of explanation tell."""
    policy = abe.RetryPolicy(jitter=False)
    waits = ", ".join(f"{policy.delay(n):g}" for n in range(1, policy.max_attempts))
    figures = {
        f"{outbox.MAX_WAIT * 1000:g} ms for company, or until {outbox.MAX_BATCH} have": SEMANTICS,
        f"{pace.MAX_PREFETCH} messages ({MemoryBackend.max_prefetch} on `memory`)": SEMANTICS,
        f"`max_hold` ({stream.MAX_HOLD / 60:g} minutes)": SEMANTICS,
        f"acks for {engine.CLOSE_TIMEOUT:g} s while the stream closes": SEMANTICS,
        f"for {stream.MAX_HOLD / 60:g} minutes at most": FLOW,
        f"allows {policy.max_attempts} attempts, waiting {waits} seconds": FLOW,
        f"up to {feed.BATCH} messages in one hop": FLOW,
        f"every {feed.ACK_INTERVAL * 1000:g} ms in bursts": FLOW,
        f"they set out up to {feed.ACK_INTERVAL * 1000:g} ms later": SEMANTICS,
        f"{connection.FIRST_DELAY:g} s, doubling to {connection.MAX_DELAY:g} s": FLOW,
    }
    missing = [text for text, page in figures.items() if text not in " ".join(page.split())]
    assert not missing
