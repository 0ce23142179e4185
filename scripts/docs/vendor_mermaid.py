"""Copy from mermaid's npm package what the site needs to draw diagrams, into ``docs/assets``.

``npm pack mermaid@VERSION``, unpack it, then ``vendor_mermaid.py package``. Only flowcharts,
sequence, state and class diagrams are kept: the rest is twice as much.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

TARGET = Path(__file__).resolve().parents[2] / "docs" / "assets" / "mermaid"
DIAGRAMS = "flowDiagram|sequenceDiagram|stateDiagram|classDiagram|dagre|sizeCapture"


def needed(path: Path, found: set[Path]) -> set[Path]:
    """Return the modules that one imports, itself included."""
    if path not in found:
        found.add(path)
        text = path.read_text(encoding="utf-8")
        static = re.findall(r'(?:from|import)\s*"(\.[^"]+\.mjs)"', text)
        lazy = re.findall(rf'import\("(\.[^"]*/(?:{DIAGRAMS})-[^"]+\.mjs)"\)', text)
        for name in [*static, *lazy]:
            needed((path.parent / name).resolve(), found)
    return found


def main() -> None:
    """Replace what is there."""
    package = Path(sys.argv[1]).resolve()
    folder = package / "dist"
    shutil.rmtree(TARGET, ignore_errors=True)
    for path in needed(folder / "mermaid.esm.min.mjs", set()):
        target = TARGET / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    shutil.copyfile(package / "LICENSE", TARGET / "LICENSE")
    version = json.loads((package / "package.json").read_text(encoding="utf-8"))["version"]
    (TARGET / "VERSION").write_text(f"mermaid {version}, part of its npm package\n")


if __name__ == "__main__":
    main()
