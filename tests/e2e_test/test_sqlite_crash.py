"""SIGKILL at any moment loses nothing that ``publish`` had returned for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "crash_sqlite.py"
PUBLISHED = 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_nothing_is_lost_when_producer_and_consumers_are_killed(tmp_path: Path) -> None:
    """Ten rounds, and more until enough was published; the script also does a hundred."""
    options = ["--rounds", "10", "--published", str(PUBLISHED), "--json", "--dir", str(tmp_path)]
    process = subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert process.stdout, process.stderr
    found = json.loads(process.stdout)
    print(found)
    assert found["kills"] == 5 * found["rounds"] >= 50
    assert found["published"] >= PUBLISHED
    assert found["received"] >= found["published"]
    assert (found["lost"], found["half_bulks"], found["after_settled"]) == (0, 0, 0), found
    assert process.returncode == 0, process.stderr
