"""The capabilities a case needs, and the skip where a backend does not have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from unittest import SkipTest

from abe.backends.message_queue.base import Capabilities

__all__ = ["CAPABILITIES", "Skipped", "capability_of", "has", "unmet"]

CAPABILITIES = frozenset(f.name for f in fields(Capabilities))


class Skipped(SkipTest):
    """A case does not apply; pytest and unittest both show it as skipped, with this reason."""


def capability_of(need: str) -> str:
    """Return the name in a need such as ``"peek"``, ``"ordering=key"`` or ``"!peek"``."""
    return need.lstrip("!").partition("=")[0]


def unmet(needs: Sequence[str], can: Capabilities, declared: bool) -> str:
    """Return why a backend need not pass a case with these needs; "" if it must."""
    for need in needs:
        if (need == "declared" or need.startswith("!")) and not declared:
            return "the backend declares no capabilities"
        if need == "declared":
            continue
        name, _, values = need.lstrip("!").partition("=")
        value = getattr(can, name)
        if need.startswith("!"):
            if has(value):
                return f"the backend declares {name}"
        elif values and value not in values.split("|"):
            return f"the backend declares {name} {value!r}, not {values.replace('|', ' or ')}"
        elif not values and not has(value):
            return f"the backend does not declare {name}"
    return ""


def has(value: object) -> bool:
    """Whether the value of a capability claims anything."""
    return value != "none" and bool(value)
