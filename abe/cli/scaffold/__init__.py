"""``abe new-provider``: create a provider from the templates in ``abe/cli/scaffold``."""

from __future__ import annotations

import keyword
import re
import shutil
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from abe._version import __version__
from abe.backends.message_queue.loader import list_backends
from abe.cli.output import emit_line
from abe.errors import ConfigurationError

__all__ = ["check_name", "create", "new_provider", "render"]

MAX_LENGTH = 30
_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")
_RESERVED = {
    "abe": "it is abe's own",
    "abstract": "abe's class AbstractBackend would be mistaken for it",
    "base": "abe's class BaseBackend would be mistaken for it",
    "redis": "it is the name of a first-party provider",
    "sqs": "it is the name of a first-party provider",
}


def new_provider(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The name in QUEUE_BACKEND, e.g. nats.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where to create the project.")
    ] = Path(),
) -> None:
    """Create the project of a new provider.

    The folder abe-backend-NAME is complete: a typed backend on a broker in memory, which you
    replace step by step, and tests that pass, the contract suite among them. Nothing is
    overwritten.
    """
    path = create(name, output)
    emit_line(f"created {path}")
    emit_line(f"next: read {path / 'README.md'}")


def check_name(name: str) -> str:
    """Return the name in the spelling of distributions, with hyphens."""
    if match := re.match(r"abe[-_]backend[-_]", name):
        raise ConfigurationError(f"give the name alone: {name[match.end() :]!r}")
    if not _NAME.fullmatch(name) or len(name) > MAX_LENGTH:
        lower = name.lower()
        hint = f"; how about {lower!r}?" if lower != name and _NAME.fullmatch(lower) else ""
        raise ConfigurationError(
            f"{name!a} cannot be the name of a provider: up to {MAX_LENGTH} lower-case letters and "
            f"digits, the first one a letter, with single hyphens between words{hint}"
        )
    spelled = name.replace("_", "-")
    if keyword.iskeyword(spelled):
        raise ConfigurationError(f"{name!r} is a Python keyword; choose another name")
    if spelled.startswith("test"):
        raise ConfigurationError(f"{name!r} is reserved: pytest would take its class for tests")
    if spelled in _RESERVED:
        raise ConfigurationError(f"{name!r} is reserved: {_RESERVED[spelled]}")
    for info in list_backends():
        if info.name.replace("_", "-") == spelled:
            raise ConfigurationError(f"{name!r} is taken: {info.distribution} is installed")
    return spelled


def render(name: str) -> dict[str, str]:
    """Return the files of the project, by their path in it."""
    name = check_name(name)
    words = name.split("-")
    package = "_".join(["abe", "backend", *words])
    values = {
        "name": name,
        "title": " ".join(word.capitalize() for word in words),
        "distribution": f"abe-backend-{name}",
        "package": package,
        "stem": "".join(word.capitalize() for word in words),
        "prefix": "_".join(["ABE", *words]).upper(),
        "core_version": __version__,
        "year": str(date.today().year),
    }
    values["test_url"] = values["prefix"].replace("ABE_", "ABE_TEST_", 1) + "_URL"
    folder = Path(__file__).parent
    files = {}
    for template in folder.rglob("*.template"):
        path = template.relative_to(folder).as_posix().removesuffix(".template")
        path = re.sub(r"(^|/)dot-", r"\1.", path.replace("__package__", package))
        text = template.read_text(encoding="utf-8")
        # GitHub's own ${{ github.x }} has a dot and stays.
        files[path] = re.sub(r"\{\{ (\w+) \}\}", lambda match: values[match[1]], text)
    return files


def create(name: str, parent: Path) -> Path:
    """Create the project below ``parent`` and return its folder.

    Nothing is overwritten, and nothing is left behind after a failure.
    """
    files = render(name)
    folder = parent / f"abe-backend-{check_name(name)}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except FileExistsError as error:
        raise ConfigurationError(f"{error.filename} exists already; nothing was changed") from None
    except OSError as error:
        raise ConfigurationError(f"cannot create {folder}: {error.strerror}") from None
    try:
        for path, text in files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8", newline="\n")
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise ConfigurationError(f"cannot write {folder}: {error.strerror}") from None
        raise
    return folder
