"""The workflows call what is defined elsewhere, and may do no more than they need."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SCRIPT = ROOT / "scripts" / "ci" / "release_target.py"


def workflow(path: Path) -> dict[str, Any]:
    """Return a workflow; ``on`` is text, not the YAML 1.1 boolean."""
    text = re.sub(r"^on:", '"on":', path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    data: dict[str, Any] = yaml.safe_load(text)
    return data


def steps(data: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in data["jobs"].values() for step in job.get("steps", [])]


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
class TestEveryWorkflow:
    """What holds for each file."""

    def test_permissions_are_minimal(self, path: Path) -> None:
        data = workflow(path)
        assert data["permissions"] in ({}, {"contents": "read"})
        for name, job in data["jobs"].items():
            write = {
                scope for scope, level in job.get("permissions", {}).items() if level != "read"
            }
            assert write <= {"id-token", "pages"}, name
            assert not write or "environment" in job, f"{name} publishes without an environment"

    def test_jobs_end(self, path: Path) -> None:
        for name, job in workflow(path)["jobs"].items():
            assert "uses" in job or job["timeout-minutes"] <= 45, name

    def test_actions_are_well_known_and_pinned(self, path: Path) -> None:
        for step in steps(workflow(path)):
            if uses := step.get("uses"):
                assert re.fullmatch(r"actions/[\w-]+@v\d+|pypa/[\w-]+@release/v\d+", uses)
                keeps = step.get("with", {}).get("persist-credentials")
                assert not uses.startswith("actions/checkout@") or keeps is False

    def test_checks_are_nox_sessions(self, path: Path) -> None:
        source = (ROOT / "noxfile.py").read_text(encoding="utf-8")
        sessions = set(re.findall(r"^@nox\.session.*\ndef (\w+)", source, re.MULTILINE))
        data = workflow(path)
        commands = [step["run"] for step in steps(data) if "run" in step]
        called = {name for text in commands for name in re.findall(r"nox -s (\w+)", text)}
        for job in data["jobs"].values():
            called |= set(job.get("strategy", {}).get("matrix", {}).get("session", ()))
        assert called <= sessions
        for command in commands:
            assert re.match(r"python -m (nox|pip)|python3 scripts/ci/|ls dist/", command), command


def test_the_matrix_covers_what_the_project_supports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    matrix = workflow(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["tests"]["strategy"][
        "matrix"
    ]
    assert matrix["python"] == versions
    ends = {(entry["os"], entry["python"]) for entry in matrix["include"]}
    systems = ("macos-latest", "windows-latest")
    assert ends == {(system, end) for system in systems for end in (versions[0], versions[-1])}


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
