"""The portal: one event loop on a background thread, which owns every backend of the facade."""

from __future__ import annotations

from abe.sync.portal.thread import Portal, get_portal

__all__ = ["Portal", "get_portal"]
