"""Say what a built documentation consists of: ``python -m scripts.docs.figures FOLDER SECONDS``."""

from __future__ import annotations

import json
import statistics
import sys
import zlib
from pathlib import Path

from scripts.docs.blocks import collect

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Print the figures of the site in a folder."""
    folder, seconds = Path(sys.argv[1]), sys.argv[2]
    pages = sorted(path for path in folder.rglob("*.html") if path.name != "404.html")
    sizes = {path: path.stat().st_size for path in pages}
    largest = max(pages, key=sizes.__getitem__)
    notebooks = [path for path in (ROOT / "notebooks").glob("*.ipynb") if _executed(folder, path)]
    blocks = collect(ROOT)
    executed = sum(block.runs for block in blocks)
    for name, figure in (
        ("build time", f"{seconds} s"),
        ("pages", f"{len(pages)}"),
        (
            "HTML of a page",
            f"median {_kilobytes(statistics.median(sizes.values()))}, largest"
            f" {_kilobytes(sizes[largest])} ({largest.parent.relative_to(folder)})",
        ),
        ("site", _kilobytes(sum(it.stat().st_size for it in folder.rglob("*") if it.is_file()))),
        ("symbols", f"{len(_symbols(folder / 'objects.inv')):,}"),
        ("notebooks", f"{len(notebooks)}, with {sum(map(_cells, notebooks))} code cells, executed"),
        ("code blocks", f"{len(blocks)} in prose, {executed} of them executed by the tests"),
    ):
        print(f"{name + ':':<20}{figure}")


def _symbols(inventory: Path) -> set[str]:
    body = inventory.read_bytes().split(b"\n", 4)[4]
    return {line.split(" ")[0] for line in zlib.decompress(body).decode().splitlines()}


def _executed(folder: Path, notebook: Path) -> bool:
    page = folder / "tutorials" / notebook.stem / "index.html"
    return 'class="nb-output"' in page.read_text(encoding="utf-8")


def _cells(notebook: Path) -> int:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return sum(cell["cell_type"] == "code" for cell in cells)


def _kilobytes(size: float) -> str:
    return f"{size / 1000:,.0f} kB"


if __name__ == "__main__":
    main()
