"""A setting: from a variable or an argument to a value, and what the error says otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abe.backends.message_queue.base import (
    BaseBackend,
    Setting,
    check_settings,
    naming_variables,
    read_settings,
)
from abe.errors import ConfigurationError


def even(text: str) -> int:
    number = int(text)
    if number % 2:
        raise ValueError("an even number")
    return number


SETTINGS = (
    Setting("ABE_X_NAME", default="shop"),
    Setting("ABE_X_LEASE", float, 30.0, "s", minimum=0.5),
    Setting("ABE_X_COUNT", int, 0, "messages", maximum=9),
    Setting("ABE_X_FLAG", bool, False),
    Setting("ABE_X_MODE", ("FULL", "NORMAL"), "FULL"),
    Setting("ABE_X_PAIR", even),
    Setting("ABE_X_PATH", Path),
    Setting("ABE_X_PIN", even, secret=True),
    Setting("AWS_THING", argument="aws"),
)


def test_unset_and_empty_variables_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABE_X_LEASE", "")
    values = read_settings(SETTINGS)
    assert values == {setting.argument: setting.default for setting in SETTINGS}
    assert [*values][:3] == ["name", "lease", "count"]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("NAME", "a b", "a b"),
        ("LEASE", "0.5", 0.5),
        ("LEASE", "1e3", 1000.0),
        ("COUNT", "9", 9),
        ("FLAG", "Yes", True),
        ("FLAG", "off", False),
        ("MODE", "normal", "NORMAL"),
        ("PAIR", "4", 4),
        ("PATH", "x/y", Path("x/y")),
    ],
)
def test_values(name: str, text: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ABE_X_{name}", text)
    assert read_settings(SETTINGS)[name.lower()] == value


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("LEASE", "soon", "is 'soon'; it must be a number, 0.5 s or more"),
        ("LEASE", "0.4", "is '0.4'; it must be a number, 0.5 s or more"),
        ("LEASE", "nan", "is 'nan'; it must be a number, 0.5 s or more"),
        ("LEASE", "inf", "is 'inf'; it must be a number, 0.5 s or more"),
        ("COUNT", "0.9", "is '0.9'; it must be a whole number, 0 to 9"),
        ("COUNT", "10", "is '10'; it must be a whole number, 0 to 9"),
        ("FLAG", "maybe", "is 'maybe'; it must be 1 or 0"),
        ("MODE", "OFF", "is 'OFF'; it must be FULL or NORMAL"),
        ("PAIR", "3", "is '3'; it must be an even number"),
        ("PAIR", "a://me:pw@h", "is malformed; it must be "),
        ("PIN", "1235", "is malformed; it must be an even number"),
    ],
)
def test_a_malformed_variable_is_named(
    name: str, text: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ABE_X_{name}", text)
    with pytest.raises(ConfigurationError) as caught:
        read_settings(SETTINGS)
    assert str(caught.value).startswith(f"ABE_X_{name} {problem}")


@pytest.mark.parametrize(
    ("argument", "value", "problem"),
    [
        ("lease", 0, "lease is 0; it must be a number, 0.5 s or more"),
        ("lease", "30", "lease is '30'; it must be a number"),
        ("count", 1.0, "count is 1.0; it must be a whole number"),
        ("mode", "full", "mode is 'full'; it must be FULL or NORMAL"),
    ],
)
def test_a_malformed_argument_is_named(argument: str, value: Any, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{problem}"):
        check_settings(SETTINGS, **{argument: value})


def test_defaults_pass_as_arguments() -> None:
    check_settings(SETTINGS, **read_settings(SETTINGS))


@given(st.floats() | st.integers() | st.text())
def test_a_number_is_finite_and_in_range_or_refused(value: Any) -> None:
    setting = SETTINGS[1]
    try:
        number = setting.parse(str(value))
    except ConfigurationError:
        return
    assert 0.5 <= number < float("inf")


def test_errors_of_a_constructor_name_the_variable_that_was_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Odd(BaseBackend):
        name: ClassVar[str] = "x"
        settings = (Setting("ABE_X_URL"), Setting("ABE_X_GROUP_QUEUE", argument="group_queue"))
        _send = _receiver = None  # type: ignore[assignment]

        def __init__(self, url: str | None = None, group_queue: str | None = None) -> None:
            raise ConfigurationError(f"url is {url!r}; give group_queue or a better url")

    with pytest.raises(ConfigurationError, match=r"^url is 'x'; give group_queue or a better url$"):
        Odd("x")
    monkeypatch.setenv("ABE_X_URL", "x")
    with pytest.raises(
        ConfigurationError, match=r"^ABE_X_URL is 'x'; give ABE_X_GROUP_QUEUE or a "
    ):
        Odd.from_env()


def test_other_errors_pass_through_unchanged() -> None:
    error = ConfigurationError("nothing about arguments")
    with pytest.raises(ConfigurationError) as caught, naming_variables(SETTINGS):
        raise error
    assert caught.value is error
