"""The argument grammar of the magics, and `{{expr}}`."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.error import UsageError

from abe.display.options import Option
from abe.ipython.expressions import ExpressionError, evaluator, expand, find_expression
from abe.ipython.grammar import Arguments, Syntax, parse
from abe.ipython.magics import AbeMagics
from tests.unit_test.ipython.conftest import json_objects

LINE = AbeMagics.syntaxes["%abe_publish"]
CELL = AbeMagics.syntaxes["%%abe_publish"]
CONSUME = AbeMagics.syntaxes["%abe_consume"]
NAMES: dict[str, Any] = {"region": "eu", "n": 3, "d": {"a": {"b": 1}}, "text": 'say "hi"'}
evaluate = evaluator(NAMES, None)


def publish(line: str) -> Arguments:
    return parse(LINE, line, evaluate)


def consume(line: str) -> Arguments:
    return parse(CONSUME, line, evaluate)


def usage_error(line: str, syntax: Syntax = LINE) -> str:
    with pytest.raises(UsageError) as caught:
        parse(syntax, line, evaluate)
    assert type(caught.value) is UsageError  # IPython shows subclasses with a traceback
    first, usage = str(caught.value).split("\n")
    assert usage == f"Usage: {syntax.magic} {syntax.usage}"
    return first


PAYLOADS = [
    '{"price": "$5"}',
    '{"set": "{1,4}"}',
    "{'x'}",
    '{"f": "%s %(name)s %d"}',
    '{"greeting": "Hello {{name}}"}',
    '{"q": "it\'s \\"quoted\\""}',
    '{"path": "C:\\\\temp\\\\new"}',
    '{"text": "a\\nb"}',
    '{"hash": "# no comment"}',
    '{"dashes": "--delay 5 -i x"}',
    '{"emoji": "🎉 ❤️ 👩‍👩‍👧"}',
    '{"semi": ";"}',
    '{"a":   "two  spaces\t"}',
    "[1, 2]",
    "{{n}}",
    "a = b",
    '"$HOME"',
    "!ls",
    "?",
]


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("before", ["", "--delay 5 ", "-H a=b --header 'c=d e' "])
@pytest.mark.parametrize("between", ["", "--delay=5 ", '--header "x={{n}} y" '])
def test_the_payload_is_the_rest_of_the_line_verbatim(
    payload: str, before: str, between: str
) -> None:
    if "delay" in before and "delay" in between:
        between = ""
    arguments = publish(f"{before}orders.created {between}{payload}")
    assert arguments.words == ["orders.created"]
    assert arguments.payload == payload


tokens = st.text(
    st.characters(codec="utf-8", exclude_categories=["Z", "Cc"], exclude_characters="\"'{};-="),
    min_size=1,
)


@given(tokens, st.text(st.characters(codec="utf-8")))
def test_any_text_behind_the_key_arrives_unchanged(key: str, text: str) -> None:
    text = text.strip()
    if key[0] in "[" or text.startswith("-") or text.endswith(";") or not text:
        return
    arguments = publish(f"{key} {text}")
    assert (arguments.words, arguments.payload) == ([key], text)


@given(json_objects, st.booleans())
def test_any_json_object_is_the_payload(payload: dict[str, Any], ascii_only: bool) -> None:
    text = json.dumps(payload, ensure_ascii=ascii_only)
    if "\n" in text or "{{" in json.dumps(list(payload)):
        return
    assert publish(f"k --delay 1 {text}").payload == text


@given(st.text())
def test_any_line_is_parsed_or_refused(line: str) -> None:
    for syntax in (LINE, CELL, CONSUME):
        try:
            parse(syntax, line, lambda source: source)
        except UsageError:
            continue


def test_a_trailing_semicolon_is_dropped() -> None:
    assert publish('k {"a": 1} ; ').payload == '{"a": 1}'
    assert publish("k -i df;").options["in"] == "df"
    assert consume("a b;").words == ["a", "b"]
    assert consume(";").words == []
    assert publish('k {"a": ";"}').payload == '{"a": ";"}'


def test_defaults() -> None:
    options = consume("").options
    assert options == dict.fromkeys(("group", "number", "timeout", "quiet", "out"))
    assert publish("k {}").options == {
        "header": [],
        "delay": None,
        "format": None,
        "out": None,
        "in": None,
        "file": None,
    }


@pytest.mark.parametrize(
    "line",
    [
        "-n 3 a",
        "a -n 3",
        "a --number 3",
        "a --number=3",
        "a -n3",
        '-n "3" a',
        "-n {{n}} a",
        "-n=3 a",
    ],
)
def test_spellings_of_an_option(line: str) -> None:
    arguments = consume(line)
    assert arguments.options["number"] == 3
    assert arguments.words == ["a"]


def test_quotes_group_words_and_are_taken_off() -> None:
    headers = publish("""-H 'a=b c' -H d="e f" -H g={{ text }} -H h=it's "k" {}""").options[
        "header"
    ]
    assert headers == [("a", "b c"), ("d", "e f"), ("g", 'say "hi"'), ("h", "it's")]
    assert publish('"orders.created" {}').words == ["orders.created"]


def test_two_dashes_end_the_options() -> None:
    assert publish("-- -k -1").words == ["-k"]
    assert publish("-- -k -1").payload == "-1"
    assert publish("k -- -1").payload == "-1"
    assert consume("-- -a -b").words == ["-a", "-b"]


def test_expressions_in_keys_and_options() -> None:
    arguments = publish('--header n={{ n + 1 }} orders.{{region}}.{{d["a"]["b"]}} {{ d }}')
    assert arguments.words == ["orders.eu.1"]
    assert arguments.options["header"] == [("n", "4")]
    assert arguments.payload == "{{ d }}"


