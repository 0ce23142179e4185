"""Only the backends that a test installs are found beside abe's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit_test.loader.support import HEALTHY

if TYPE_CHECKING:
    from tests.conftest import FakeDistribution


@pytest.fixture(autouse=True)
def _alone(no_providers: None) -> None:
    """Hide the providers of the environment that runs the tests."""


@pytest.fixture
def acme(fake_distribution: FakeDistribution) -> FakeDistribution:
    """A healthy provider that registers ``acme``."""
    fake_distribution("abe-acme", {"acme": "acme.backend:Backend"}, {"acme/backend.py": HEALTHY})
    return fake_distribution
