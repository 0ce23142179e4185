"""Fixtures of the tests of the command line."""

from __future__ import annotations

import pytest

from tests.unit_test.cli.support import Abe


@pytest.fixture
def cli() -> Abe:
    """The command line, on a memory store of its own."""
    return Abe()