def test_expressions_are_evaluated_once_and_only_if_the_line_is_right() -> None:
    calls: list[str] = []

    def record(source: str) -> str:
        calls.append(source)
        return source

    parse(LINE, "-H a={{x}} k.{{y}} {}", record)
    assert calls == ["x", "y"]
    with pytest.raises(UsageError):
        parse(LINE, "-H a={{x}} k.{{y}} --dely 5 {}", record)
    assert calls == ["x", "y"]


@pytest.mark.parametrize(
    ("text", "source", "rest"),
    [
        ("{{x}}", "x", ""),
        ("{{ x }}}", "x", "}"),
        ('{{ {"a": {"b": 1}} }}', '{"a": {"b": 1}}', ""),
        ('{{ {"a": {"b": 1}}}}', '{"a": {"b": 1}}', ""),
        ('{{ "}}" + x }} y', '"}}" + x', " y"),
        ("{{ f'{x}' }}", "f'{x}'", ""),
        ("{{x}}{{y}}", "x", "{{y}}"),
        ("{{ [\n1,\n2] }}", "[\n1,\n2]", ""),
        ("{{ x # why }}\n }}", "x # why", "\n }}"),
        (r"{{ '\d' }}", r"'\d'", ""),
    ],
)
def test_where_an_expression_ends(text: str, source: str, rest: str) -> None:
    found, end = find_expression(text, 0)
    assert found == source
    assert text[end:] == rest


@pytest.mark.parametrize(
    "text", ["{{", "{{}}", "{{ }}", "{{x", "{{x}", "{{1 +}}", "{{x y}}", "{{\0}}"]
)
def test_braces_without_an_expression(text: str) -> None:
    with pytest.raises(ExpressionError, match="does not begin a Python expression"):
        find_expression(text, 0)


def test_unmatched_braces_are_refused_quickly() -> None:
    start = time.thread_time()
    with pytest.raises(ExpressionError):
        find_expression("{{" + "}} (" * 1_000_000, 0)
    assert time.thread_time() - start < 5


def test_expand() -> None:
    assert expand("a{{n}}b{{region}}", evaluate) == "a3beu"
    assert expand("{n} $n %s", evaluate) == "{n} $n %s"


def test_expressions_see_local_names() -> None:
    inside = evaluator({"a": 1, "b": 2}, {"b": 3})
    assert inside("[a + b for _ in range(2)]") == [4, 4]
    assert inside("(lambda: b)()") == 3


def test_errors_of_the_users_expression_pass_and_say_where() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        evaluate("1 / 0")
    assert caught.value._render_traceback_() == [  # type: ignore[attr-defined]
        "ZeroDivisionError: division by zero",
        "in {{1 / 0}}",
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("--dely 5 k {}", "unknown option --dely; did you mean --delay?"),
        ("k --headers a=b {}", "unknown option --headers; did you mean --header?"),
        ("-x k {}", "unknown option -x; there are -i/--in, -F/--file, -H/--header"),
        ("k --delay", "-d/--delay needs a value: S"),
        ("--delay -i k {}", "-d/--delay must be a number of seconds, 0 or more, not '-i'"),
        ("--delay inf k {}", "-d/--delay must be a number of seconds, 0 or more, not 'inf'"),
        ("--delay 1 --delay 2 k {}", "-d/--delay is given twice"),
        ("-H secret k {}", "-H/--header must look like NAME=VALUE"),
        ("-i a.b k", "name of a variable, not 'a.b'; for an expression write {{…}} as the payload"),
        ("-o class k {}", "-o/--out must be the name of a variable, not 'class'"),
        ("-h", "unknown option -h; %abe_publish? shows the help"),
        ("--help", "unknown option --help; %abe_publish? shows the help"),
        ("--format jsn k {}", "must be one of json, jsonl, yaml, csv, python, not 'jsn'; did you"),
        ('-H "a=b k {}', 'the quote in "a=b k {} is not closed'),
        ("k.{{ {}", "does not begin a Python expression"),
        ('{"a": 1}', 'KEY is missing before the payload; write %abe_publish KEY {"a": 1}'),
        ('--delay 1 [{"a": 1}]', 'write %abe_publish KEY [{"a": 1}]'),
        ("--dely {{text}} k", "unknown option --dely"),
    ],
)
def test_wrong_arguments(line: str, problem: str) -> None:
    assert problem in usage_error(line)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("-n 0", "-n/--number must be a whole number, 1 or more, not '0'"),
        ("-n 1.5", "not '1.5'"),
        ("-n ²", "-n/--number must be a whole number"),
        ("-t -1", "-t/--timeout must be a number of seconds"),
        ("-t nan", "-t/--timeout must be a number of seconds"),
        ("--grup x", "did you mean --group?"),
        ("-o 1x", "-o/--out must be the name of a variable"),
        ("--group", "-g/--group needs a value: GROUP"),
    ],
)
def test_wrong_arguments_of_consume(line: str, problem: str) -> None:
    assert problem in usage_error(line, CONSUME)


def test_a_flag_takes_no_value_and_no_options_are_named_as_such() -> None:
    flagged = Syntax("%m", "[--check]", (Option("--check"),))
    assert parse(flagged, "--check", evaluate).options == {"check": True}
    assert usage_error("--check=1", flagged) == "--check takes no value"
    assert usage_error("--check", Syntax("%m", "")) == (
        "unknown option --check; this magic has no options"
    )


def test_secrets_are_not_echoed() -> None:
    assert "hunter2" not in usage_error("-H hunter2 k {}")
    assert "hunter2" not in usage_error("--delay redis://me:hunter2@host k {}")
    assert "\x1b" not in usage_error("--delay \x1b[31m k {}")
