"""How a command fails: one short line on standard error, without secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from abe._text import SECRET, redact
from abe.cli.output import say

__all__ = ["hide", "report", "warn"]

_CONFIDENTIAL = re.compile(
    r"PASS|PWD|SECRET|TOKEN|CREDENTIAL|AUTH(?!OR)|(?:API|ACCESS|PRIVATE)_?KEY", re.IGNORECASE
)
_FOLDERS = {"PWD", "OLDPWD"}
_given: dict[str, str] = {}


def hide(env: Mapping[str, str]) -> None:
    """Remember variables whose secret values must not be shown."""
    _given.update(env)


def report(problem: object) -> None:
    """Say what went wrong."""
    text = str(problem) or type(problem).__name__
    say(f"abe: {clean(text)}")


def warn(text: str) -> None:
    """Say what deserves a second look."""
    say(f"abe: warning: {clean(text)}")


def clean(text: str) -> str:
    """Return the text without secrets, those of the environment included, on one line."""
    text = redact(text)
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, SECRET)
    return " ".join(text.split("\n"))


def _secrets() -> set[str]:
    found: set[str] = set()
    for name, value in {**os.environ, **_given}.items():
        if _CONFIDENTIAL.search(name) and name not in _FOLDERS:
            found.add(value)
        if "://" in value and "@" in value:
            found |= _passwords(value)
    # A flag or a digit is no secret, and replacing it would garble the text.
    return {secret for secret in found if len(secret) > 3}


def _passwords(url: str) -> set[str]:
    try:
        password = urlsplit(url).password
    except ValueError:
        return set()
    return {password, unquote(password)} if password else set()
