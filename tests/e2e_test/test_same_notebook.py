"""The claim of "The same notebook on Redis": but for the connection it is the quickstart."""

from __future__ import annotations

from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
DIFFERENT = {"discover", "connect", "end"}
"""Cells that choose the backend, and let go of it."""


def code_cells(name: str) -> dict[str, str]:
    """Return the source of every code cell of a notebook, by id."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    return {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "code"}


def test_the_same_notebook_on_redis() -> None:
    quickstart = code_cells("01_quickstart")
    ours = code_cells("06_same_notebook_on_redis")
    business = {name: text for name, text in quickstart.items() if name not in DIFFERENT}
    copied = {name: text for name, text in ours.items() if name in business}
    assert list(copied.items()) == list(business.items()), (
        "copy the cells of 01_quickstart.ipynb to 06_same_notebook_on_redis.ipynb as they are"
    )
