"""From a name, or from what is installed, to a backend."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import abe
from abe.backends.message_queue import _environment, _installed, loader
from abe.backends.message_queue.loader import (
    BackendInfo,
    choose_backend,
    list_backends,
    load_backend,
    load_backend_class,
    settings_of,
)
from abe.errors import (
    AmbiguousBackendError,
    BackendLoadError,
    ConfigurationError,
    UnknownBackendError,
)
from abe.types import MessageQueueBackendProtocol

if TYPE_CHECKING:
    from tests.conftest import FakeDistribution

pytestmark = pytest.mark.usefixtures("no_providers")

GROUP = loader.BACKEND_ENTRY_POINT_GROUP
HEALTHY = """
import os

class Backend:
    def __init__(self, url):
        self.url = url

    @classmethod
    def from_env(cls):
        return cls(os.environ.get("ABE_ACME_URL", "the default"))

    async def publish(self, key, payload): ...

    async def consume(self, *, group=None):
        yield {}

class Second(Backend):
    pass
"""


@pytest.fixture
def acme(fake_distribution: FakeDistribution) -> FakeDistribution:
    """A healthy provider that registers ``acme``."""
    fake_distribution("abe-acme", {"acme": "acme.backend:Backend"}, {"acme/backend.py": HEALTHY})
    return fake_distribution


def install(fake: FakeDistribution, body: str, name: str = "odd") -> None:
    """Install a provider whose module ``odd_backend`` holds ``body``, registered as ``name``."""
    fake("abe-odd", {name: "odd_backend:Backend"}, {"odd_backend.py": body}, version="2.5")


def from_env_that(statement: str) -> str:
    """Source of a backend with this statement as the body of ``from_env``."""
    return HEALTHY.replace('return cls(os.environ.get("ABE_ACME_URL", "the default"))', statement)


def url_of(backend: MessageQueueBackendProtocol) -> Any:
    """What the fake backend found in its environment."""
    return getattr(backend, "url")  # noqa: B009 - not part of the protocol


def row(name: str, *, check: bool = False) -> BackendInfo:
    """The only entry of `list_backends` for ``name``."""
    (info,) = [info for info in list_backends(check=check) if info.name == name]
    return info


@pytest.mark.usefixtures("acme")
class TestHealthy:
    """A provider that does everything right."""

    def test_is_created_by_its_name(self) -> None:
        backend = load_backend("acme")
        assert isinstance(backend, MessageQueueBackendProtocol)
        assert (type(backend).__module__, url_of(backend)) == ("acme.backend", "the default")

    def test_every_call_creates_another_one(self) -> None:
        assert load_backend("acme") is not load_backend("acme")

    def test_is_listed_without_being_imported(self) -> None:
        expected = BackendInfo(
            name="acme",
            distribution="abe-acme",
            version="1.0.0",
            target="acme.backend:Backend",
            group="abe.backends.message_queue",
            builtin=False,
            deprecated=None,
            status="available",
            error=None,
        )
        assert row("acme") == expected
        assert "acme" not in sys.modules

    def test_is_listed_as_loaded_once_it_is(self) -> None:
        load_backend_class("acme")
        assert row("acme").status == "loaded"

    def test_check_imports_and_does_not_instantiate(
        self, fake_distribution: FakeDistribution
    ) -> None:
        install(fake_distribution, from_env_that("raise SystemExit"))
        assert row("odd", check=True).status == "loaded"

    def test_the_class_is_returned_without_an_instance(self) -> None:
        assert load_backend_class("acme").__name__ == "Backend"

    def test_is_what_abe_exports(self) -> None:
        assert abe.load_backend is load_backend
        assert abe.list_backends is list_backends


class TestSelection:
    """Argument, ``QUEUE_BACKEND``, the first provider, memory: in this order."""

    @pytest.fixture
    def two(self, acme: FakeDistribution) -> FakeDistribution:
        """Two providers; ``acme`` is the first by name."""
        acme("abe-zoo", {"zoo": "zoo.backend:Second"}, {"zoo/backend.py": HEALTHY})
        return acme

    @pytest.mark.usefixtures("two")
    def test_the_argument_comes_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("QUEUE_BACKEND", "memory")
        env = {"QUEUE_BACKEND": "acme"}
        assert type(load_backend("zoo", env=env)).__name__ == "Second"
        assert choose_backend("zoo", env=env).reason == "named by the caller"

    @pytest.mark.usefixtures("two")
    def test_then_the_variable_in_env(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("QUEUE_BACKEND", "acme")
        assert type(load_backend(env={"QUEUE_BACKEND": "zoo"})).__name__ == "Second"

    @pytest.mark.usefixtures("two")
    def test_then_the_variable_of_the_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("QUEUE_BACKEND", " zoo ")
        choice = choose_backend()
        assert (choice.info.name, choice.reason) == ("zoo", "named by QUEUE_BACKEND")
        assert choice.warning is None

    @pytest.mark.usefixtures("two")
    def test_then_the_first_provider_with_a_warning_that_names_the_others(self) -> None:
        with pytest.warns(UserWarning, match="QUEUE_BACKEND") as caught:
            backend = load_backend()
        assert type(backend).__module__ == "acme.backend"
        (warning,) = caught
        assert "using 'acme' of abe-acme 1.0.0" in str(warning.message)
        assert "also installed: 'zoo'" in str(warning.message)
        assert warning.filename == __file__

    @pytest.mark.usefixtures("two")
    @pytest.mark.parametrize("value", ["", "  "])
    def test_an_empty_variable_counts_as_not_set(
        self, value: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("QUEUE_BACKEND", "zoo")
        assert choose_backend(env={"QUEUE_BACKEND": value}).info.name == "acme"

    @pytest.mark.usefixtures("acme")
    def test_the_only_provider_is_taken_without_a_warning(self) -> None:
        assert type(load_backend()).__module__ == "acme.backend"
        assert "the only one beside abe's own" in choose_backend().reason

    def test_memory_is_the_last_resort_and_says_so(
        self, fake_distribution: FakeDistribution
    ) -> None:
        fake_distribution(
            "abstract-backend", {"memory": "fake_own:Backend"}, {"fake_own.py": HEALTHY}
        )
        with pytest.warns(UserWarning, match="no provider is installed: using 'memory'") as caught:
            load_backend()
        assert [warning.filename for warning in caught] == [__file__]
        assert choose_backend().info.builtin

    def test_choosing_imports_and_warns_of_nothing(self, two: FakeDistribution) -> None:
        choice = choose_backend()
        assert choice.info.name == "acme"
        assert "'zoo'" in (choice.warning or "")
        assert "'zoo'" in choice.reason
        assert not two.packages & set(sys.modules)

    def test_a_broken_first_provider_is_an_error_and_not_a_reason_for_the_next(
        self, two: FakeDistribution
    ) -> None:
        two("abe-aaa", {"aaa": "aaa_missing:Backend"})
        with (
            pytest.warns(UserWarning, match="several backends are installed"),
            pytest.raises(BackendLoadError, match="abe-aaa"),
        ):
            load_backend()

    def test_a_lone_broken_provider_does_not_become_memory(
        self, fake_distribution: FakeDistribution
    ) -> None:
        install(fake_distribution, "import no_such_driver")
        with pytest.raises(BackendLoadError, match="no_such_driver"):
            load_backend()


class TestUnknown:
    """The error says what there is, what was meant, and how to get it."""

    def test_lists_what_is_installed(self, acme: FakeDistribution) -> None:
        with pytest.raises(UnknownBackendError) as caught:
            load_backend("xyzzy")
        text = str(caught.value)
        assert text.startswith("no backend named 'xyzzy' is installed (named by the caller); ")
        assert "acme (abe-acme 1.0.0), memory (abstract-backend " in text
        assert "did you mean" not in text.lower()
        assert "pip install" not in text

    @pytest.mark.usefixtures("acme")
    @pytest.mark.parametrize("wrong", ["acmee", "ACME", "amce"])
    def test_suggests_the_nearest_spelling(self, wrong: str) -> None:
        with pytest.raises(UnknownBackendError, match=r"Did you mean 'acme'\?$"):
            load_backend(wrong)

    def test_names_the_variable_if_that_was_wrong(self) -> None:
        with pytest.raises(UnknownBackendError, match=r"'xyzzy' is installed .named by QUEUE_"):
            load_backend(env={"QUEUE_BACKEND": "xyzzy"})

    @pytest.mark.parametrize("name", ["redis", "sqs"])
    def test_proposes_the_install_line_of_a_first_party_provider(self, name: str) -> None:
        command = f"pip install -e . -e providers/abe-backend-{name}"
        line = f"To install '{name}', from the checkout: {command}"
        with pytest.raises(UnknownBackendError) as caught:
            load_backend(name)
        assert str(caught.value).endswith(f". {line}")
        assert "Did you mean" not in str(caught.value)

    def test_proposes_it_for_a_misspelling_too(self) -> None:
        with pytest.raises(UnknownBackendError, match=r"Did you mean 'redis'\? To install 'redis'"):
            load_backend("reddis")

    def test_does_not_repeat_a_url_that_was_given_as_the_name(self) -> None:
        with pytest.raises(UnknownBackendError) as caught:
            load_backend("redis://me:hunter2@example.org")
        assert "hunter2" not in str(caught.value)
        assert "no backend named 'redis…'" in str(caught.value)

    @pytest.mark.parametrize(("wrong", "kind"), [(Path, "type"), (b"memory", "bytes"), (1, "int")])
    def test_is_a_str(self, wrong: Any, kind: str) -> None:
        with pytest.raises(TypeError, match=f"^the name of a backend must be a str, not {kind}$"):
            load_backend(wrong)

    def test_is_a_lookup_error_and_a_runtime_error(self) -> None:
        with pytest.raises(LookupError):
            load_backend("xyzzy")
        with pytest.raises(RuntimeError):
            load_backend_class("xyzzy")


class TestBroken:
    """Installed but unusable: always an error that names the distribution and the entry point."""

    def failure(self, name: str = "odd") -> BackendLoadError:
        with pytest.raises(BackendLoadError) as caught:
            load_backend(name)
        error = caught.value
        assert str(error).startswith(
            "backend 'odd' of abe-odd 2.5 (entry point odd_backend:Backend) cannot be used: "
        )
        assert (error.distribution, error.entry_point) == ("abe-odd", "odd_backend:Backend")
        return error

    def test_the_import_fails(self, fake_distribution: FakeDistribution) -> None:
        install(fake_distribution, "import no_such_driver")
        error = self.failure()
        assert str(error).endswith(
            "importing it failed: ModuleNotFoundError: No module named 'no_such_driver'"
        )
        assert isinstance(error.__cause__, ModuleNotFoundError)
        assert "restart" not in str(error)

    def test_the_module_raises_something_else(self, fake_distribution: FakeDistribution) -> None:
        install(fake_distribution, "1 / 0")
        assert isinstance(self.failure().__cause__, ZeroDivisionError)

    def test_the_class_is_missing(self, fake_distribution: FakeDistribution) -> None:
        install(fake_distribution, "")
        assert "has no attribute 'Backend'" in str(self.failure())

    def test_the_package_is_missing_as_after_a_live_editable_install(
        self, fake_distribution: FakeDistribution
    ) -> None:
        fake_distribution("abe-odd", {"odd": "odd_backend:Backend"}, version="2.5")
        assert "restart the process" in str(self.failure())

    def test_the_entry_point_is_malformed(self, fake_distribution: FakeDistribution) -> None:
        fake_distribution("abe-odd", {"odd": "not a target"})
        with pytest.raises(BackendLoadError, match="entry point not a target"):
            load_backend("odd")
        assert row("odd").status == "available"
        assert row("odd", check=True).status == "broken"

    def test_from_env_is_missing(self, fake_distribution: FakeDistribution) -> None:
        install(fake_distribution, HEALTHY.replace("from_env", "from_environment"))
        assert "no from_env() class method" in str(self.failure())

    def test_from_env_is_not_callable(self, fake_distribution: FakeDistribution) -> None:
        install(fake_distribution, "class Backend:\n    from_env = None")
        assert "no from_env() class method" in str(self.failure())

    def test_from_env_is_not_a_class_method(self, fake_distribution: FakeDistribution) -> None:
        install(fake_distribution, HEALTHY.replace("@classmethod", ""))
        assert "from_env() raised TypeError" in str(self.failure())

    def test_from_env_is_a_coroutine_function(self, fake_distribution: FakeDistribution) -> None:
        install(fake_distribution, HEALTHY.replace("def from_env", "async def from_env"))
        assert "from_env() is a coroutine function" in str(self.failure())

    def test_from_env_raises(self, fake_distribution: FakeDistribution) -> None:
        install(fake_distribution, from_env_that("raise KeyError('no such thing')"))
        error = self.failure()
        assert "from_env() raised KeyError: 'no such thing'" in str(error)
        assert isinstance(error.__cause__, KeyError)

    def test_what_abe_defines_passes_unchanged(self, fake_distribution: FakeDistribution) -> None:
        raising = "from abe.errors import ConfigurationError; raise ConfigurationError('set X')"
        install(fake_distribution, from_env_that(raising))
        with pytest.raises(ConfigurationError, match=r"^set X$") as caught:
            load_backend("odd")
        assert caught.value.__cause__ is None

    @pytest.mark.parametrize(
        ("source", "missing"),
        [
            ("return object()", "a object without publish() and consume()"),
            ("b = cls(''); b.consume = None; return b", "a Backend without consume()"),
            ("return None", "a NoneType without publish() and consume()"),
        ],
    )
    def test_what_from_env_returns_is_no_backend(
        self, source: str, missing: str, fake_distribution: FakeDistribution
    ) -> None:
        install(fake_distribution, from_env_that(source))
        assert str(self.failure()).endswith(f"from_env() returned {missing}")

    def test_is_listed_with_the_reason(self, fake_distribution: FakeDistribution) -> None:
        install(fake_distribution, "import no_such_driver")
        assert (row("odd").status, row("odd").error) == ("available", None)
        checked = row("odd", check=True)
        assert checked.status == "broken"
        assert "No module named 'no_such_driver'" in (checked.error or "")

    def test_does_not_hide_the_others(self, acme: FakeDistribution) -> None:
        install(acme, "import no_such_driver")
        assert row("acme", check=True).status == "loaded"
        load_backend("acme")

    def test_a_warning_made_an_error_by_the_user_stays_one(
        self, fake_distribution: FakeDistribution
    ) -> None:
        install(fake_distribution, from_env_that("import warnings; warnings.warn('beware')"))
        with pytest.raises(UserWarning, match="beware"):
            load_backend("odd")

    @pytest.mark.parametrize("statement", ["sys.exit(3)", "sys.exit()", "pytest.skip('no broker')"])
    def test_it_exits(self, statement: str, fake_distribution: FakeDistribution) -> None:
        """While it is imported, or in ``from_env()``; nothing but an interrupt ends the program."""
        name = "Skipped: no broker" if "skip" in statement else "SystemExit"
        install(fake_distribution, from_env_that(f"import pytest, sys; {statement}"))
        assert f"from_env() raised {name}" in str(self.failure())
        fake_distribution(
            "abe-bad", {"bad": "bad:B"}, {"bad.py": f"import pytest, sys; {statement}"}
        )
        assert f"importing it failed: {name}" in (row("bad", check=True).error or "")
        assert row("memory", check=True).status == "loaded"

    def test_it_prints(
        self,
        fake_distribution: FakeDistribution,
        capsys: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """That would spoil the output of the program; other threads go on printing."""
        loud = from_env_that(
            "from threading import Thread; print('from_env');"
            " t = Thread(None, print, None, ['ours']); t.start(); t.join(); return cls('')"
        )
        install(fake_distribution, f"print('imported')\n{loud}")
        load_backend("odd")
        print("after")
        assert capsys.readouterr().out == "ours\nafter\n"
        assert caplog.messages == [
            "backend odd of abe-odd 2.5: importing it printed 'imported'",
            "backend odd of abe-odd 2.5: from_env() printed 'from_env'",
        ]

    @pytest.mark.parametrize(
        ("file", "content"),
        [
            ("entry_points.txt", b"[abe.backends.message_queue]\nno value here\n"),
            ("entry_points.txt", b"[x]\n# abe.backends.message_queue\nno value\n"),
            ("METADATA", b"Name: abe-\xff\xfe\n"),
        ],
    )
    def test_damaged_metadata_affects_its_distribution_only(
        self, file: str, content: bytes, acme: FakeDistribution
    ) -> None:
        site = acme("abe-odd", {"odd": "odd:Backend"}, version="2.5")
        (site / "abe_odd-2.5.dist-info" / file).write_bytes(content)
        load_backend("acme")
        load_backend("memory")
        (damaged,) = [info for info in list_backends() if info.status == "broken"]
        assert "odd" in damaged.name
        assert "reinstall or uninstall it" in (damaged.error or "")
        with pytest.raises(UnknownBackendError, match=r"the metadata of abe.odd.* is malformed"):
            load_backend("odd")

    def test_damaged_metadata_does_not_become_memory(
        self, fake_distribution: FakeDistribution
    ) -> None:
        site = fake_distribution("abe-odd", {"odd": "odd:Backend"}, version="2.5")
        (site / "abe_odd-2.5.dist-info" / "entry_points.txt").write_text(f"[{GROUP}]\nodd\n")
        with pytest.raises(BackendLoadError, match="QUEUE_BACKEND is not set, and the metadata of"):
            load_backend()


class TestAmbiguous:
    """Two distributions that claim one name."""

    def test_is_an_error_that_names_both(self, acme: FakeDistribution) -> None:
        acme("acme-fork", {"acme": "fork:Backend"}, {"fork.py": HEALTHY}, version="3.0")
        with pytest.raises(AmbiguousBackendError) as caught:
            load_backend("acme")
        text = str(caught.value)
        assert text.startswith("backend 'acme' is registered by ")
        assert "abe-acme 1.0.0 (acme.backend:Backend)" in text
        assert "acme-fork 3.0 (fork:Backend)" in text
        assert "uninstall one of them: " in text

    def test_even_if_both_name_the_same_class(self, acme: FakeDistribution) -> None:
        acme("acme-fork", {"acme": "acme.backend:Backend"})
        with pytest.raises(AmbiguousBackendError):
            load_backend_class("acme")

    def test_even_if_one_is_in_the_older_group(self, acme: FakeDistribution) -> None:
        acme("acme-fork", older={"acme": "acme.backend:Backend"})
        with pytest.raises(AmbiguousBackendError):
            choose_backend("acme")

    def test_a_provider_cannot_take_the_name_of_a_built_in(
        self, fake_distribution: FakeDistribution
    ) -> None:
        install(fake_distribution, HEALTHY, name="memory")
        for name in ("memory", None):
            with pytest.raises(AmbiguousBackendError, match=r"; uninstall abe-odd$") as caught:
                load_backend(name)
            assert "abstract-backend " in str(caught.value)

    def test_both_are_listed_and_neither_is_imported(self, acme: FakeDistribution) -> None:
        acme("acme-fork", {"acme": "fork:Backend"}, {"fork.py": HEALTHY})
        rows = [info for info in list_backends(check=True) if info.name == "acme"]
        assert {info.distribution for info in rows} == {"abe-acme", "acme-fork"}
        assert {info.status for info in rows} == {"ambiguous"}
        assert all("uninstall one of them" in (info.error or "") for info in rows)
        assert not acme.packages & set(sys.modules)

    def test_names_that_differ_by_case_only(self, acme: FakeDistribution) -> None:
        acme("acme-fork", {"ACME": "fork:Backend", "Memory": "fork:Second"}, {"fork.py": HEALTHY})
        for name in ("acme", "ACME", "memory", "Memory"):
            with pytest.raises(AmbiguousBackendError, match=r"differ by case only.*acme-fork 1"):
                load_backend(name)
        statuses = {info.name: info.status for info in list_backends()}
        assert statuses["acme"] == statuses["ACME"] == statuses["memory"] == "ambiguous"
        assert statuses["sqlite"] != "ambiguous"

    def test_other_names_are_not_affected(self, acme: FakeDistribution) -> None:
        acme("acme-fork", {"acme": "fork:Backend", "other": "fork:Second"}, {"fork.py": HEALTHY})
        load_backend("other")


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


IMPORT_DEPRECATED = """
import warnings
try:
    deprecated = warnings.deprecated
