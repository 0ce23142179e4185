"""Check that the built sdist and wheel hold the whole package, and the wheel nothing else."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def package_files() -> set[str]:
    """Return the files of the package in the checkout, as the archives name them."""
    files = (path for path in (ROOT / "abe").rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in files if path.suffix != ".pyc"}


def check_wheel(path: Path) -> list[str]:
    """Return what is wrong with the wheel."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        info = next(name.split("/")[0] for name in names if name.endswith("/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(f"{info}/METADATA").decode())
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    contents = {name for name in names if not name.startswith(f"{info}/")}
    required = metadata.get_all("Requires-Dist") or []
    return [
        *(f"{name} is missing" for name in sorted((package_files() | {"abe/py.typed"}) - contents)),
        *(f"{name} does not belong there" for name in sorted(contents - package_files())),
        *(f"the core requires {name}" for name in required if "extra ==" not in name),
        *(["the license is missing"] if f"{info}/licenses/LICENSE" not in names else []),
        *(
            ["no backend is registered"]
            if "[abe.backends.message_queue]" not in entry_points
            else []
        ),
    ]


def check_sdist(path: Path) -> list[str]:
    """Return what is wrong with the sdist."""
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = package_files() | {"CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml"}
    return [f"{name} is missing" for name in sorted(needed - names)]


def main(folder: str) -> int:
    """Check the archives in a folder and return the exit status."""
    (wheel,) = Path(folder).glob("*.whl")
    (sdist,) = Path(folder).glob("*.tar.gz")
    problems = [f"{wheel.name}: {problem}" for problem in check_wheel(wheel)]
    problems += [f"{sdist.name}: {problem}" for problem in check_sdist(sdist)]
    print("\n".join(problems) or f"{wheel.name} and {sdist.name} are complete")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
