"""What `%abe_publish` accepts as a payload."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abe.errors import PayloadError, UnsupportedError
from abe.ipython.expressions import evaluator
from abe.ipython.payloads import FORMATS, payloads_of, read_payloads
from tests.unit_test.ipython.conftest import json_values, published

NAMES: dict[str, Any] = {
    "x": 5,
    "name": "id",
    "text": 'say "hi" {{x}} \\',
    "order": {"id": 1},
    "orders": [{"id": 1}, {"id": 2}],
    "nan": float("nan"),
    "tags": {"a"},
    "it": iter(range(100)),
}
evaluate = evaluator(NAMES, None)


def read(text: str, format: str = "json") -> list[Any]:
    return published(read_payloads(text, format, evaluate, "%abe_publish orders"))


def refused(text: str, format: str = "json") -> str:
    with pytest.raises(PayloadError) as caught:
        read(text, format)
    return str(caught.value)


@pytest.mark.parametrize(
    "payload",
    [
        {"price": "$5", "set": "{1,4}", "q": "{'x'}", "f": "%s"},
        {"greeting": "Hello {{name}}", "{{name}}": '"{{x}}" \\" {{'},
        {"path": "C:\\temp\\new", "lines": "a\nb\r\n\u2028c", "hash": "#", "dashes": "--"},
        {"emoji": "🎉👩‍👩‍👧", "n": [1, 2.5, -0.0, 10**30, None, True], "deep": {"a": [{}]}},
        {"abe:0": "abe:", "": ""},
    ],
)
@pytest.mark.parametrize("format", ["json", "jsonl", "yaml", "python"])
def test_what_is_written_is_what_is_published(payload: dict[str, Any], format: str) -> None:
    # YAML does not know JSON's escapes of characters outside the basic plane.
    text = json.dumps(payload, ensure_ascii=format != "yaml")
    text = repr(payload) if format == "python" else text
    assert read(text, format) == [payload]
    if format == "json":
        assert read(json.dumps(payload, ensure_ascii=False, indent=2)) == [payload]


@given(json_values, st.text(st.characters(codec="utf-8")), st.booleans())
def test_any_value_goes_in_and_any_string_stays(value: Any, text: str, ascii_only: bool) -> None:
    look = evaluator({"v": value}, None)
    line = f'{{"a": {{{{v}}}}, {json.dumps(text, ensure_ascii=ascii_only)}: [{{{{ v }}}}, "x"]}}'
    if text == "a":
        return
    try:
        got = published(read_payloads(line, "json", look, ""))
    except PayloadError as error:
        assert "surrogate" in str(error)  # noqa: PT017 - names generated here may hold some
    else:
        assert got == [{"a": value, text: [value, "x"]}]


def test_expressions() -> None:
    assert read('{"a": {{x}}, "b": [{{ text }}], "c": "{{x}}"}') == [
        {"a": 5, "b": [NAMES["text"]], "c": "{{x}}"}
    ]
    assert read("{{{name}}: {{order}}}") == [{"id": {"id": 1}}]
    assert read('[{{order}}, {"id": {{x}}}]') == [{"id": 1}, {"id": 5}]
    assert read('{"a": {{ {"b": {"c": x}} }}}') == [{"a": {"b": {"c": 5}}}]
    assert read('{"a": {{ [\n  x,\n  x] }}}') == [{"a": [5, 5]}]
    assert read('{"a":{{x}},\n"b":{{x}}}', "json") == [{"a": 5, "b": 5}]
    assert read('{"i": {{next(it)}}}\n{"i": {{next(it)}}}\n', "jsonl") == [{"i": 0}, {"i": 1}]


def test_a_payload_that_is_one_expression() -> None:
    assert read("{{order}}") == [{"id": 1}]
    assert read(" {{ orders }} ") == [{"id": 1}, {"id": 2}]
    assert read("{{ ({'i': i} for i in range(3)) }}") == [{"i": 0}, {"i": 1}, {"i": 2}]
    assert read("{{ {} }}") == [{}]
    assert read("{{ [] }}") == []


def test_nothing_is_evaluated_if_the_json_is_broken() -> None:
    calls: list[str] = []
    with pytest.raises(PayloadError):
        read_payloads('{"a": {{x}}, "b" 1}', "json", calls.append, "")
    with pytest.raises(PayloadError, match="line 3: "):
        read_payloads('{"a": {{x}}}\n\n{"b" 1}', "jsonl", calls.append, "")
    assert calls == []


def test_other_formats_are_verbatim() -> None:
    assert read("a: Hello {{name}}\nb: '{{x}}'", "yaml") == [{"a": "Hello {{name}}", "b": "{{x}}"}]
    assert read("a\n{{x}}", "csv") == [{"a": "{{x}}"}]
    assert read("{'a': '{{x}}'}", "python") == [{"a": "{{x}}"}]


def test_formats() -> None:
    assert set(FORMATS) == {"json", "jsonl", "yaml", "csv", "python"}
    assert read('{"a": 1}\n\n{"a": 2}\r\n', "jsonl") == [{"a": 1}, {"a": 2}]
    assert read('{"a": "\u2028\x85"}\n', "jsonl") == [{"a": "\u2028\x85"}]
    assert read("- a: 1\n- a: [x, 2.5, null]", "yaml") == [{"a": 1}, {"a": ["x", 2.5, None]}]
    assert read("a: &x {n: 1, m: 2}\nb: {<<: *x, n: 3}", "yaml")[0]["b"] == {"n": 3, "m": 2}
    assert read("\ufeffa\n1", "csv") == [{"a": "1"}]
    assert read('a,b\n1,"x, ""y""\nz"\n\n2,', "csv") == [
        {"a": "1", "b": 'x, "y"\nz'},
        {"a": "2", "b": ""},
    ]
    assert read("[{'a': None}, {'a': True}]\n", "python") == [{"a": None}, {"a": True}]
    assert read("({'a': 1}, {'b': 2})", "python") == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": {{nan}}}', 'payload["a"]: nan is not JSON'),
        ('{"a": [1, {{tags}}]}', 'payload["a"][1]: set is not JSON'),
        ('{"a": {"b": {{ (1,) }}}}', 'payload["a"]["b"]: tuple is not JSON'),
        ('{"a": {{ {1: 2} }}}', 'payload["a"]: key 1 is int, not str'),
        ('{"a": {{ b"x" }}}', 'payload["a"]: bytes is not JSON'),
        ('{"a": {{ "\\ud800" }}}', 'payload["a"]: lone surrogate'),
        ('{"a": "\\ud800"}', 'payload["a"]: lone surrogate'),
        ('{"a": NaN}', 'payload["a"]: nan is not JSON'),
        ('{"a": 1e999}', 'payload["a"]: inf is not JSON'),
        ("{{{x}}: 1}", "a {{…}} in the place of a name must give a str, not int"),
        ('{"id": 1, {{name}}: 2}', "a {{…}} gives a name that the object already has"),
        ("{{tags}}", "item 0: payload must be a dict (a JSON object), not str"),
        ("{{x}}", "{{x}} must be an object (one message) or a list of objects"),
        ("{{text}}", "{{text}} must be an object"),
        ("5", "the payload must be an object (one message) or a list of objects"),
        ('"x"', "not str"),
        ("null", "not NoneType"),
        ('[{"a": 1}, 5]', "item 1: payload must be a dict (a JSON object), not int"),
        ('[{}, {"a": [NaN]}]', 'item 1: payload["a"][0]: nan is not JSON'),
        ('{"a": 1, "a": 2}', 'the name "a" stands twice in one object'),
        ('{"a": 1 "b": 2}', "not JSON: Expecting ',' delimiter (column 9) at \"b\": 2}"),
        ('{"a": 1', "(column 8), where the payload ends"),
        ('{"a": {{x}} "b": 2}', '(column 13) at "b": 2}'),
        ('{"a": {{x}},\n"b" 2}', "(line 2, column 5) at 2}"),
        ('{"a": {{x}', "{{x} does not begin a Python expression in {{…}}: it has no closing }}"),
        ("{{await x}}", "{{await x}} does not begin a Python expression in {{…}}: 'await' outside"),
        ("{{}}", "does not begin a Python expression in {{…}}: it is empty"),
        ("", "where the payload ends"),
        ("[" * 100_000, "the payload is nested too deeply"),
        ("[" * 200 + "]" * 200, "item 0: payload must be a dict"),
        ('{"a":' * 200 + "1" + "}" * 200, "nested deeper than 100 levels"),
        ('{"a":' * 900 + "{{x}}" + "}" * 900, "nested"),
        ('{"a": ' + "1" * 5000 + "}", "the payload is not JSON: Exceeds the limit"),
        ('{"a": "x\ny"}', "Invalid control character"),
        ("{a: 1}", "Expecting property name enclosed in double quotes (column 2) at a: 1}"),
        ('{"a": -}', "not JSON: Expecting value (column 7) at -}"),
        (
            '{"a": 1}\n{"a": 2}',
            '(line 2, column 1) at {"a": 2}; if each line is an object, give --',
        ),
        ("[] []", "not JSON: Extra data (column 4) at []"),
    ],
)
def test_payloads_that_are_refused(text: str, problem: str) -> None:
    assert problem in refused(text)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("df", "df is not JSON; to publish the variable write %abe_publish orders -i df"
               " or %abe_publish orders {{df}}"),
        ("df.head()", "to publish its value write %abe_publish orders {{df.head()}}"),
        ("dict(a=1)", "to publish its value write %abe_publish orders {{dict(a=1)}}"),
        ("{'a': x}", "to publish its value write %abe_publish orders {{{'a': x}}}"),
        ("{'a': 'it\\'s'}", "is a Python literal, not JSON: write %abe_publish orders"
                            ' {"a": "it\'s"} or give the option --format python'),
        ('{"a": True}', 'write %abe_publish orders {"a": true} or'),
        ('{"a": 1} --delay 5', 'write %abe_publish orders --delay 5 {"a": 1}'),
        ('{"a": 1} -i df', "options stand before the payload"),
        ("{'a': {{x}}}", "JSON strings stand in double quotes"),
        ("{'a': 1, 'b' 2}", "JSON strings stand in double quotes"),
    ],
)  # fmt: skip
def test_common_slips_are_answered_with_the_right_spelling(text: str, answer: str) -> None:
    assert answer in refused(text)


@pytest.mark.parametrize(
    ("format", "text", "problem"),
    [
        ("jsonl", '{"a": 1}\n{"a" 1}', "line 2: the payload is not JSON"),
        ("jsonl", '{"a": 1}\n{"a": None}', "line 2: the payload is not JSON: Expecting value (col"),
        ("jsonl", '{"a": 1}\n[]', "line 2: payload must be a dict (a JSON object), not list"),
        ("jsonl", '{"a": 1}\n\n{"a": {{nan}}}', 'line 3: payload["a"]: nan is not JSON'),
        ("yaml", "a: [1", "not YAML: while parsing a flow sequence, expected ',' or ']'"),
        ("yaml", "a: 2026-01-01", 'payload["a"]: date is not JSON'),
        ("yaml", "1: x", "payload: key 1 is int, not str"),
        ("yaml", "a: &x [*x]", 'payload["a"][0]: contains itself'),
        ("yaml", "- a: 1\n- b: 1\n  b: 2", "the name b stands twice (line 3, column 3)"),
        ("yaml", "!!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("yaml", "--- {}\n--- {}", "expected a single document"),
        ("yaml", "\0", "the payload is not YAML: unacceptable character"),
        ("yaml", "just text", "the yaml payload must be an object"),
        ("yaml", "", "the yaml payload must be an object"),
        ("csv", "a,b\n1", "line 2 of the CSV has 1 cells, not 2"),
        ("csv", "a,a\n1,2", "must name each column, once"),
        ("csv", "a,\n1,2", "must name each column, once"),
        ("csv", 'a\n"x', "line 2 is not CSV: unexpected end of data"),
        ("python", "\n{'a': x}", "malformed node or string on line 1; names and calls are not ev"),
        ("python", "__import__('os')", "names and calls are not evaluated"),
        ("python", "{'a': 1", "not a Python literal: '{' was never closed (line 1)"),
        ("python", "{{1}}", "not a Python literal"),
        ("python", "{'a': {1}}", 'payload["a"]: set is not JSON'),
        ("python", "{'a': b'x'}", 'payload["a"]: bytes is not JSON'),
        ("python", "5", "the python payload must be an object"),
    ],
)
def test_other_formats_that_are_refused(format: str, text: str, problem: str) -> None:
    assert problem in refused(text, format)


@pytest.mark.parametrize(
    "text",
    [
        "n0: &n0 [x, x]\n" + "".join(f"n{n}: &n{n} [*n{n - 1}, *n{n - 1}]\n" for n in range(1, 30)),
        "n0: &n0 {a: x}\n"
        + "".join(f"n{n}: &n{n} {{<<: [*n{n - 1}, *n{n - 1}]}}\n" for n in range(1, 30)),
        f"a: &a {'x' * 10_000}\nb: [{', '.join(['*a'] * 200)}]",
    ],
    ids=["lists", "merges", "text"],
)
def test_yaml_aliases_are_bounded(text: str) -> None:
    start = time.thread_time()
    assert "the aliases stand for more than 1,048,576 characters" in refused(text, "yaml")
    assert time.thread_time() - start < 2


def test_yaml_without_pyyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(UnsupportedError, match=r"needs PyYAML.*%pip install pyyaml"):
        read("a: 1", "yaml")


def test_a_generator_may_reuse_its_dict() -> None:
    def rows() -> Iterator[dict[str, int]]:
        row = {}
        for i in range(3):
            row["i"] = i
            yield row

    assert published(payloads_of(rows(), "rows")) == [{"i": 0}, {"i": 1}, {"i": 2}]


@pytest.mark.parametrize(
    "text",
    ['{"a": "' + '\\"' * 2_500_000 + '{{x}}"}', '{"a": "' + "x" * 5_000_000, '"{{' * 300_000],
    ids=["escapes", "unclosed", "braces"],
)
def test_large_payloads_are_read_quickly(text: str) -> None:
    start = time.thread_time()
    try:
        read(text)
    except PayloadError as error:
        assert len(str(error)) < 300  # noqa: PT017 - whether it is refused is not the point
    assert time.thread_time() - start < 2
