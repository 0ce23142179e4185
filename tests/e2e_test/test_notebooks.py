"""Every notebook runs from top to bottom in a fresh kernel, and is committed without outputs."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from scripts import demo

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(
    path for path in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts
)
# A notebook that needs a provider is executed by the tests of that provider.
OURS = [path for path in NOTEBOOKS if "redis" not in path.stem]


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_committed_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert cell.get("execution_count") is None
        assert not cell.get("outputs")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_says_what_is_next_and_links_to_what_there_is(path: Path) -> None:
    texts = [
        cell.source
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "markdown"
    ]
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", "\n".join(texts))
    missing = [link for link in links if not (path.parent / link).is_file()]
    assert missing == []
    assert texts[-1].startswith("## What next\n")
    assert re.search(r"\]\((?:\w+\.ipynb|\.\./docs/)", texts[-1])


@pytest.mark.timeout(180)
@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_it_runs(path: Path, jupyter: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="abe-test",
        timeout=120,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    assert list(tmp_path.iterdir()) == []
    shown = [
        output
        for cell in notebook.cells
        if "demo-output" in cell.metadata.get("tags", [])
        for output in cell.outputs
    ]
    if path.stem == "01_quickstart":
        assert any("tea" in output.get("data", {}).get("text/plain", "") for output in shown)
        page = demo.render(notebook)
        assert re.search(r'<(?:script|img|iframe|link)\b[^>]*(?:src|href)="https?:', page) is None
        links = [it for it in re.findall(r'<a href="([^":#]+)', page) if it]
        assert len(links) > 3
        assert [it for it in links if not (demo.OUTPUT / it).resolve().is_file()] == []
