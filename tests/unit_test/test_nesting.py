"""`abe.enable_nesting`: which package is applied, and when it is refused."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from importlib import metadata
from types import ModuleType

import pytest

import abe
from abe.sync import nesting


class Installed:
    """Pretends that certain distributions are installed, and notes what is applied."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.versions: dict[str, str] = {}
        self.applied: list[str] = []
        patch.setattr(metadata, "version", self._version)
        for module in ("nest_asyncio", "nest_asyncio2"):
            fake = ModuleType(module)
            fake.apply = lambda loop, name=module: self.applied.append(name)  # type: ignore[attr-defined]
            patch.setitem(sys.modules, module, fake)
        for name in ("_nest_patched", "_nest_asyncio2"):
            patch.delattr(asyncio, name, raising=False)

    def _version(self, name: str) -> str:
        if name not in self.versions:
            raise metadata.PackageNotFoundError(name)
        return self.versions[name]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Installed:
    """Nothing is installed."""
    return Installed(monkeypatch)


def test_the_maintained_package_is_preferred(installed: Installed) -> None:
    """On any ipykernel."""
    installed.versions = {"nest-asyncio2": "1.7.3", "nest-asyncio": "1.6.0", "ipykernel": "7.4.0"}
    assert nesting.enable_nesting() == "nest-asyncio2"
    assert installed.applied == ["nest_asyncio2"]


def test_the_original_is_applied_where_it_is_safe(installed: Installed) -> None:
    """Before ipykernel 7, or without it."""
    installed.versions = {"nest-asyncio": "1.6.0", "ipykernel": "6.31.0"}
    assert nesting.enable_nesting() == "nest-asyncio"
    del installed.versions["ipykernel"]
    installed.versions["nest-asyncio2"] = "1.7.2"
    assert nesting.enable_nesting() == "nest-asyncio"
    assert installed.applied == ["nest_asyncio"] * 2


def test_the_original_is_refused_where_it_drops_cells(installed: Installed) -> None:
    """With the reason, and what to install."""
    installed.versions = {"nest-asyncio": "1.6.0", "ipykernel": "7.0.0"}
    with pytest.raises(abe.UnsupportedError, match=r"drop queued cells.*pip install -e"):
        nesting.enable_nesting()
    assert installed.applied == []


def test_one_that_was_applied_already_is_judged_alike(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The maintained one leaves a mark of its own."""
    monkeypatch.setattr(asyncio, "_nest_patched", True, raising=False)
    installed.versions = {"nest-asyncio2": "1.7.4", "ipykernel": "7.4.0"}
    with pytest.raises(abe.UnsupportedError, match="applied to this process; restart"):
        nesting.enable_nesting()
    installed.versions["ipykernel"] = "6.31.0"
    assert nesting.enable_nesting() == "nest-asyncio"
    monkeypatch.setattr(asyncio, "_nest_asyncio2", object(), raising=False)
    assert nesting.enable_nesting() == "nest-asyncio2"


@pytest.mark.parametrize("version", [None, "1.7.2"])
def test_without_a_package_it_says_what_to_install(
    installed: Installed, version: str | None
) -> None:
    """From the checkout: nothing of this project is on an index."""
    if version is not None:
        installed.versions = {"nest-asyncio2": version}
    with pytest.raises(abe.UnsupportedError) as caught:
        nesting.enable_nesting()
    assert "nest-asyncio2 >= 1.7.3" in str(caught.value)
    assert 'pip install -e ".[nest]"' in str(caught.value)
    assert ("1.7.2 is too old" in str(caught.value)) is (version is not None)


def test_uvloop_is_refused(installed: Installed) -> None:
    """It cannot be patched; the facade works there anyway."""
    uvloop = pytest.importorskip("uvloop")
    installed.versions = {"nest-asyncio2": "1.7.4"}

    async def main() -> None:
        with pytest.raises(abe.UnsupportedError, match="uvloop"):
            nesting.enable_nesting()

    uvloop.run(main())
    assert installed.applied == []


def test_it_nests_and_the_facade_goes_on_working() -> None:
    """For real, in a process of its own; connected before and after."""
    pytest.importorskip("nest_asyncio2")
    script = """
        import asyncio, os
        import abe

        async def answer():
            await asyncio.sleep(0)
            return 42

        async def cell(before):
            assert abe.enable_nesting() == "nest-asyncio2"
            print(asyncio.run(answer()))
            after = abe.connect("memory", env={"ABE_MEMORY_NAME": "nested"})
            before.publish("orders", {"n": 1})
            await after.aio.publish("orders", {"n": 2})
            print(list(after.take(2)))
            print(asyncio.run(take(before)), list(before.take(timeout=0)))

        async def take(queue):
            await queue.aio.publish("orders", {"n": 3})
            async with queue.aio.consume() as stream:
                return await stream.take(1)

        with abe.connect("memory", env={"ABE_MEMORY_NAME": "nested"}) as before:
            asyncio.run(cell(before))
    """
    options = ("-W", "error", "-W", "ignore::DeprecationWarning")
    done = subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "42"
    assert lines[1].count("SyncMessage") == 2
    assert "{'n': 3}" in lines[2]
    assert lines[2].endswith(" []")
    assert "Exception ignored" not in done.stderr
