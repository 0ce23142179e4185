"""Fail if a notebook was saved with outputs: they are produced when it is executed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Name every notebook with outputs and return the exit status."""
    status = 0
    for path in sorted((ROOT / "notebooks").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        if any(cell.get("outputs") or cell.get("execution_count") for cell in cells):
            print(f"{path.relative_to(ROOT)} has outputs; clear them before committing")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
