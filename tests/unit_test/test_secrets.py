"""Secrets stay out of whatever form of text a driver puts them in."""

from __future__ import annotations

import traceback

import pytest

from abe.backends.message_queue.base import Secrets

SECRET = "pä ss/wörd\n%"


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        "p%C3%A4%20ss%2Fw%C3%B6rd%0A%25",
        "p%C3%A4%20ss/w%C3%B6rd%0A%25",
        "p%C3%A4+ss%2Fw%C3%B6rd%0A%25",
        repr(SECRET)[1:-1],
        repr(SECRET.encode())[2:-1],
    ],
)
def test_every_form_is_hidden(form: str) -> None:
    assert Secrets(SECRET, None, "").hide(f"a {form} b") == "a *** b"


def test_one_that_contains_another_is_hidden_whole() -> None:
    secrets = Secrets("pass")
    secrets.add("password", None)
    assert secrets.hide("pass password") == "*** ***"


def test_nothing_is_hidden_when_there_is_no_secret() -> None:
    assert Secrets().hide("a b") == "a b"


def test_an_exception_and_those_behind_it_are_cleaned() -> None:
    """Arguments, attributes, and what `OSError` shows instead of its arguments."""
    deep = OSError(111, f"refused {SECRET}", f"/{SECRET}")
    error = ValueError(SECRET.encode(), [SECRET], 7, None)
    error.response = {"headers": {"auth": SECRET}}  # type: ignore[attr-defined]
    error.__cause__, deep.__context__ = deep, error
    Secrets(SECRET).clean(error)
    assert error.args == ("***", "['***']", 7, None)
    assert vars(error) == {"response": {"headers": {"auth": "***"}}}
    assert (deep.errno, deep.strerror, deep.filename) == (111, "refused ***", "/***")
    assert SECRET not in "".join(traceback.format_exception(error))


def test_what_holds_no_secret_stays_as_it_is() -> None:
    part = ["plain"]
    error = ValueError(b"plain", part, 1)
    Secrets("1").clean(error)
    assert error.args == (b"plain", ["plain"], 1)
    assert error.args[1] is part


def test_errors_of_the_system_keep_their_words() -> None:
    """One that was made of a text alone shows its number instead once it is told it has none."""
    for error in (TimeoutError("no answer to pass"), OSError(2, "no file"), OSError(2, "no", "x")):
        text = str(error)
        Secrets("pass").clean(error)
        assert str(error) == text.replace("pass", "***")
