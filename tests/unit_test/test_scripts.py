"""The programs that the checks run, on projects made for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "ci" / "release_target.py"


class TestReleaseTarget:
    """scripts/ci/release_target.py on a project with one provider."""

    @pytest.fixture
    def script(self, tmp_path: Path) -> Path:
        for folder, version in ((".", "1.2.0"), ("providers/abe-backend-redis", "0.3.1rc1")):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / "pyproject.toml").touch()
            (tmp_path / folder / "CHANGELOG.md").write_text(f"## [Unreleased]\n## [{version}]\n")
        copy = tmp_path / "scripts" / "ci" / SCRIPT.name
        copy.parent.mkdir(parents=True)
        copy.write_bytes(SCRIPT.read_bytes())
        return copy

    @staticmethod
    def run(script: Path, argument: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", str(script), argument]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    def test_the_core(self, script: Path) -> None:
        done = self.run(script, "v1.2.0")
        assert done.stdout.split() == ["name=abstract-backend", "folder=.", "version=1.2.0"]

    def test_a_provider(self, script: Path) -> None:
        done = self.run(script, "abe-backend-redis-v0.3.1rc1")
        assert done.stdout.split() == [
            "name=abe-backend-redis",
            "folder=providers/abe-backend-redis",
            "version=0.3.1rc1",
        ]

    def test_the_list_of_providers(self, script: Path) -> None:
        assert self.run(script, "--providers").stdout == (
            'folders=["providers/abe-backend-redis"]\n'
        )

    @pytest.mark.parametrize(
        ("tag", "reason"),
        [
            ("v1.2", "no section '## [1.2]'"),
            ("v1.2.0.", "neither"),
            ("v1.2.0;x", "neither"),
            ("vnext", "neither"),
            ("redis-v1.2.0", "neither"),
            ("abe-backend-nats-v1.2.0", "there is no providers/abe-backend-nats"),
            ("abe-backend-../..-v1.2.0", "neither"),
        ],
    )
    def test_other_tags_release_nothing(self, script: Path, tag: str, reason: str) -> None:
        done = self.run(script, tag)
        assert (done.returncode, done.stdout) == (1, "")
        assert reason in done.stderr
