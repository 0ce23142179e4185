"""Check that the built sdist and wheel hold the whole package, and the wheel nothing else."""

from __future__ import annotations

import re
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def package_files(folder: Path) -> set[str]:
    """Return the files of the package in the checkout, as the archives name them."""
    package = "abe" if folder == ROOT else folder.name.replace("-", "_")
    files = (path for path in (folder / package).rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix() for path in files if path.suffix != ".pyc"}
    return names | {f"{package}/py.typed"}


def check_metadata(metadata: Message, folder: Path) -> list[str]:
    """Return what is wrong with what an index would show of the distribution."""
    declared = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    expected = {
        "Name": declared["name"],
        "Summary": declared["description"],
        "Requires-Python": declared["requires-python"],
        "License-Expression": "MIT",
        "Description-Content-Type": "text/markdown",
    }
    problems = [
        f"{name} is {metadata[name]!r}, not {value!r}"
        for name, value in expected.items()
        if metadata[name] != value
    ]
    if "Typing :: Typed" not in (metadata.get_all("Classifier") or []):
        problems.append("it is not classified as typed")
    required = [it for it in metadata.get_all("Requires-Dist") or [] if "extra ==" not in it]
    names = {re.split(r"[^\w-]", it, maxsplit=1)[0] for it in required}
    if folder == ROOT:
        problems += [f"the core requires {name}" for name in sorted(names)]
    elif "abstract-backend" not in names:
        problems.append("it does not require abstract-backend")
    return problems


def check_wheel(path: Path, folder: Path) -> list[str]:
    """Return what is wrong with the wheel."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        info = next(name.split("/")[0] for name in names if name.endswith("/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(f"{info}/METADATA").decode())
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    contents = {name for name in names if not name.startswith(f"{info}/")}
    files = package_files(folder)
    problems = check_metadata(metadata, folder)
    problems += [f"{name} is missing" for name in sorted(files - contents)]
    problems += [f"{name} does not belong there" for name in sorted(contents - files)]
    if f"{info}/licenses/LICENSE" not in names:
        problems.append("the license is missing")
    if "[abe.backends.message_queue]" not in entry_points:
        problems.append("no backend is registered")
    return problems


def check_sdist(path: Path, folder: Path) -> list[str]:
    """Return what is wrong with the sdist."""
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = package_files(folder) | {"CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml"}
    return [f"{name} is missing" for name in sorted(needed - names)]


def main(archives: str, folder: str) -> int:
    """Check the archives of the distribution in a folder and return the exit status."""
    (wheel,) = Path(archives).glob("*.whl")
    (sdist,) = Path(archives).glob("*.tar.gz")
    source = (ROOT / folder).resolve()
    problems = [f"{wheel.name}: {problem}" for problem in check_wheel(wheel, source)]
    problems += [f"{sdist.name}: {problem}" for problem in check_sdist(sdist, source)]
    print("\n".join(problems) or f"{wheel.name} and {sdist.name} are complete")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
