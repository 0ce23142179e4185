"""Deliberately faulty backends, each with the cases that must fail it: the suite's own test.

A contract suite is worth as much as the faults it finds. These are the faults that backends are
known to have, one to a class; the tests of abe run the named cases on each and fail if one passes.
"""

from __future__ import annotations

from tests.selftest.broken import (  # noqa: F401
    claiming,
    counting,
    delivering,
    keeping,
    recovering,
    settling,
    sorting,
    streaming,
)
from tests.selftest.broken.registry import BROKEN, BrokenBackend, broken

__all__ = ["BROKEN", "BrokenBackend", "broken"]
