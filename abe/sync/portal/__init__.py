"""The portal: one event loop for each process, which owns every backend of the facade."""

from __future__ import annotations

from abe.sync.portal.process import get_portal
from abe.sync.portal.protocol import Portal

__all__ = ["Portal", "get_portal"]
