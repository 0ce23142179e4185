"""The public surface: the error tree, the exports, and what importing abe costs."""

from __future__ import annotations

import builtins
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Self

import pytest

import abe
from abe import errors, types
from abe.types import KeyStats, MessageQueueBackendProtocol, QueueStats

DRAWN = re.findall(r"── (\w+) +\(([\w, ]+)\)", errors.__doc__ or "")
SIGNALS = ["Reject", "Retry"]


def in_a_fresh_interpreter(code: str) -> str:
    """What ``code`` prints; warnings are errors there too."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


class TestErrors:
    """``abe/errors.py`` is what its docstring draws."""

    def test_the_drawing_is_complete(self) -> None:
        assert {*(name for name, _ in DRAWN), "AbeError", *SIGNALS} == set(errors.__all__)

    @pytest.mark.parametrize(("name", "bases"), DRAWN)
    def test_each_has_the_bases_that_are_drawn(self, name: str, bases: str) -> None:
        drawn = [getattr(builtins, base) for base in bases.split(", ")]
        assert getattr(errors, name).__bases__ == (errors.AbeError, *drawn)

    def test_the_root_is_a_plain_exception(self) -> None:
        assert errors.AbeError.__bases__ == (Exception,)

    @pytest.mark.parametrize("name", SIGNALS)
    def test_a_handlers_signals_are_not_errors_of_abe(self, name: str) -> None:
        assert getattr(errors, name).__bases__ == (Exception,)

    @pytest.mark.parametrize("name", sorted(set(errors.__all__) - {*SIGNALS}))
    def test_each_shows_its_text(self, name: str) -> None:
        assert str(getattr(errors, name)("what happened")) == "what happened"

    def test_publish_error_says_what_was_published(self) -> None:
        error = abe.PublishError("x", retryable=True, published=[0, 2], failed={1: "too large"})
        assert (error.retryable, error.published, error.failed) == (True, [0, 2], {1: "too large"})
        plain = abe.PublishError("x")
        assert (plain.retryable, plain.published, plain.failed) == (False, (), {})

    def test_signals_carry_what_the_handler_said(self) -> None:
        assert abe.Reject("no such order").reason == "no such order"
        assert abe.Reject().reason == ""
        assert abe.Retry(delay=3.0).delay == 3.0
        assert abe.Retry().delay is None
        assert (str(abe.Retry(delay=0.25)), str(abe.Retry())) == ("again in 0.25 s", "")

    @pytest.mark.parametrize(
        ("reason", "text"),
        [(KeyError("vat"), "KeyError: 'vat'"), ({"code": 7}, "{'code': 7}"), (None, "")],
    )
    def test_any_reason_becomes_text(self, reason: object, text: str) -> None:
        assert abe.Reject(reason).reason == text

    @pytest.mark.parametrize("delay", [timedelta(seconds=3), "soon", [1]])
    def test_a_delay_that_is_no_number_is_refused_where_it_is_written(self, delay: Any) -> None:
        with pytest.raises(TypeError) as caught:
            abe.Retry(delay)
        assert str(caught.value) == f"delay is {delay!r}; it must be a number of seconds, or None"

    def test_a_signal_with_a_constructor_of_its_own_says_nothing_more(self) -> None:
        class NoCustomer(abe.Reject):
            def __init__(self, customer: int) -> None:
                self.customer = customer

        class Busy(abe.Retry):
            def __init__(self, shop: int) -> None:
                self.shop = shop

        assert NoCustomer(1).reason == ""
        assert Busy(1).delay is None


class TestExports:
    """What the package promises to export is there, and nothing else."""

    @pytest.mark.parametrize("name", abe.__all__)
    def test_every_name_of_abe_can_be_imported(self, name: str) -> None:
        assert getattr(abe, name) is not None
        assert name in dir(abe)

    def test_abe_exports_what_the_design_lists(self) -> None:
        assert set(abe.__all__) == {
            "__version__",
            "load_backend",
            "list_backends",
            "connect",
            "aconnect",
            "AsyncLoopConsumer",
            "RetryPolicy",
            "AsyncBackend",
            "Message",
            "Messages",
            "SyncMessage",
            "SyncBackend",
            "enable_nesting",
            *errors.__all__,
        }

    def test_star_import_gives_exactly_that(self) -> None:
        code = "before = set(dir()); from abe import *; print(*set(dir()) - before - {'before'})"
        assert set(in_a_fresh_interpreter(code).split()) == set(abe.__all__)

    def test_an_unknown_name_is_an_attribute_error(self) -> None:
        with pytest.raises(AttributeError, match="module 'abe' has no attribute 'nope'"):
            _ = abe.nope

    @pytest.mark.parametrize(
        "module",
        ["abe.types", "abe.errors", "abe.backends.message_queue.base"],
    )
    def test_modules_export_what_they_list(self, module: str) -> None:
        loaded = importlib.import_module(module)
        exported = loaded.__all__
        assert len(exported) == len(set(exported))
        assert all(hasattr(loaded, name) for name in exported)

    def test_types_lists_every_public_name_that_it_defines(self) -> None:
        defined = {
            name
            for name, value in vars(types).items()
            if inspect.isclass(value) and value.__module__ == types.__name__
        }
        assert {name for name in defined if not name.startswith("_")} <= set(types.__all__)

    def test_the_working_name_is_the_protocol(self) -> None:
        from abe.backends.message_queue.base import MessageQueueBackend

        assert MessageQueueBackend is MessageQueueBackendProtocol


class TestProtocol:
    """The required surface: three methods, and nothing more."""

    def test_three_methods_are_enough(self) -> None:
        class Plain:
            @classmethod
            def from_env(cls) -> Self:
                return cls()

            async def publish(self, key: str, payload: dict[str, Any]) -> None: ...

            async def consume(self, *, group: str | None = None) -> AsyncIterator[dict[str, Any]]:
                yield {}

        assert isinstance(Plain(), MessageQueueBackendProtocol)

    @pytest.mark.parametrize("missing", ["from_env", "publish", "consume"])
    def test_two_are_not(self, missing: str) -> None:
        methods = {"from_env", "publish", "consume"} - {missing}
        lacking = type("Lacking", (), dict.fromkeys(methods, lambda *_: None))
        assert not isinstance(lacking(), MessageQueueBackendProtocol)

    def test_totals_count_only_the_group_asked_for(self) -> None:
        stats = QueueStats(
            (
                KeyStats("a", None, ready=2, dead=None),
                KeyStats("b", None, ready=3),
                KeyStats("a", "other", ready=10),
            )
        )
        assert stats.total("ready") == 5
        assert stats.total("ready", group="other") == 10
        assert stats.total("dead") == 0


class TestImportCost:
    """``import abe`` is cheap, because notebooks and command lines pay it every time."""

    def test_loads_nothing_heavy(self) -> None:
        loaded = set(in_a_fresh_interpreter("import abe, sys; print(*sys.modules)").split())
        assert "abe.errors" in loaded
        heavy = {"IPython", "ipykernel", "pytest", "asyncio", "sqlite3", "importlib.metadata"}
        assert not heavy & loaded

    def test_loads_only_the_errors_of_abe(self) -> None:
        code = "import abe, sys; print(*[m for m in sys.modules if m.startswith('abe')])"
        assert set(in_a_fresh_interpreter(code).split()) <= {"abe", "abe._version", "abe.errors"}

    def test_no_provider_is_loaded_until_one_is_asked_for(self) -> None:
        code = (
            "import abe, sys; abe.list_backends(); abe.load_backend;"
            "print(*[m for m in sys.modules if m.startswith(('abe_', 'abe.')) and "
            "('service' in m or m.startswith('abe_'))])"
        )
        assert in_a_fresh_interpreter(code).split() == []
