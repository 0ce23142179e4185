"""A magic that fails makes every runner of notebooks fail."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

pytestmark = pytest.mark.timeout(180)

FAILURES = {
    "a refused payload": '%abe_publish k {"a": {{ {1} }}}',
    "a wrong argument": "%abe_consume --nmber 1",
    "an unknown backend": "%abe_connect nowhere",
    "a wrong cell magic": "%%abe_handler\nx = 1",
    "an empty purge": "%abe_purge",
    "no dead letters to speak of": "%abe_dead rplay",
    "a contract of nothing": "%abe_contract nowhere",
}
GOOD = ["%load_ext abe\nq = %abe_connect memory", '%abe_publish k {"n": 1}', "%abe_consume -n 1"]


def write(path: Path, *cells: str) -> Path:
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
        metadata={"kernelspec": {"name": "abe-test", "display_name": "abe-test"}},
    )
    nbformat.write(notebook, path)
    return path


@pytest.mark.parametrize("cell", FAILURES.values(), ids=FAILURES)
def test_nbclient_fails(jupyter: Path, tmp_path: Path, cell: str) -> None:
    notebook = nbformat.read(write(tmp_path / "a.ipynb", GOOD[0], cell), as_version=4)
    with pytest.raises(CellExecutionError):
        NotebookClient(notebook, kernel_name="abe-test", timeout=60).execute()


def execute(path: Path) -> list[str]:
    program = Path(sys.executable).with_name("jupyter-execute")
    return [sys.executable, str(program), str(path)]


def papermill(path: Path) -> list[str]:
    return [sys.executable, "-m", "papermill", "--no-progress-bar", str(path), str(path) + ".out"]


@pytest.mark.parametrize("command", [execute, papermill])
def test_programs_fail(jupyter: Path, tmp_path: Path, command: Callable[[Path], list[str]]) -> None:
    def run(name: str, *cells: str) -> subprocess.CompletedProcess[str]:
        path = write(tmp_path / name, *cells)
        return subprocess.run(
            command(path), env=dict(os.environ), capture_output=True, text=True, check=False
        )

    good = run("good.ipynb", *GOOD)
    assert good.returncode == 0, good.stderr
    error = run("error.ipynb", GOOD[0], FAILURES["a refused payload"])
    assert error.returncode != 0
    assert "set is not JSON" in error.stdout + error.stderr
    usage = run("usage.ipynb", GOOD[0], FAILURES["a wrong argument"])
    assert usage.returncode != 0
    if command is execute:  # papermill leaves it in the notebook that it writes
        assert "did you mean --number?" in usage.stderr
