"""A portal of each test's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from abe.sync.portal.thread import ThreadPortal

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def portal() -> Iterator[ThreadPortal]:
    """Another portal than the process's own, closed after the test."""
    portal = ThreadPortal()
    yield portal
    portal.close(grace=1.0)
