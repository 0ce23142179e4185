"""The IPython extension: ``%load_ext abe`` and ``%unload_ext abe``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from abe.errors import AbeError

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["load_ipython_extension", "unload_ipython_extension"]

_NAME = "AbeMagics"


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register the magics with ``shell``."""
    from traitlets import TraitError

    from abe.display.text import MAX_LINE, cell
    from abe.ipython.magics import AbeMagics
    from abe.ipython.session import say

    unload_ipython_extension(shell)
    try:
        magics = AbeMagics(shell)
    except TraitError:
        # What %config refused stays in the configuration, and would keep the extension out.
        settings = shell.config.pop(_NAME)
        shell.configurables[:] = [c for c in shell.configurables if type(c).__name__ != _NAME]
        magics = AbeMagics(shell)
        for name, value in settings.items():
            if not magics.has_trait(name):
                continue
            try:
                setattr(magics, name, value)
            except TraitError as error:
                say(f"abe: ignoring a setting: {cell(str(error), MAX_LINE)}")
            else:
                shell.config[_NAME][name] = value
    shell.register_magics(magics)
    magics.attach()


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Close the session's backend and remove everything that loading registered."""
    from abe.display.text import MAX_LINE, cell, limits
    from abe.ipython.session import say

    manager = shell.magics_manager
    magics = manager.registry.pop(_NAME, None)
    if magics is None:
        return
    for kind, names in magics.magics.items():
        for name in names:
            if getattr(manager.magics[kind].get(name), "__self__", None) is magics:
                del manager.magics[kind][name]
    magics.detach()
    if magics in shell.configurables:
        shell.configurables.remove(magics)
    limits.reset()
    try:
        magics.session.end()
    except AbeError as error:
        # IPython would take the extension for loaded, and refuse to load it again.
        say(f"abe: closing the backend of this session failed: {cell(str(error), MAX_LINE)}")
    except KeyboardInterrupt:
        if shell.extension_manager is not None:
            shell.extension_manager.loaded.difference_update(("abe", __name__))
        raise
