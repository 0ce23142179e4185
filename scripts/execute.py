"""Execute one notebook in a fresh kernel: ``python -m scripts.execute NOTEBOOK RESULT``."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

__all__ = ["execute"]

KERNEL = "abe-notebook"
LIMIT = 60
"""Seconds for one cell."""


def execute(source: Path) -> tuple[NotebookNode, str]:
    """Run every cell, in a folder of its own, and keep out what else is installed.

    Args:
        source: The notebook; it is not changed.

    Returns:
        The notebook with its outputs, and what went wrong, "" if nothing.
    """
    notebook = nbformat.read(source, as_version=4)
    with tempfile.TemporaryDirectory(prefix="abe-notebook-") as name:
        folder = Path(name).resolve()
        isolate(folder)
        wrong = problem(notebook, folder)
    text = nbformat.writes(notebook)
    for place, shown in (("tmp", "/tmp"), ("work", "/home/you/notebooks")):  # noqa: S108
        text = text.replace(str(folder / place), shown)
    return nbformat.reads(text, as_version=4), wrong


def isolate(folder: Path) -> None:
    """Define a kernel that runs this interpreter, and keep all files in ``folder``."""
    spec = folder / "data" / "kernels" / KERNEL
    for path in (spec, folder / "work", folder / "tmp"):
        path.mkdir(parents=True)
    # The level hides a warning about unencrypted TCP: the connection stays on the loopback.
    launch = ["-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
    argv = [sys.executable, "-Xfrozen_modules=off", *launch]
    (spec / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": KERNEL, "language": "python"})
    )
    os.environ.update(
        IPYTHONDIR=str(folder / "ipython"),
        JUPYTER_CONFIG_DIR=str(folder / "config"),
        JUPYTER_DATA_DIR=str(folder / "data"),
        JUPYTER_PLATFORM_DIRS="1",
        JUPYTER_RUNTIME_DIR=str(folder / "runtime"),
        NO_COLOR="1",
        TMPDIR=str(folder / "tmp"),
    )
    for name in ("JUPYTER_PATH", "JUPYTER_CONFIG_PATH"):
        os.environ.pop(name, None)
    tempfile.tempdir = None


def problem(notebook: NotebookNode, folder: Path) -> str:
    """Run every cell; return what went wrong, "" if nothing."""
    client = NotebookClient(
        notebook,
        kernel_name=KERNEL,
        timeout=LIMIT,
        resources={"metadata": {"path": str(folder / "work")}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        return f"{failed_cell(notebook)} raised {error.ename}: {error.evalue}"
    except CellTimeoutError:
        return f"{failed_cell(notebook)} did not end within {LIMIT} s"
    except DeadKernelError:
        return f"the kernel died in {failed_cell(notebook)}"
    return ""


def failed_cell(notebook: NotebookNode) -> str:
    """Name the last cell that was started."""
    started = [
        (number, cell)
        for number, cell in enumerate(notebook.cells, start=1)
        if cell.cell_type == "code" and "execution" in cell.metadata
    ]
    if not started:
        return "the first cell"
    number, cell = started[-1]
    return f"cell {number} ({cell.source.splitlines()[0]})"


def main() -> int:
    """Execute, write the notebook with its outputs, and return the exit status."""
    source, result = map(Path, sys.argv[1:])
    notebook, wrong = execute(source)
    if wrong:
        print(f"{source.name}: {wrong}", file=sys.stderr)
        return 1
    nbformat.write(notebook, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
