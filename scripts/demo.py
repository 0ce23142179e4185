"""Execute the quickstart notebook in a real kernel and show what it consumed."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "01_quickstart.ipynb"
OUTPUT = ROOT / "build" / "demo"
TAG = "demo-output"
KERNEL = "abe-demo"


def use_private_kernel(folder: Path) -> None:
    """Define a kernel that runs this interpreter, out of reach of kernels installed elsewhere."""
    spec = folder / "data" / "kernels" / KERNEL
    spec.mkdir(parents=True)
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
        JUPYTER_RUNTIME_DIR=str(folder / "runtime"),
    )
    for name in ("JUPYTER_PATH", "JUPYTER_CONFIG_PATH"):
        os.environ.pop(name, None)


def execute(notebook: NotebookNode) -> str | None:
    """Run every cell; return what went wrong, or None."""
    client = NotebookClient(
        notebook,
        kernel_name=KERNEL,
        timeout=120,
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        return f"{failed_cell(notebook)} raised {error.ename}: {error.evalue}"
    except CellTimeoutError:
        return f"{failed_cell(notebook)} did not end within {client.timeout} s"
    except DeadKernelError:
        return "the kernel died"
    return None


def failed_cell(notebook: NotebookNode) -> str:
    """Name the last cell that was started."""
    started = [
        (number, cell)
        for number, cell in enumerate(notebook.cells, start=1)
        if cell.cell_type == "code" and "execution" in cell.metadata
    ]
    number, cell = started[-1]
    return f"cell {number} ({cell.source.splitlines()[0]})"


def demo_outputs(notebook: NotebookNode) -> Iterator[tuple[str, str]]:
    """Yield the text of every tagged cell with the heading it stands under."""
    heading = "Output"
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            titles = re.findall(r"^#+\s+(.*\S)", cell.source, flags=re.MULTILINE)
            heading = titles[-1] if titles else heading
        elif TAG in cell.metadata.get("tags", []):
            yield heading, "\n".join(filter(None, map(plain_text, cell.outputs)))


def plain_text(output: NotebookNode) -> str:
    """Return the text form of one output of a cell."""
    if output.output_type == "stream":
        return str(output.text).rstrip() if output.name == "stdout" else ""
    return str(output.get("data", {}).get("text/plain", ""))


def render(notebook: NotebookNode) -> str:
    """Return the notebook as a page that needs nothing from the network."""
    resources = {"metadata": {"name": NOTEBOOK.stem}}
    page, _ = HTMLExporter().from_notebook_node(notebook, resources)
    return re.sub(r'<script src="https?:[^>]*></script>', "", page)


def main() -> int:
    """Run the demo and return its exit status."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory(prefix="abe-demo-") as folder:
        use_private_kernel(Path(folder))
        print(f"Executing {NOTEBOOK.relative_to(ROOT)} on Python {sys.version.split()[0]}")
        problem = execute(notebook)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, OUTPUT / NOTEBOOK.name)
    if problem is None and not any(text for _, text in demo_outputs(notebook)):
        problem = f"no cell tagged {TAG} printed anything"
    if problem is not None:
        print(f"{NOTEBOOK.relative_to(ROOT)}: {problem}", file=sys.stderr)
        return 1

    for heading, text in demo_outputs(notebook):
        print(f"\n{heading}\n{'-' * len(heading)}\n{text}")
    page = OUTPUT / NOTEBOOK.with_suffix(".html").name
    page.write_text(render(notebook), encoding="utf-8")
    print(f"\nThe executed notebook as a page: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