except AttributeError:  # Python < 3.13
    from typing_extensions import deprecated
"""


class TestDeprecated:
    """``__deprecated__`` of PEP 702."""

    TEXT = "moved to abe-newer; it ends in 2027 (really)"

    def test_gives_one_future_warning_with_its_text(
        self, fake_distribution: FakeDistribution
    ) -> None:
        plain = HEALTHY[: HEALTHY.index("class Second")]
        source = plain.replace("class Backend", f"@deprecated({self.TEXT!r})\nclass Backend")
        install(fake_distribution, IMPORT_DEPRECATED + source)
        with pytest.warns(FutureWarning) as caught:
            load_backend("odd")
        (warning,) = caught
        assert str(warning.message) == f"backend 'odd' of abe-odd 2.5 is deprecated: {self.TEXT}"
        assert warning.filename == __file__

    def test_is_listed_once_it_is_known(self, fake_distribution: FakeDistribution) -> None:
        install(fake_distribution, f"{HEALTHY}\nBackend.__deprecated__ = {self.TEXT!r}")
        assert row("odd").deprecated is None
        assert row("odd", check=True).deprecated == self.TEXT
        assert row("odd").deprecated == self.TEXT

    def test_tools_get_the_class_without_the_warning(
        self, fake_distribution: FakeDistribution
    ) -> None:
        install(fake_distribution, f"{HEALTHY}\nBackend.__deprecated__ = {self.TEXT!r}")
        assert vars(load_backend_class("odd"))["__deprecated__"] == self.TEXT

    def test_is_not_inherited(self, fake_distribution: FakeDistribution) -> None:
        source = f"{HEALTHY}\nBackend.__deprecated__ = {self.TEXT!r}\nBackend = Second"
        install(fake_distribution, source)
        load_backend("odd")


@pytest.mark.usefixtures("acme")
class TestEnvironment:
    """``env`` is set while ``from_env()`` runs, and at no other time."""

    def test_from_env_sees_it(self) -> None:
        assert url_of(load_backend("acme", env={"ABE_ACME_URL": "over"})) == "over"
        assert url_of(load_backend("acme")) == "the default"

    def test_is_restored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ABE_ACME_URL", "mine")
        before = dict(os.environ)
        load_backend("acme", env={"ABE_ACME_URL": "over", "ABE_ACME_NEW": "1"})
        assert dict(os.environ) == before

    @pytest.mark.parametrize(
        ("statement", "raised"),
        [("1 / 0", BackendLoadError), ("raise KeyboardInterrupt", KeyboardInterrupt)],
    )
    def test_is_restored_when_from_env_fails(
        self, statement: str, raised: type[BaseException], fake_distribution: FakeDistribution
    ) -> None:
        install(fake_distribution, from_env_that(f"os.environ.pop('ABE_ODD_A'); {statement}"))
        before = dict(os.environ)
        with pytest.raises(raised):
            load_backend("odd", env={"ABE_ODD_A": "a", "ABE_ODD_B": "b"})
        assert dict(os.environ) == before

    @pytest.mark.parametrize("env", [{"A": 1}, {"": "x"}, {"A=B": "x"}, {"A\0": "x"}, {1: "x"}])
    def test_refuses_what_cannot_be_a_variable(self, env: dict[str, str]) -> None:
        before = dict(os.environ)
        with pytest.raises(ConfigurationError, match=r"^env"):
            load_backend("acme", env={"ABE_ACME_URL": "first", **env})
        assert dict(os.environ) == before

    def test_does_not_show_a_refused_value(self) -> None:
        with pytest.raises(ConfigurationError) as caught:
            load_backend("acme", env={"ABE_ACME_URL": "hunter2\0"})
        assert str(caught.value) == "env['ABE_ACME_URL'] must not contain a null character"

    def test_from_env_may_load_another_backend(self, fake_distribution: FakeDistribution) -> None:
        nested = (
            "import abe; b = abe.load_backend('acme', env={'ABE_ACME_URL': 'inner'});"
            "b.outer = os.environ['ABE_ACME_URL']; return b"
        )
        install(fake_distribution, from_env_that(nested))
        backend: Any = load_backend("odd", env={"ABE_ACME_URL": "outer"})
        assert (backend.url, backend.outer) == ("inner", "outer")

    def test_one_thread_at_a_time(self, fake_distribution: FakeDistribution) -> None:
        """A backend without ``env`` is not created inside the overlay of another thread."""
        install(fake_distribution, from_env_that("hook(); return cls(os.environ.get('ABE_X'))"))
        module: Any = sys.modules[load_backend_class("odd").__module__]
        results: list[Any] = []
        other = threading.Thread(target=lambda: results.append(url_of(load_backend("acme"))))

        def hook() -> None:
            other.start()
            other.join(timeout=0.1)  # it must not get anywhere; if it does, the wait is short
            assert other.is_alive()

        module.hook = hook
        first = load_backend("odd", env={"ABE_X": "mine", "ABE_ACME_URL": "not yours"})
        other.join()
        assert url_of(first) == "mine"
        assert results == ["the default"]

    def test_many_threads_each_get_their_own(self) -> None:
        wrong: list[tuple[str, Any]] = []
        start = threading.Barrier(8)

        def work(number: int) -> None:
            start.wait()
            for turn in range(10):
                mine = f"{number}-{turn}"
                seen = url_of(load_backend("acme", env={"ABE_ACME_URL": mine}))
                if seen != mine:
                    wrong.append((mine, seen))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert "ABE_ACME_URL" not in os.environ

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
    @pytest.mark.parametrize("fork", ["os.fork()", "ctypes.PyDLL(None).fork()"])
    def test_a_fork_inherits_neither_the_lock_nor_the_overlay(
        self, fork: str, tmp_path: Path
    ) -> None:
        script = tmp_path / "fork.py"
        script.write_text(FORK.replace("os.fork()", fork))
        path = os.pathsep.join([str(Path(abe.__file__).parents[1]), *sys.path])
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(script)],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")


FORK = """
import ctypes, os, sys, threading
import abe
from abe.backends.message_queue.loader import load_backend_class

