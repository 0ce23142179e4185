"""A bounded run of ``benchmarks/fault_redis.py``; the full one is run by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from abe_backend_redis.testing import RedisServer

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "fault_redis.py"


@pytest.mark.timeout(240)
@pytest.mark.skipif(not SCRIPT.exists(), reason="benchmarks/ is not part of the distribution")
def test_nothing_is_lost(server: RedisServer) -> None:
    # Only asked for so that the test is skipped where there is no server.
    assert server.port
    done = subprocess.run(
        [sys.executable, SCRIPT, "--restarts", "2", "--kills", "2", "--cuts", "5"],
        capture_output=True,
        text=True,
        timeout=200,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
