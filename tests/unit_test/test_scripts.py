"""The programs that the checks run, on projects made for them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nbformat
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


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("mkdocs", reason="mkdocs, which the hooks are for, is not installed")
    monkeypatch.syspath_prepend(str(ROOT / "docs" / ".hooks"))
    return importlib.import_module("jobs")


def test_a_result_is_kept_until_something_changes(
    jobs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "ROOT", tmp_path)
    monkeypatch.setattr(jobs, "KEPT", tmp_path / "kept")
    (tmp_path / "abe").mkdir()
    library, given, log = (tmp_path / name for name in ("abe/x.py", "given", "log"))
    library.write_text("1")
    given.write_text("1")
    program = f"import sys; open({str(log)!r}, 'a').write('x'); open(sys.argv[1], 'w')"
    job = jobs.Job("name", ["-c", program, "{result}"], [given])
    assert job.run() == job.run()
    assert log.read_text() == "x"
    given.write_text("2")
    job.run()
    library.write_text("2")
    job.run()
    assert log.read_text() == "xxx"
    failing = jobs.Job("name", ["-c", "raise SystemExit('so it is')"], [given, library])
    with pytest.raises(Exception, match="name: so it is"):
        failing.run()


@pytest.mark.timeout(180)
def test_a_failing_cell_is_named(tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell(text) for text in ("x = 0", "1 / x\n")]
    source = tmp_path / "broken.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), source)
    command = [sys.executable, "-m", "scripts.execute", str(source), str(tmp_path / "out")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 1
    told = done.stderr.splitlines()[-1]
    assert told == "broken.ipynb: cell 2 (1 / x) raised ZeroDivisionError: division by zero"
    assert not (tmp_path / "out").exists()