module = sys.modules[load_backend_class("acme").__module__]
inside, from_env = threading.Event(), module.Backend.from_env

def slow():
    inside.set()
    threading.Event().wait(0.2)   # the fork below waits for this
    return from_env()

module.Backend.from_env = slow
threading.Thread(target=abe.load_backend, args=("acme",), kwargs={"env": {"ABE_X": "1"}}).start()
inside.wait()
child = os.fork()
if child == 0:
    module.Backend.from_env = from_env
    abe.load_backend("acme")
    os._exit(7 if "ABE_X" in os.environ else 0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


class TestSecrets:
    """No value of the environment appears in an error or in what it is chained to."""

    URL = "acme://me:hunter%402@broker.example.org/7"

    @pytest.fixture(params=["overlay", "process"])
    def env(
        self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[dict[str, str]]:
        """The URL, given in both ways."""
        if request.param == "overlay":
            yield {"ABE_ODD_URL": self.URL}
        else:
            monkeypatch.setenv("ABE_ODD_URL", self.URL)
            yield {}

    @pytest.mark.parametrize(
        "statement",
        [
            "raise ValueError(f'cannot parse {os.environ[\"ABE_ODD_URL\"]!r}')",
            "raise ValueError(urlsplit(os.environ['ABE_ODD_URL']).netloc)",
            "raise ValueError(urlsplit(os.environ['ABE_ODD_URL']).password)",
            "raise ValueError(unquote(urlsplit(os.environ['ABE_ODD_URL']).password))",
            "raise OSError('closed') from ValueError(os.environ['ABE_ODD_URL'])",
            "e = OSError('closed'); e.add_note(os.environ['ABE_ODD_URL']); raise e",
            "raise ExceptionGroup('two', [ValueError(os.environ['ABE_ODD_URL'])])",
            "int(os.environ['ABE_ODD_URL'])",
        ],
    )
    def test_are_replaced(
        self, statement: str, env: dict[str, str], fake_distribution: FakeDistribution
    ) -> None:
        source = f"from urllib.parse import unquote, urlsplit\n{from_env_that(statement)}"
        install(fake_distribution, source)
        with pytest.raises(BackendLoadError) as caught:
            load_backend("odd", env=env)
        shown = "".join(traceback.format_exception(caught.value))
        for secret in (self.URL, "hunter%402", "hunter@2"):
            assert secret not in shown
        assert "odd_backend.py" in shown, "the traceback into the provider must survive"
        assert caught.value.__cause__ is not None
        assert caught.value.__context__ is caught.value.__cause__ or (
            caught.value.__context__ is None
        )

    def test_the_type_of_the_error_survives(self, fake_distribution: FakeDistribution) -> None:
        install(fake_distribution, from_env_that("int(os.environ['ABE_ODD_TOKEN'])"))
        with pytest.raises(BackendLoadError, match=r"ValueError: .*'\*\*\*'"):
            load_backend("odd", env={"ABE_ODD_TOKEN": "6379x"})

    def test_what_is_no_secret_is_shown(self, fake_distribution: FakeDistribution) -> None:
        install(fake_distribution, from_env_that("int(os.environ['ABE_ODD_PORT'])"))
        with pytest.raises(BackendLoadError, match=r"ValueError: .*'5672x'"):
            load_backend("odd", env={"ABE_ODD_PORT": "5672x"})

    def test_errors_of_abe_are_cleaned_too(self, fake_distribution: FakeDistribution) -> None:
        statement = "key = os.environ['ABE_ODD_KEY']; raise ConfigurationError(f'bad {key!r}')"
        source = f"from abe.errors import ConfigurationError\n{from_env_that(statement)}"
        install(fake_distribution, source)
        with pytest.raises(ConfigurationError, match=r"^bad '\*\*\*'$") as caught:
            load_backend("odd", env={"ABE_ODD_KEY": "hunter2secret"})
        frames = traceback.walk_tb(caught.value.__traceback__)
        shown = [repr(value) for frame, _ in frames for value in frame.f_locals.values()]
        own = [text for text in shown if "hunter2secret" in text]
        assert not own, "a verbose traceback would show it"


DECLARED = """
from abe.backends.message_queue.base import Setting
from acme.backend import Backend as Plain

class Backend(Plain):
    settings = (Setting("ABE_ODD_URL"), Setting("ABE_ODD_LEASE", float), Setting("ODD_REGION"))

    @classmethod
    def from_env(cls):
        return cls("")

class Other(Backend):
    @classmethod
    def from_env(cls):
        return cls("")
"""


@pytest.mark.usefixtures("acme")
class TestUnknownVariables:
    """A backend that declares its variables lets no misspelt one pass."""

    @pytest.fixture(autouse=True)
    def _odd(self, fake_distribution: FakeDistribution, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_environment, "_told", set())
        install(fake_distribution, DECLARED)

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("ABE_ODD_URI", r"; did you mean ABE_ODD_URL\?$"),
            ("ABE_OOD_URL", r"; did you mean ABE_ODD_URL\?$"),
            ("ABE_ODD_XYZZY", "; it reads ABE_ODD_LEASE, ABE_ODD_URL, "),
            ("AWS_ENDPOINT_URL", "; it reads "),
        ],
    )
    def test_in_env_is_an_error(self, name: str, hint: str) -> None:
        with pytest.raises(
            ConfigurationError, match=f"^env: backend 'odd' does not read {name}{hint}"
        ):
            load_backend("odd", env={name: "x"})

    def test_what_is_read_may_be_read_or_does_not_matter_passes(self) -> None:
        env = {"ABE_ODD_URL": "x", "QUEUE_BACKEND": "odd", "ABE_ACME_URL": "x", "ODD_PROFILE": "x"}
        load_backend("odd", env={**os.environ, **env})

    def test_in_the_process_is_one_warning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ABE_ODD_URI", "x")
        with pytest.warns(
            UserWarning, match="^backend 'odd' does not read the variable ABE_ODD_URI; "
        ):
            load_backend("odd")
        load_backend("odd")

    def test_a_class_with_its_own_from_env_may_read_anything(
        self, fake_distribution: FakeDistribution
    ) -> None:
        fake_distribution("abe-other", {"other": "odd_backend:Other"})
        load_backend("other", env={"ABE_OTHER_ANYTHING": "x"})
        assert [it.name for it in settings_of("odd")] == [
            "ABE_ODD_URL",
            "ABE_ODD_LEASE",
            "ODD_REGION",
        ]
        assert settings_of("other") == settings_of("acme") == ()


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
