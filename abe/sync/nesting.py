"""`enable_nesting`: ``asyncio.run(…)`` in a notebook cell, by patching asyncio."""

from __future__ import annotations

import asyncio
import re
from importlib import import_module, metadata

from abe.errors import UnsupportedError

__all__ = ["enable_nesting"]

INSTALL = 'from the checkout: pip install -e ".[nest]"'
OLDEST = (1, 7, 3)
"""nest-asyncio2 1.7.0 to 1.7.2 drop queued cells, as the original does."""


def enable_nesting() -> str:
    """Let ``asyncio.run(…)`` and ``loop.run_until_complete(…)`` run inside a running event loop.

    For your own code only: abe's facade needs no nesting, and never patches asyncio by itself.
    Uses nest-asyncio2 (extra ``nest``), else the original nest-asyncio where that is safe. There
    is no way back short of a new process.

    Returns:
        The name of the package that was applied.

    Raises:
        UnsupportedError: If neither is installed; if only nest-asyncio is, or it has been
            applied already, and ipykernel is 7 or newer, where it makes the kernel drop queued
            cells; or if the running event loop is uvloop's, which cannot be patched.
    """
    loop = _running_loop()
    if loop is not None and type(loop).__module__.partition(".")[0] == "uvloop":
        raise UnsupportedError(
            "nesting cannot be enabled: the running event loop is uvloop's, which cannot be "
            "patched; abe's own blocking calls work under uvloop without nesting"
        )
    if hasattr(asyncio, "_nest_patched") and not hasattr(asyncio, "_nest_asyncio2"):
        _refuse_original("has been applied to this process; restart it")
        return "nest-asyncio"
    name, module = _choose()
    import_module(module).apply(loop)
    return name


def _choose() -> tuple[str, str]:
    maintained, original = _version("nest-asyncio2"), _version("nest-asyncio")
    if maintained >= OLDEST:
        return "nest-asyncio2", "nest_asyncio2"
    if original:
        _refuse_original(f"is installed; install nest-asyncio2 {INSTALL}")
        return "nest-asyncio", "nest_asyncio"
    found = f"nest-asyncio2 {'.'.join(map(str, maintained))} is too old" if maintained else ""
    raise UnsupportedError(
        f"nesting needs nest-asyncio2 >= {'.'.join(map(str, OLDEST))}"
        f"{f' ({found})' if found else ''}; install it {INSTALL}"
    )


def _refuse_original(what: str) -> None:
    if _version("ipykernel") >= (7,):
        raise UnsupportedError(
            "nesting cannot be enabled: nest-asyncio makes ipykernel 7 drop queued cells ('Run "
            f"All' silently skips them), and it {what}"
        )


def _version(distribution: str) -> tuple[int, ...]:
    """Return the release of an installed distribution; empty if it is not installed."""
    try:
        text = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ()
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, found.group().split("."))) if found else ()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
