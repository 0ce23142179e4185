"""Magics, facade and `await` in a real kernel."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from tests.e2e_test.conftest import Kernel, Outcome


@pytest.fixture
def cells(kernel: Kernel) -> Iterator[Kernel]:
    """A kernel whose session is connected to an empty store, as ``q``."""
    kernel.ok(f"%load_ext abe\nq = %abe_connect memory --env ABE_MEMORY_NAME=test-{uuid4().hex}")
    yield kernel
    kernel.ok("%unload_ext abe")


PAYLOADS: list[dict[str, Any]] = [
    {"price": "$5 ${HOME} $$", "set": "{1,4}", "quoted": "{'x'}", "format": "%s %d {} {0} {order}"},
    {
        "greeting": "Hello {{name}}",
        "{{name}}": "}} {{",
        "emoji": "🎉 👩‍👩‍👧 ❤️",
        "é": "日本語 مرحبا",
    },
    {"path": "C:\\temp\\new\\", "lines": "a\nb\r\n\tc", "quotes": 'it\'s "so" `x`'},
    {"hash": "# no comment", "dashes": "-- --delay 5 -i x", "semicolon": ";", "help": "what? ??"},
    {"shell": "!ls", "magic": "%time %%time", "assign": "a = !ls = %x", "prompt": ">>> In [1]: "},
    {"n": [0, -1, 1.5, 1e300, 10**25, True, None], "deep": {"a": [[], {}, [{"": ""}]]}},
]


def received(kernel: Kernel, code: str = "") -> Any:
    """Run ``code``, consume one message and return it as this process sees it."""
    kernel.ok(f"{code}\n(message,) = %abe_consume -n 1\nimport json")
    return json.loads(json.loads(kernel.ok("print(json.dumps(json.dumps(message)))").stdout))


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_payloads_arrive_unchanged(cells: Kernel, payload: dict[str, Any]) -> None:
    text = json.dumps(payload, ensure_ascii=False)
    cells.ok("name = 'x'; order = {'a': 1}")
    assert received(cells, f"%abe_publish k {text}") == payload
    assert received(cells, f"if True:\n    sent = %abe_publish k {text}") == payload
    assert received(cells, f"payload = {payload!r}\n%abe_publish k {{{{payload}}}}") == payload
    assert received(cells, "%abe_publish k -i payload") == payload
    for body in (text, json.dumps(payload, indent=2), json.dumps(payload)):
        cells.ok(f"%%abe_publish k\n{body}")
        assert received(cells) == payload
    cells.ok(f"%%abe_publish k --format python\n{payload!r}")
    assert received(cells) == payload
    assert received(cells, "q.publish('k', payload)") == payload
    assert received(cells, "await q.aio.publish('k', payload)") == payload


def test_run_all(cells: Kernel) -> None:
    outcomes = cells.run_all(
        '%abe_publish a.b {"n": 1}',
        "await q.aio.publish('a.c', {'n': 2})",
        "got = %abe_consume a.* -n 2",
        "print(sorted(m['n'] for m in got))",
    )
    assert [outcome.status for outcome in outcomes] == ["ok"] * 4
    assert outcomes[3].stdout == "[1, 2]\n"


def test_magics_and_await_share_one_backend(cells: Kernel) -> None:
    cells.ok('%abe_publish orders.created {"id": 1}')
    shown = cells.ok(
        "async for message in q.aio.consume('orders.*'):\n"
        "    print(message.key, dict(message))\n"
        "    await message.ack()\n"
        "    break"
    )
    assert shown.stdout == "orders.created {'id': 1}\n"
    cells.ok("await q.aio.publish('orders.created', {'id': 2})")
    assert '{"id": 2}' in cells.ok("%abe_consume -n 1").text


def test_consuming_prints_and_shows_a_table(cells: Kernel) -> None:
    cells.ok('%abe_publish orders.created [{"id": 1}, {"id": "<b>"}]')
    outcome = cells.ok("%abe_consume orders.* -n 2 -g billing -o messages")
    assert outcome.stdout == "acked 2 messages from memory, group billing\n"
    assert (
        '<td style="text-align:left">{&quot;id&quot;: &quot;&lt;b&gt;&quot;}</td>'
        in (outcome.results[0]["text/html"])
    )
    assert cells.ok("print([m['id'] for m in messages])").stdout == "[1, '<b>']\n"
    empty = cells.ok("%abe_consume -g billing -t 0.01")
    assert empty.stdout == (
        "acked 0 messages from memory, group billing: nothing arrived within 0.01 s\n"
    )


def failed(outcome: Outcome, ename: str) -> str:
    """Return the message of a cell that failed with a short, real error."""
    assert outcome.status == "error"
    assert outcome.ename == ename
    assert outcome.traceback[0] == f"{ename}: {outcome.evalue}".split("\n")[0]
    assert len(outcome.traceback) <= 2
    assert "Traceback" not in outcome.stderr
    return outcome.evalue


@pytest.mark.parametrize(
    ("cell", "ename", "message"),
    [
        ("%abe_connect memroy", "UnknownBackendError", "no backend named 'memroy' is installed"),
        ('%abe_publish k {"a": {{ {1} }}}', "PayloadError", 'payload["a"]: set is not JSON'),
        ('%abe_publish k {"a" 1}', "PayloadError", "not JSON: Expecting ':' delimiter (column 6)"),
        ("%abe_publish k df", "PayloadError", "%abe_publish k -i df or %abe_publish k {{df}}"),
        ("%abe_publish k {'a': 1}", "PayloadError", 'write %abe_publish k {"a": 1}'),
        ('%%abe_publish k --format jsonl\n{"a": 1}\n{"a": NaN}', "PayloadError", "line 2: "),
        ('%%abe_publish k\n[{"a": 1}, {"a": 1, "a": 2}]', "PayloadError", "stands twice"),
        ("%abe_publish k [{}, 5]", "PayloadError", "item 1: payload must be a dict"),
        ("%abe_publish -i missing k", "NameError", "name 'missing' is not defined"),
        ("%abe_publish k {{1 / 0}}", "ZeroDivisionError", "division by zero"),
        ('%abe_publish a..b {"a": 1}', "InvalidKeyError", "key 'a..b' has an empty segment"),
        ('%abe_publish a.* {"a": 1}', "InvalidKeyError", "contains '*'"),
        ("%abe_consume a.**.b", "InvalidKeyError", "key filter 'a.**.b' is malformed"),
        ("%abe_consume -g a..b", "InvalidKeyError", "group 'a..b' has an empty segment"),
    ],
)
def test_errors_are_short_and_real(cells: Kernel, cell: str, ename: str, message: str) -> None:
    assert message in failed(cells.run(cell), ename)
    assert cells.ok("%abe_consume -n 1 -t 0.01").stdout.startswith("acked 0 messages")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("%abe_publish", "KEY is missing"),
        ("%abe_publish k", "nothing to publish: k was taken for KEY and no PAYLOAD follows it"),
        ('%abe_publish {"a": 1}', 'write %abe_publish KEY {"a": 1}'),
        ('%abe_publish --dely 5 k {"a": 1}', "unknown option --dely; did you mean --delay?"),
        (
            '%abe_publish k -i x {"a": 1}',
            'only one of -i x and a payload ({"a": 1}) can be published',
        ),
        ('%%abe_publish k {"a": 1}\n{"a": 2}', "the payload of %%abe_publish is the cell"),
        ("%%abe_publish --format xml k\n<a/>", "must be one of json, jsonl, yaml, csv, python"),
        ("%abe_consume -n many", "-n/--number must be a whole number, 1 or more, not 'many'"),
        ("%abe_connect memory sqlite", "only one NAME can be given"),
        ("%abe_connect memory -i q", "-i q is a backend already"),
        ("%abe_backends memory", "memory is one word too many"),
    ],
)
def test_wrong_arguments_are_usage_errors(cells: Kernel, cell: str, message: str) -> None:
    outcome = cells.run(cell)
    assert outcome.status == "error"
    assert outcome.stderr.startswith("UsageError: ")
    assert message in outcome.stderr
    assert "\nUsage: %" in outcome.stderr
    assert cells.ok("%abe_consume -n 1 -t 0.01").stdout.startswith("acked 0 messages")


def test_a_closed_backend(cells: Kernel) -> None:
    cells.ok("q.close()")
    for cell in ('%abe_publish k {"a": 1}', "%abe_consume"):
        outcome = cells.run(cell)
        assert "closed" in failed(outcome, "BackendClosedError")
        assert outcome.traceback[-1] == "%abe_connect opens another."
    cells.ok("%abe_connect memory")
    cells.ok('%abe_publish -H a=b k {"a": 1}')


def test_errors_can_be_caught(cells: Kernel) -> None:
    outcome = cells.ok(
        "import abe\n"
        "try:\n"
        "    %abe_publish k 5\n"
        "except abe.PayloadError as error:\n"
        "    print(error)"
    )
    assert outcome.stdout.startswith("the payload must be an object")


def test_the_first_magic_selects_a_backend_and_says_why(kernel: Kernel) -> None:
    name = uuid4().hex
    kernel.ok(f"import os\nos.environ.update(QUEUE_BACKEND='memory', ABE_MEMORY_NAME='{name}')")
    kernel.ok("%load_ext abe")
    outcome = kernel.ok('%abe_publish k {"a": 1}')
    assert "using backend memory of abstract-backend" in outcome.stdout
    assert "named by QUEUE_BACKEND" in outcome.stdout
    assert "using backend" not in kernel.ok('%abe_publish k {"a": 1}').stdout
    kernel.ok("%unload_ext abe\ndel os.environ['QUEUE_BACKEND'], os.environ['ABE_MEMORY_NAME']")


def test_a_semicolon_hides_the_table_but_never_the_messages(cells: Kernel) -> None:
    cells.ok("%abe_publish k {{ [{'n': n} for n in range(4)] }}")
    assert cells.ok("%abe_consume -n 1;").results == []
    assert cells.ok("%abe_consume -n 1").results != []
    assert cells.ok("got = %abe_consume -n 1;\ngot").text.startswith("1 message")
    assert cells.ok("%abe_consume -n 1 -o out;").results == []
    assert cells.ok("print(out)").stdout.startswith("1 message")


def test_a_value_is_asked_for_without_echo(cells: Kernel) -> None:
    store = uuid4().hex
    cell = "%abe_connect memory --env ABE_MEMORY_NAME"
    outcome, question = cells.run_answering(cell, store)
    assert outcome.status == "ok"
    assert question == {"prompt": "ABE_MEMORY_NAME: ", "password": True}
    assert store not in f"{outcome}"
    cells.ok("%abe_publish k {}")
    cells.ok(f"import abe\nother = abe.connect('memory', env={{'ABE_MEMORY_NAME': '{store}'}})")
    assert cells.ok("print(other.take(1).payloads)").stdout == "[{}]\n"
    assert "no input is available here" in failed(cells.run(cell), "ConfigurationError")


def test_interrupting_loses_nothing(cells: Kernel) -> None:
    cells.ok('%abe_publish k {"n": 1}')
    waiting = "print('waiting', flush=True)\n%abe_consume -n 2 -t 60"
    assert cells.run_interrupting(waiting).ename == "KeyboardInterrupt"
    cells.ok('%abe_publish k {"n": 2}')
    got = cells.ok("got = %abe_consume -n 2 -t 20\nprint([m['n'] for m in got])")
    assert got.stdout.splitlines()[-1] == "[1, 2]"
