"""How installed backends are found."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import abe
from abe.backends.message_queue import _installed, loader
from abe.backends.message_queue.loader import list_backends, load_backend
from abe.errors import UnknownBackendError
from abe.types import MessageQueueBackendProtocol
from tests.unit_test.loader.support import HEALTHY, install, row

if TYPE_CHECKING:
    from tests.conftest import FakeDistribution


class TestFinding:
    """What counts as one backend, and where it is looked for."""

    def test_the_older_group_is_read(self, fake_distribution: FakeDistribution) -> None:
        target = "abe_plugin.backends.message_queue.service.redis:Backend"
        path = "abe_plugin/backends/message_queue/service/redis.py"
        fake_distribution("abe-plugin", older={"acme": target}, modules={path: HEALTHY})
        load_backend("acme")
        assert row("acme").group == "abe.backends.message_queue.service"
        assert row("acme").target == target

    def test_one_distribution_in_both_groups_is_one_backend(
        self, fake_distribution: FakeDistribution
    ) -> None:
        target = {"acme": "acme:Backend"}
        fake_distribution("abe-acme", target, {"acme.py": HEALTHY}, older=target)
        assert row("acme").group == "abe.backends.message_queue"
        load_backend("acme")

    def test_the_present_group_wins_over_the_older_one(
        self, fake_distribution: FakeDistribution
    ) -> None:
        fake_distribution(
            "abe-acme", {"acme": "acme:Second"}, {"acme.py": HEALTHY}, older={"acme": "old:Gone"}
        )
        assert type(load_backend("acme")).__name__ == "Second"

    def test_one_distribution_may_register_several(
        self, fake_distribution: FakeDistribution
    ) -> None:
        names = {"one": "acme:Backend", "two": "acme:Second"}
        fake_distribution("abe-acme", names, {"acme.py": HEALTHY})
        assert type(load_backend("one")).__name__ == "Backend"
        assert type(load_backend("two")).__name__ == "Second"

    def test_a_distribution_found_twice_counts_once_and_the_first_wins(
        self, fake_distribution: FakeDistribution
    ) -> None:
        fake_distribution("abe-acme", {"acme": "acme:Backend"}, {"acme.py": HEALTHY}, folder="old")
        fake_distribution(
            "Abe_Acme", {"acme": "acme:Second"}, {"acme.py": HEALTHY}, folder="new", version="2.0"
        )
        assert type(load_backend("acme")).__name__ == "Second"
        assert row("acme").version == "2.0"

    def test_a_newer_copy_that_registers_nothing_hides_an_older_one(
        self, acme: FakeDistribution
    ) -> None:
        acme("abe-acme", folder="new", version="2.0")
        with pytest.raises(UnknownBackendError):
            load_backend("acme")

    def test_leftovers_of_an_uninstallation_are_ignored(self, acme: FakeDistribution) -> None:
        site = acme("abe-odd", {"odd": "odd:Backend"})
        (site / "abe_odd-1.0.0.dist-info" / "METADATA").unlink()
        assert {info.name for info in list_backends()} >= {"acme", "memory"}
        with pytest.raises(UnknownBackendError):
            load_backend("odd")

    def test_somebody_elses_unreadable_file_is_ignored(self, acme: FakeDistribution) -> None:
        site = acme("unrelated")
        (site / "unrelated-1.0.0.dist-info" / "entry_points.txt").write_bytes(b"\xff\xfe\xff")
        load_backend("acme")

    def test_a_provider_installed_meanwhile_is_found(
        self, fake_distribution: FakeDistribution
    ) -> None:
        """The caches of importlib go by the time stamp of the folder, which may be too coarse."""
        site = fake_distribution("unrelated", modules={"unrelated.py": ""})
        with pytest.raises(UnknownBackendError):
            load_backend("odd")
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("odd_backend")
        before = site.stat()
        install(fake_distribution, HEALTHY)
        os.utime(site, ns=(before.st_atime_ns, before.st_mtime_ns))
        load_backend("odd")

    def test_built_ins_need_no_metadata(self, fake_distribution: FakeDistribution) -> None:
        """Frozen programs and slimmed bundles have none; here an empty copy hides it."""
        fake_distribution("abstract-backend", version="0")
        for name in ("memory", "sqlite"):
            assert isinstance(load_backend(name), MessageQueueBackendProtocol)
            assert (row(name).builtin, row(name).version) == (True, abe.__version__)

    def test_the_search_is_repeated_only_once_something_is_installed(
        self, acme: FakeDistribution, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        scan, scans = _installed._scan, []

        def counted() -> _installed.Installed:
            scans.append(1)
            return scan()

        monkeypatch.setattr(_installed, "_scan", counted)
        monkeypatch.setattr(_installed, "_UNSETTLED", -1e9)  # as if nothing were fresh
        for _ in range(3):
            load_backend("acme")
        assert len(scans) == 1
        install(acme, HEALTHY)
        load_backend("odd")
        monkeypatch.syspath_prepend(tmp_path)
        load_backend("acme")
        assert len(scans) == 3

    def test_built_ins_come_from_the_entry_points_of_abe(self) -> None:
        assert row("memory").builtin
        assert row("memory").distribution == "abstract-backend"
        assert row("memory").version == abe.__version__

    def test_the_list_is_sorted(self, acme: FakeDistribution) -> None:
        names = [info.name for info in list_backends()]
        assert names == sorted(names)


def test_importing_the_loader_does_not_import_the_search() -> None:
    """``importlib.metadata`` costs more than all of abe's own modules."""
    code = "import sys, abe.backends.message_queue.loader; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(abe.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not {"importlib.metadata", "asyncio", "difflib"} & set(done.stdout.split())


def test_names_of_the_groups_are_the_documented_ones() -> None:
    assert loader.BACKEND_ENTRY_POINT_GROUP == "abe.backends.message_queue"
    assert loader.OLDER_GROUP == "abe.backends.message_queue.service"
    assert loader.VARIABLE == "QUEUE_BACKEND"
