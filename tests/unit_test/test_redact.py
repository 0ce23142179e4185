"""The one redactor: by name, by place in a text, and by value."""

from __future__ import annotations

import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abe._redact import SECRET as HIDDEN
from abe._redact import Secrets, Variables, is_secret, redact
from abe.display.text import preview

SECRET = "pä ss/wörd\n%"

CONFIDENTIAL = [
    "password",
    "passwd",
    "pwd",
    "passphrase",
    "token",
    "secret",
    "credentials",
    "api_key",
    "access_key",
    "private_key",
    "authorization",
]
names = st.builds(
    lambda prefix, noun, separator, case: case(
        separator.join(filter(None, (prefix, noun.replace("_", separator))))
    ),
    st.sampled_from(["", "abe_x", "db", "client", "x.aws"]),
    st.sampled_from(CONFIDENTIAL),
    st.sampled_from("_-."),
    st.sampled_from(
        [str, str.upper, str.title, lambda it: "".join(w.title() for w in it.split("_"))]
    ),
)
values = st.text("abcXYZ019/+=%", min_size=8).map(lambda it: f"hunter2{it}")
nested = st.recursive(
    values | st.integers(10_000) | st.floats(1e5, 1e6),
    lambda it: st.lists(it, max_size=2) | st.dictionaries(values, it, max_size=2),
    max_leaves=3,
)


@given(names, nested)
def test_nothing_under_a_confidential_name_is_shown(name: str, value: Any) -> None:
    """In any casing, of any type, at any depth."""
    assert is_secret(name)
    for payload in ({name: value}, {"a": [{"b": {name: value}}]}):
        shown = preview(payload, 100_000)
        assert HIDDEN in shown
        assert "hunter2" not in shown
    assert preview({name: None}).endswith("null}")


@given(names, values)
def test_a_value_after_a_confidential_name_is_not_shown(name: str, value: str) -> None:
    for text in (
        f"Server=x;{name}={value};Port=1",
        f"{{'{name}': '{value}'}}",
        f'{name} = "{value}"',
    ):
        assert "hunter2" not in redact(f"cannot use {text}")
    assert "hunter2" not in repr(Variables({name: value}))


@given(st.sampled_from(["", "me", "ada@shop"]), values)
def test_credentials_of_urls_in_variables_are_known(user: str, password: str) -> None:
    """Whatever characters they have, encoded or not, also without the URL around them."""
    secrets = Secrets()
    secrets.learn({"ABE_X_URL": f"amqp://{user}:{password}@broker.example/7"})
    for text in (password, f"{user}:{password}", f"amqp://{user}:{password}@broker.example/7"):
        assert password not in secrets.hide(f"cannot parse {text!r}")


@pytest.mark.parametrize(
    "name",
    [
        "PassWord",
        "token_value",
        "db_password2",
        "ABE_X_KEY",
        "ABE_X_SERVICE_KEY",
        "APIKey",
        "X-API-Key",
        "AccountKey",
        "REDIS_AUTH",
        "MY_PWD",
        "AWS_ACCESS_KEY_ID",
        "sessionToken",
    ],
)
def test_confidential_names(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "key",
        "routing_key",
        "primaryKey",
        "customer_key",
        "dead_letter_key",
        "publicKey",
        "author",
        "authored_at",
        "secretary",
        "passenger",
        "compass",
        "total_tokens",
        "max_token",
        "has_password",
        "password_changed_at",
        "token_type",
        "SSH_AUTH_SOCK",
        "XAUTHORITY",
        "passed",
        "monkey",
        "",
    ],
)
def test_other_names(name: str) -> None:
    assert not is_secret(name)


@pytest.mark.parametrize(
    ("variables", "text", "shown"),
    [
        ({"ABE_X_KEY": "ccSECRETcc"}, "bad key 'ccSECRETcc'", "bad key '***'"),
        ({"ABE_X_DSN": "Server=x;Password=hunter2;"}, "x hunter2", "x ***"),
        ({"ABE_X_TOKEN": "true", "ABE_X_KEY": "abc"}, "true abc", "true abc"),
        ({"PWD": "/home/shop"}, "in /home/shop", "in /home/shop"),
        ({"ABE_X_TLS_KEY": "/etc/ssl/me.pem"}, "no /etc/ssl/me.pem", "no /etc/ssl/me.pem"),
        ({"ABE_X_NAME": "orders"}, "orders", "orders"),
        ({"ABE_X_URL": "http://host:8080/@home"}, "host:8080/", "host:8080/"),
        ({}, "Authorization: Bearer abcdef", "Authorization: Bearer ***"),
        ({}, "invalid password: too short", "invalid password: too short"),
    ],
)
def test_what_is_learnt_from_variables(variables: dict[str, str], text: str, shown: str) -> None:
    secrets = Secrets()
    secrets.learn(variables)
    assert secrets.hide(text) == shown


def test_frames_that_hold_a_secret_are_not_kept() -> None:
    def connect(auth: tuple[str, str]) -> None:
        raise OSError("refused")

    def outer() -> None:
        connect(("me", SECRET))

    for secrets, kept in ((Secrets(SECRET), ["outer"]), (Secrets("x"), ["outer", "connect"])):
        with pytest.raises(OSError, match="refused") as caught:
            outer()
        secrets.clean(caught.value)
        frames = traceback.extract_tb(caught.value.__traceback__)
        assert [frame.name for frame in frames][1:] == kept


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
    assert error.args == ("***", ["***"], 7, None)
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
