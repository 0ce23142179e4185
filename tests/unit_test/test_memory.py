"""Settings of the memory backend, by argument and by environment."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from abe.backends.message_queue.base.process import PerProcess
from abe.backends.message_queue.service import memory
from abe.backends.message_queue.service.memory import MemoryBackend
from abe.errors import ConfigurationError, InvalidKeyError


def test_the_environment_configures_it_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for variable in ("NAME", "MAXSIZE", "PUBLISH_TIMEOUT", "LEASE"):
        monkeypatch.setenv(f"ABE_MEMORY_{variable}", "")
    monkeypatch.setattr(memory, "_stores", PerProcess(memory._Stores))
    default = MemoryBackend.from_env()
    assert (default.store_name, default._maxsize, default._publish_timeout) == (
        "default",
        float("inf"),
        30.0,
    )
    assert default.capabilities.lease == 30.0
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (
            logging.WARNING,
            "backend memory keeps messages in this process only: for development",
        )
    ]
    monkeypatch.setenv("ABE_MEMORY_NAME", "unit.env")
    monkeypatch.setenv("ABE_MEMORY_MAXSIZE", "7")
    monkeypatch.setenv("ABE_MEMORY_PUBLISH_TIMEOUT", "0.5")
    monkeypatch.setenv("ABE_MEMORY_LEASE", "2")
    configured = MemoryBackend.from_env()
    assert (configured.store_name, configured._maxsize, configured._publish_timeout) == (
        "unit.env",
        7,
        0.5,
    )
    assert configured.capabilities.lease == 2.0


def test_it_warns_once_for_each_store(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("unit.warned", "unit.warned", "unit.warned.too", "unit.warned"):
        monkeypatch.setenv("ABE_MEMORY_NAME", name)
        MemoryBackend.from_env()
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    ("variable", "value", "text"),
    [
        ("MAXSIZE", "many", "ABE_MEMORY_MAXSIZE is 'many'; it must be a whole number, 1 or more"),
        ("MAXSIZE", "0", "ABE_MEMORY_MAXSIZE is '0'; it must be a whole number, 1 or more"),
        ("MAXSIZE", "1.5", "ABE_MEMORY_MAXSIZE is '1.5'; it must be a whole number, 1 or more"),
        ("MAXSIZE", "inf", "ABE_MEMORY_MAXSIZE is 'inf'; it must be a whole number, 1 or more"),
        (
            "PUBLISH_TIMEOUT",
            "-1",
            "ABE_MEMORY_PUBLISH_TIMEOUT is '-1'; it must be a number, 0 s or more",
        ),
        (
            "PUBLISH_TIMEOUT",
            "nan",
            "ABE_MEMORY_PUBLISH_TIMEOUT is 'nan'; it must be a number, 0 s or more",
        ),
        ("LEASE", "0", "ABE_MEMORY_LEASE is '0'; it must be a number, 0.001 s or more"),
        (
            "NAME",
            "a b",
            "ABE_MEMORY_NAME is 'a b'; it must be a key: key 'a b' contains ' ', "
            "which keys and groups may not",
        ),
    ],
)
def test_a_malformed_variable_is_named(
    variable: str, value: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ABE_MEMORY_{variable}", value)
    with pytest.raises(ConfigurationError) as caught:
        MemoryBackend.from_env()
    assert str(caught.value) == text


@pytest.mark.parametrize(
    "settings",
    [
        {"maxsize": 0},
        {"publish_timeout": -1.0},
        {"publish_timeout": float("nan")},
        {"lease": 0.0},
        {"lease": float("inf")},
    ],
)
def test_arguments_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(ConfigurationError, match=f"{name} is .*; it must be"):
        MemoryBackend("unit.settings", **settings)


def test_a_store_name_follows_the_rules_of_keys() -> None:
    assert repr(MemoryBackend("unit.repr")) == "MemoryBackend('unit.repr')"
    with pytest.raises(InvalidKeyError):
        MemoryBackend("a b")
    assert "a b" not in memory._stores.get().by_name
