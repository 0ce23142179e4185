"""What the README shows runs as it stands there and prints what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_the_code_prints_what_its_comments_say(code: str, tmp_path: Path) -> None:
    """Each Python block, in a process of its own, with warnings as errors."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if not k.startswith(("ABE_", "QUEUE_"))},
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    promised = re.findall(r"# (orders\..*)", code)
    assert promised
    assert run.stdout.splitlines() == promised
