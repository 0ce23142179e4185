"""Which backend is chosen, by name, variable or default."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import abe
from abe.backends.message_queue.loader import (
    BackendInfo,
    choose_backend,
    list_backends,
    load_backend,
    load_backend_class,
)
from abe.errors import BackendLoadError, UnknownBackendError
from abe.types import MessageQueueBackendProtocol
from tests.unit_test.loader.support import HEALTHY, from_env_that, install, row, url_of

if TYPE_CHECKING:
    from tests.conftest import FakeDistribution


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
