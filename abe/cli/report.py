"""How a command fails: one short line on standard error, without secrets."""

from __future__ import annotations

import os

from abe._redact import known
from abe.cli.output import say

__all__ = ["clean", "report", "warn"]


def report(problem: object) -> None:
    """Say what went wrong."""
    text = str(problem) or type(problem).__name__
    say(f"abe: {clean(text)}")


def warn(text: str) -> None:
    """Say what deserves a second look."""
    say(f"abe: warning: {clean(text)}")


def clean(text: str) -> str:
    """Return the text without secrets, those of the environment included, on one line."""
    known.learn(os.environ)
    return " ".join(known.hide(text).split("\n"))
