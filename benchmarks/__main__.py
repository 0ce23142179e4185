"""Runs every benchmark and writes the page that the documentation shows.

python benchmarks [--quick] [--rounds N]
python benchmarks calls          counts the calls inside abe that a message costs
python benchmarks alternate DIR  CPU time of every path beside that of the checkout in DIR
python benchmarks scale          cost of a message as backlog, keys, groups and consumers grow
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "reference" / "benchmarks.md"
BENCHMARKS = ("core", "notebook", "sqlite", "redis_streams", "sqs")
HEAD = """---
search: { boost: 0.3 }
---

# Benchmarks

Performance of peers side by side, in one run, on the machine named in each section: only the ratios
mean something elsewhere. In a table they are of the medians; the sentence below it tells the median
of the ratios in each round, which can differ a little. Repeat them with `make bench`.
"""


def main() -> int:
    """Run all; the page is written only if all of them ran."""
    if sys.argv[1:2] in (["calls"], ["alternate"], ["scale"]):
        name, *rest = sys.argv[1:]
        command = [sys.executable, str(HERE / f"{name}.py"), *rest]
        return subprocess.run(command, check=False).returncode
    page = [HEAD]
    for name in BENCHMARKS:
        command = [sys.executable, str(HERE / f"{name}.py"), *sys.argv[1:]]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        print(run.stdout)
        if run.returncode:
            return run.returncode
        page.append("\n".join(_lower(line) for line in run.stdout.splitlines()) + "\n")
    if "--quick" not in sys.argv:
        PAGE.write_text("\n".join(page), encoding="utf-8")
    return 0


def _lower(line: str) -> str:
    """Put a heading one level down, below the page's own."""
    return f"#{line}" if line.startswith("#") else line


if __name__ == "__main__":
    sys.exit(main())
