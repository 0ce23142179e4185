"""Fail where files of the repository disagree: pins, import rules, structure, workflows."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / ".github" / "workflows"
PAGES = ROOT / "docs" / "explanation"
SETTINGS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ACTION = re.compile(r"(actions|pypa)/[\w-]+@[0-9a-f]{40}")


def text_of(path: Path) -> str:
    """Return the text of a file."""
    return path.read_text(encoding="utf-8")


def exists(module: str) -> bool:
    """Whether abe has a module; the import rules know some before they are written."""
    path = ROOT / "abe" / module.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def constraints() -> Iterator[str]:
    """Pinned versions install on the oldest Python: Debian stays with a version like 3.11.2."""
    oldest = SETTINGS["project"]["requires-python"].removeprefix(">=") + ".0"
    pins = re.findall(r"^([\w.-]+)==(\S+)", text_of(ROOT / "constraints.txt"), re.MULTILINE)
    wanted = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins}
    for found in metadata.distributions():
        pinned = wanted.get(re.sub(r"[-_.]+", "-", found.name).lower()) == found.version
        python = "".join(found.metadata.get_all("Requires-Python") or [])
        if pinned and oldest not in SpecifierSet(python):
            yield f"constraints.txt: {found.name} {found.version} needs Python {python}"


def import_rules() -> Iterator[str]:
    """The import rules cover every provider, and the architecture page shows their layers."""
    rules = SETTINGS["tool"]["importlinter"]
    contracts = {contract["id"]: contract for contract in rules["contracts"]}
    files = sorted(ROOT.glob("providers/*/pyproject.toml"))
    packages = [path.parent.name.replace("-", "_") for path in files]
    allowed = {f"{package}.**" for package in packages}
    if (
        rules["root_packages"] != ["abe", *packages]
        or contracts["providers"]["layers"] != [" | ".join(packages), "abe"]
        or contracts["provider-imports"]["source_modules"] != packages
        or not allowed <= {*contracts["programs"]["allowed_importers"]}
    ):
        yield f"pyproject.toml: each import rule for providers has to name {', '.join(packages)}"
    layers = [re.findall(r"abe\.([\w.]+)", it) for it in contracts["layers"]["layers"]]
    enforced = [there for it in layers if (there := {*filter(exists, it)})]
    rows = re.findall(r"^\| \d+ \| (.+?) \|", text_of(PAGES / "architecture.md"), re.MULTILINE)
    shown = [{*re.findall(r"`(.+?)`", row.replace("…", "backends.message_queue"))} for row in rows]
    if shown != enforced:
        differing = [sorted(it) for it in [*enforced, *shown] if (it in enforced) != (it in shown)]
        yield f"architecture.md: its layers are not those of pyproject.toml: {differing}"


def structure() -> Iterator[str]:
    """Every path of the tree in project-structure.md exists."""
    (tree,) = re.findall(r"```text\n(.*?)```", text_of(PAGES / "project-structure.md"), re.DOTALL)
    parents = {-1: ROOT}
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        parent = parents[max(it for it in parents if it < indent)]
        for name in line[:28].split():
            parents = {it: path for it, path in parents.items() if it < indent}
            parents[indent] = parent / name
            if not (parent / name).exists() or (parent / name).is_dir() != name.endswith("/"):
                yield f"project-structure.md: there is no {name} in {parent.relative_to(ROOT)}"


def workflows() -> Iterator[str]:
    """Workflows call what is defined elsewhere, and may do no more than they need."""
    sessions = re.findall(r"^@nox\.session.*\ndef (\w+)", text_of(ROOT / "noxfile.py"), re.M)
    for path in sorted(WORKFLOWS.glob("*.yml")):
        data = yaml.safe_load(text_of(path))
        if data["permissions"] not in ({}, {"contents": "read"}):
            yield f"{path.name}: grant permissions to jobs, not to the workflow"
        for name, job in data["jobs"].items():
            for problem in job_problems(job, {*sessions}):
                yield f"{path.name}: {name}: {problem}"


def job_problems(job: dict[str, Any], sessions: set[str]) -> Iterator[str]:
    """Yield what is wrong with a job of a workflow."""
    written = {scope for scope, level in job.get("permissions", {}).items() if level != "read"}
    if written - {"id-token", "pages"} or (written and "environment" not in job):
        yield f"it may write {', '.join(written)}"
    if "uses" not in job and not 0 < job["timeout-minutes"] <= 45:
        yield "it has no time limit of at most 45 minutes"
    called = {*job.get("strategy", {}).get("matrix", {}).get("session", ())}
    for step in job.get("steps", ()):
        uses, command = step.get("uses", ""), step.get("run", "")
        called |= {*re.findall(r"nox -s (\w+)", command)}
        if uses and not ACTION.fullmatch(uses):
            yield f"{uses} is not a pinned action of a known owner"
        if "checkout@" in uses and step.get("with", {}).get("persist-credentials") is not False:
            yield "the checkout keeps its credentials"
        if command and not re.match(r"python -m (nox|pip)|python3 scripts/ci/|ls dist/", command):
            yield f"it defines a check of its own: {command}"
    if called - sessions:
        yield f"nox has no session {', '.join(called - sessions)}"


def interpreters() -> Iterator[str]:
    """The workflows test each Python that the project names; its ends on other systems."""
    versions = re.findall(r"Python :: (3\.\d+)", "\n".join(SETTINGS["project"]["classifiers"]))
    matrix = yaml.safe_load(text_of(WORKFLOWS / "ci.yml"))["jobs"]["tests"]["strategy"]["matrix"]
    ends = {(it["os"], it["python"]) for it in matrix["include"]}
    systems = ("macos-latest", "windows-latest")
    wanted = {(system, end) for system in systems for end in (versions[0], versions[-1])}
    if matrix["python"] != versions or ends != wanted:
        yield f"ci.yml: tests have to run on {versions}, and on {sorted(wanted)}"


def main() -> int:
    """Print every problem and return the exit status."""
    checks = (constraints, import_rules, structure, workflows, interpreters)
    problems = [problem for check in checks for problem in check()]
    print(*problems, sep="\n", end="\n" if problems else "")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
