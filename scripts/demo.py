"""Execute the quickstart notebook in a real kernel and show what it consumed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from scripts.execute import execute

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "01_quickstart.ipynb"
OUTPUT = ROOT / "build" / "demo"
TAG = "demo-output"


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
    """Return the notebook as a page that needs nothing from the network, with links that work."""
    resources = {"metadata": {"name": NOTEBOOK.stem}}
    page, _ = HTMLExporter().from_notebook_node(notebook, resources)
    page = re.sub(r'<script [^>]*src="https?:[^>]*>\s*</script>', "", page)
    place = os.path.relpath(NOTEBOOK.parent, OUTPUT)
    return re.sub(r'(<a href=")(?=[\w.][^:"]*")', rf"\1{place}/", page)


def main() -> int:
    """Run the demo and return its exit status."""
    print(f"Executing {NOTEBOOK.relative_to(ROOT)} on Python {sys.version.split()[0]}")
    notebook, problem = execute(NOTEBOOK)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, OUTPUT / NOTEBOOK.name)
    if not problem and not any(text for _, text in demo_outputs(notebook)):
        problem = f"no cell tagged {TAG} printed anything"
    if problem:
        print(f"{NOTEBOOK.relative_to(ROOT)}: {problem}", file=sys.stderr)
        return 1

    for heading, text in demo_outputs(notebook):
        print(f"\n{heading}\n{'-' * len(heading)}\n{text}")
    page = OUTPUT / NOTEBOOK.with_suffix(".html").name
    page.write_text(render(notebook), encoding="utf-8")
    print(f"\nThe executed notebook as a page: {page}")
    print("Try it yourself: .venv/bin/ipython, then %load_ext abe")
    return 0


if __name__ == "__main__":
    sys.exit(main())
