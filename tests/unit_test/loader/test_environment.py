"""Variables given for one connection, and secrets in errors."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import abe
from abe.backends.message_queue import _environment
from abe.backends.message_queue.loader import load_backend, load_backend_class, settings_of
from abe.errors import BackendLoadError, ConfigurationError
from tests.unit_test.loader.support import from_env_that, install, url_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import FakeDistribution


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
            for turn in range(4):
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
