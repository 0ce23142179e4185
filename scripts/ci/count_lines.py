"""Count the lines of Python that are not blank, by package: ``count_lines.py [REVISION…]``."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = re.compile(
    r"(?P<provider>providers/[\w-]+)/(?P<tests>tests/|\w+/(?:testing|moto_server)\.)?"
    r"|(?P<package>tests/selftest|tests|abe(?:/backends/message_queue)?(?:/\w+(?=/))?)/"
)


def package_of(path: str) -> str:
    """Return the package of a file; a provider's tests, and the servers they need, are one more."""
    match = PACKAGE.match(path)
    if match is None:
        return ""
    return match["package"] or match["provider"] + ("/tests" if match["tests"] else "")


def count(revision: str) -> Counter[str]:
    """Return the number of lines at a revision, by package."""
    command = ["git", "grep", "-c", "-e", "[^[:space:]]", revision, "--", "*.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603
    counts: Counter[str] = Counter()
    for line in done.stdout.splitlines():
        path, _, number = line.removeprefix(f"{revision}:").rpartition(":")
        package = package_of(path)
        counts[package] += int(number)
        if package.startswith("abe") and package != "abe/testing":
            counts["abe without testing"] += int(number)
    del counts[""]
    return counts


def main(revisions: list[str]) -> None:
    """Print one column for each revision."""
    counts = [count(revision) for revision in revisions]
    print(f"{'package':36}", *(f"{revision[:9]:>9}" for revision in revisions))
    for package in sorted(set().union(*counts)):
        print(f"{package:36}", *(f"{found[package]:>9,}" for found in counts))


if __name__ == "__main__":
    main(sys.argv[1:] or ["HEAD"])
