"""Document the methods of `SyncBackend` as `documented` does at run time."""

from __future__ import annotations

from typing import Any

import griffe


class FacadeDocstrings(griffe.Extension):
    """Gives the facade's methods the docstrings of the async side's."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Complete the class once the whole package is loaded."""
        if pkg.name != "abe":
            return
        source = pkg["backends.message_queue.base.operations.BackendOperations"].members
        for name, member in pkg["sync.backend.SyncBackend"].members.items():
            if member.docstring is None and name in source:
                member.docstring = source[name].docstring
