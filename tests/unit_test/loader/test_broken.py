"""Backends that are broken or ambiguous harm no others."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import pytest

from abe.backends.message_queue import loader
from abe.backends.message_queue.loader import (
    choose_backend,
    list_backends,
    load_backend,
    load_backend_class,
)
from abe.errors import (
    AmbiguousBackendError,
    BackendLoadError,
    ConfigurationError,
    UnknownBackendError,
)
from tests.unit_test.loader.support import HEALTHY, from_env_that, install, row

if TYPE_CHECKING:
    from tests.conftest import FakeDistribution

GROUP = loader.BACKEND_ENTRY_POINT_GROUP


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

    @pytest.mark.parametrize("where", ["import", "from_env"])
    def test_the_exception_cannot_be_printed(
        self, where: str, fake_distribution: FakeDistribution
    ) -> None:
        """Neither its text nor what it was made of."""
        odd = "class Odd(Exception):\n    def __str__(self): 1 / 0\n    __repr__ = __str__\n"
        statement = "raise Odd(Odd(), object.__new__(type('X', (), {'__repr__': Odd.__str__})))"
        source = statement if where == "import" else from_env_that(statement)
        install(fake_distribution, odd + source)
        assert str(self.failure()).endswith("Odd: (its text cannot be printed)")

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

    def test_what_it_prints_cannot_be_logged(
        self, fake_distribution: FakeDistribution, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A log handler that raises is no reason to do without the backend."""

        def fail(record: logging.LogRecord) -> bool:
            raise OSError("the log is full")

        install(fake_distribution, from_env_that("print('from_env'); return cls('')"))
        monkeypatch.setattr(loader.logger, "filters", [fail])
        assert type(load_backend("odd")).__name__ == "Backend"

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
