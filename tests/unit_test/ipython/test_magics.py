"""The magics, in a shell inside this process."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

import abe
from abe.display.results import Messages
from tests.unit_test.ipython.conftest import json_objects

Run = Callable[..., Any]
MAGICS = {
    "abe_backends",
    "abe_connect",
    "abe_consume",
    "abe_contract",
    "abe_dead",
    "abe_handlers",
    "abe_peek",
    "abe_publish",
    "abe_purge",
    "abe_stats",
    "abe_stop",
}


class Plain:
    """A backend with only the required methods."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        self.fail_at = -1
        self.closed = False

    @classmethod
    def from_env(cls) -> Self:
        return cls()

    async def publish(self, key: str, payload: dict[str, Any], **extras: Any) -> None:
        if len(self.sent) == self.fail_at:
            raise abe.PublishError("no room", retryable=True)
        self.sent.append((key, payload, extras))

    async def consume(self, *, group: str | None = None) -> AsyncIterator[dict[str, Any]]:
        while self.sent:
            yield self.sent.pop(0)[1]
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        self.closed = True


def footprint(shell: InteractiveShell) -> dict[str, Any]:
    """Everything that an extension can leave behind in a shell."""
    manager = shell.magics_manager
    return {
        "line": set(manager.magics["line"]),
        "cell": set(manager.magics["cell"]),
        "registry": set(manager.registry),
        "configurables": [type(c).__name__ for c in shell.configurables],
        "events": {
            name: [callback.__qualname__ for callback in found]
            for name, found in shell.events.callbacks.items()
        },
        "matchers": [m.__qualname__ for m in shell.Completer.custom_matchers],
        "names": {n for n in shell.user_ns if not n.startswith("_")} - {"In", "Out"},
        "loaded": "abe" in shell.extension_manager.loaded,  # type: ignore[union-attr]
    }


def test_unloading_leaves_nothing_behind(shell: InteractiveShell) -> None:
    shell.find_line_magic("load_ext")  # IPython loads its own magics when they are first used
    before = footprint(shell)
    for _ in range(2):
        shell.run_cell("%load_ext abe\n%load_ext abe").raise_error()
        loaded = footprint(shell)
        assert loaded["line"] - before["line"] == MAGICS
        assert loaded["cell"] - before["cell"] == {"abe_handler", "abe_publish"}
        assert loaded["configurables"].count("AbeMagics") == 1
        shell.run_cell("%reload_ext abe").raise_error()
        assert footprint(shell) == loaded
        shell.run_cell("%unload_ext abe\n%unload_ext abe").raise_error()
        assert footprint(shell) == before


def test_unloading_closes_the_backend(run: Run, q: abe.SyncBackend) -> None:
    run("%unload_ext abe")
    with pytest.raises(abe.BackendClosedError):
        q.publish("k", {})


def test_a_backend_that_fails_to_close(
    shell: InteractiveShell, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stubborn(Plain):
        async def aclose(self) -> None:
            raise abe.ConnectionLostError("gone")

    shell.user_ns["plain"] = Stubborn()
    run("%abe_connect -i plain")
    run("%unload_ext abe")
    out = capsys.readouterr().out
    assert out.endswith("abe: closing the backend of this session failed: gone\n")
    run("%load_ext abe")
    run("%abe_backends")


def test_magics_of_others_survive_unloading(shell: InteractiveShell, run: Run) -> None:
    def mine(line: str) -> None: ...

    shell.magics_manager.register_function(mine, "line", "abe_consume")
    run("%unload_ext abe")
    assert shell.find_line_magic("abe_consume") is mine
    del shell.magics_manager.magics["line"]["abe_consume"]


def test_the_help_is_the_docstring(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("%abe_consume?")
    assert "Take messages, acknowledge them and return them." in capsys.readouterr().out


def test_loading_is_lazy() -> None:
    code = (
        "import sys\n"
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell()\n"
        "before = set(sys.modules)\n"
        "shell.run_line_magic('load_ext', 'abe')\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})\n"
    )
    env = {**os.environ, "IPYTHONDIR": os.devnull}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    heavy = {"pandas", "numpy", "yaml", "pytest", "hypothesis", "ipykernel", "redis"}
    assert not heavy & set(done.stdout.split())


def test_backends(run: Run) -> None:
    found = run("found = %abe_backends --check\nfound")
    assert "memory" in [info.name for info in found]
    text = repr(found)
    assert "abstract-backend" in text
    assert "loaded" in text
    assert f"Without a name {found.chosen} is chosen: " in text
    # What decides comes first: the end of a wide table is out of sight.
    assert [line.split()[:3] for line in text.splitlines() if "chosen  " in line] == [
        [found.chosen, "loaded", "chosen"]
    ]
    assert "<caption" in found._repr_html_()


def test_backends_says_what_is_broken(
    run: Run, fake_distribution: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_distribution("abe-bad", {"bad": "abe_bad:B"}, {"abe_bad.py": "raise OSError('<b>no')"})
    monkeypatch.setenv("QUEUE_BACKEND", "typo")
    found = run("found = %abe_backends --check -o kept\nfound")
    assert run("kept") is found
    text = repr(found)
    assert "broken" in text
    assert "bad: backend 'bad' of abe-bad" in text
    assert "No backend would be chosen: no backend named 'typo' is installed" in text
    assert "<b>" not in found._repr_html_()


def test_connect_selects_like_load_backend(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUEUE_BACKEND", "memory")
    q = run("q = %abe_connect\nq")
    assert q.name == "memory"
    assert "abe: using backend memory of abstract-backend" in capsys.readouterr().out
    assert "This session is connected to memory." in repr(run("b = %abe_backends\nb"))


def test_connecting_again_closes_what_was_opened(run: Run, q: abe.SyncBackend) -> None:
    other = run("%abe_connect memory")
    assert other is not q
    with pytest.raises(abe.BackendClosedError):
        q.publish("k", {})


def test_a_failed_connect_changes_nothing(run: Run, q: abe.SyncBackend) -> None:
    with pytest.raises(abe.ConfigurationError):
        run("%abe_connect memory --env ABE_MEMORY_MAXSIZE=many")
    assert run('%abe_publish k {"a": 1}') == 1
    assert q.take(1) == [{"a": 1}]


def test_a_backend_of_the_user_stays_open(shell: InteractiveShell, run: Run) -> None:
    with abe.connect("memory", env={"ABE_MEMORY_NAME": uuid4().hex}) as mine:
        shell.user_ns["mine"] = mine
        assert run("%abe_connect -i mine") is mine
        run("%abe_connect -i mine")
        run('%abe_publish k {"a": 1}\n%unload_ext abe')
        assert mine.take(1) == [{"a": 1}]


def test_a_closed_backend_is_refused(shell: InteractiveShell, run: Run, q: abe.SyncBackend) -> None:
    with abe.connect("memory", env={"ABE_MEMORY_NAME": uuid4().hex}) as closed:
        shell.user_ns["closed"] = closed
    with pytest.raises(UsageError, match="closed is closed; %abe_connect NAME opens another"):
        run("%abe_connect -i closed")
    assert run("%abe_publish k {}") == 1
    assert q.take(1) == [{}]


def test_a_backend_object(shell: InteractiveShell, run: Run) -> None:
    shell.user_ns["plain"] = plain = Plain()
    q = run("%abe_connect -i plain")
    assert isinstance(q, abe.SyncBackend)
    assert run("%abe_connect -i plain") is q
    assert run('%abe_publish k [{"a": 1}, {"a": 2}]') == 2
    assert plain.sent == [("k", {"a": 1}, {}), ("k", {"a": 2}, {})]
    assert run("%abe_consume -n 2") == [{"a": 1}, {"a": 2}]
    assert not plain.closed
    run("%unload_ext abe")
    assert plain.closed


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("memory", "thing is a str; write %abe_connect {{thing}}"),
        (Plain, "this is the class Plain: call it, or its from_env()"),
        (5, "thing is not a backend: a backend has an async publish() and a consume();"),
    ],
)
def test_what_is_no_backend(shell: InteractiveShell, run: Run, value: Any, problem: str) -> None:
    shell.user_ns["thing"] = value
    with pytest.raises(UsageError) as caught:
        run("%abe_connect -i thing")
    assert problem in str(caught.value)


def test_env_asks_without_echo(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    store = f"asked-{uuid4().hex}"

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return store

    monkeypatch.setattr(getpass, "getpass", answer)
    q = run("%abe_connect memory --env ABE_MEMORY_NAME")
    assert asked == ["ABE_MEMORY_NAME: "]
    q.publish("k", {"a": 1})
    with abe.connect("memory", env={"ABE_MEMORY_NAME": store}) as other:
        assert other.take(1) == [{"a": 1}]
    assert "ABE_MEMORY_NAME" not in os.environ


def test_env_when_nobody_can_be_asked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr(getpass, "getpass", refuse)
    with pytest.raises(abe.ConfigurationError, match="no input is available here; set ABE_X"):
        run("%abe_connect memory --env ABE_X")


def test_secrets_on_the_line_are_not_echoed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="repeat --env") as caught:
        run("%abe_connect memory --env A=1 B=hunter2")
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in capsys.readouterr().err


LINE_ENDS = "\x85\u2028\u2029"  # IPython ends a line at them; JSON text may escape them


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(json_objects, st.booleans())
def test_any_object_passes_through_ipython(
    run: Run, q: abe.SyncBackend, payload: dict[str, Any], ascii_only: bool
) -> None:
    try:
        text = json.dumps(payload, ensure_ascii=ascii_only)
        text.encode()
    except UnicodeEncodeError:
        return
    if json.loads(text) != payload or not set(LINE_ENDS).isdisjoint(text):
        return
    if "\\ud" in text:
        return
    run(f"%abe_publish a {text}\n%abe_publish b {text}")
    run(f"%%abe_publish c\n{text}")
    run(f"%%abe_publish d\n{json.dumps(payload, ensure_ascii=ascii_only, indent=1)}\n\n")
    assert q.take(4) == [payload] * 4


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(json_objects)
def test_any_object_passes_through_every_other_way_in(
    shell: InteractiveShell,
    run: Run,
    q: abe.SyncBackend,
    tmp_path_factory: pytest.TempPathFactory,
    payload: dict[str, Any],
) -> None:
    """Variables, expressions, generators, files and the other formats of a cell."""
    try:
        text = json.dumps(payload, ensure_ascii=False)
        text.encode()
        literal = repr(payload)
        literal.encode()
    except UnicodeEncodeError:
        return
    if json.loads(text) != payload or not set(LINE_ENDS).isdisjoint(text + literal):
        return
    folder = tmp_path_factory.getbasetemp()
    (folder / "one.json").write_text(text, encoding="utf-8", newline="")
    (folder / "one.jsonl").write_text(text, encoding="utf-8", newline="")
    shell.user_ns.update(payload=payload, lazy=(item for item in [payload]))
    lines = [
        "%abe_publish k -i payload",
        "%abe_publish k {{payload}}",
        "%abe_publish k [{{payload}}]",
        "%abe_publish k -i lazy",
        f"%abe_publish k --file {folder / 'one.json'}",
        f"%abe_publish k --file {folder / 'one.jsonl'}",
        f"%%abe_publish k --format jsonl\n{text}",
        f"%%abe_publish k --format python\n{literal}",
        "%%abe_publish k\n{{payload}}",
    ]
    for line in lines:
        run(line)
    taken = q.take(len(lines))
    assert taken == [payload] * len(lines)
    assert [json.dumps(message) for message in taken] == [json.dumps(payload)] * len(lines)


def test_values_of_the_user(shell: InteractiveShell, run: Run, q: abe.SyncBackend) -> None:
    shell.user_ns.update(one={"n": 1}, many=[{"n": 2}, {"n": 3}], lazy=({"n": n} for n in (4, 5)))
    assert run("%abe_publish k -i one") == 1
    assert run("%abe_publish k {{many}}") == 2
    assert run("sent = %abe_publish k -i lazy -o again\nsent") == 2
    assert run("again") == 2
    run('def f(local):\n    %abe_publish k {"n": {{local}}}\nf(6)')
    run('for n in (7, 8):\n    %abe_publish k {"n": {{n}}}')
    assert [message["n"] for message in q.take(8)] == list(range(1, 9))


def test_an_empty_list_is_nothing(run: Run, q: abe.SyncBackend) -> None:
    assert repr(run("%abe_publish k []")) == "published 0 messages to k on memory"


def test_headers_and_delay(run: Run, q: abe.SyncBackend) -> None:
    run('%abe_publish -H a="b c" --header d=e k [{"n": 1}, {"n": 2}]')
    assert [dict(m.headers) for m in q.take(2)] == [{"a": "b c", "d": "e"}] * 2
    run('%abe_publish --delay 3600 k {"n": 3}')
    assert q.take(1, timeout=0) == []
    assert q.stats().total("delayed") == 1


@pytest.mark.parametrize("extra", ["", "-H a=b "])
def test_nothing_is_sent_unless_all_is_right(
    shell: InteractiveShell, run: Run, q: abe.SyncBackend, extra: str
) -> None:
    shell.user_ns["items"] = [{"n": 1}, {"n": {2}}]
    for line in ("k -i items", 'k [{"n": 1}, {"n": NaN}]', 'a..b {"n": 1}', "k {{ [{}, 5] }}"):
        with pytest.raises((abe.PayloadError, abe.InvalidKeyError)):
            run(f"%abe_publish {extra}{line}")
    assert q.take(1, timeout=0) == []


def test_a_failure_in_the_middle_says_how_far_it_came(shell: InteractiveShell, run: Run) -> None:
    shell.user_ns["plain"] = plain = Plain()
    plain.fail_at = 2
    run("%abe_connect -i plain")
    with pytest.raises(
        abe.PublishError, match=r"published 2 of 3; item 2 failed: no room"
    ) as caught:
        run("%abe_publish k {{ [{'n': n} for n in range(3)] }}")
    assert list(caught.value.published) == [0, 1]
    assert caught.value.retryable


def test_the_traceback_of_a_short_error_can_be_seen(
    run: Run, q: abe.SyncBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    run("def total():\n    return 1 / 0\n")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            run("%abe_publish k {{total()}}")
        assert capsys.readouterr().out == "ZeroDivisionError: division by zero\nin {{total()}}\n"
        run("%tb")
        shown = capsys.readouterr().out
        assert "return 1 / 0" in shown
        assert shown.rstrip().endswith("ZeroDivisionError: division by zero")


def test_errors_that_follow_a_group_are_still_seen(
    shell: InteractiveShell, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    class Grouped(Plain):
        async def publish(self, key: str, payload: dict[str, Any], **extras: Any) -> None:
            try:
                raise ExceptionGroup("several", [OSError("a"), OSError("b")])
            except ExceptionGroup as group:
                raise abe.PublishError("both brokers refused") from group

    shell.user_ns["plain"] = Grouped()
    run("%abe_connect -i plain")
    with pytest.raises(abe.PublishError) as caught:
        run("%abe_publish k {}")
    assert capsys.readouterr().out.endswith("PublishError: both brokers refused\n")
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert str(pickle.loads(pickle.dumps(caught.value))) == "both brokers refused"


def test_what_a_backend_cannot_do(shell: InteractiveShell, run: Run) -> None:
    shell.user_ns["plain"] = plain = Plain()
    run("%abe_connect -i plain")
    for line in ("-H a=b k {}", "--delay 5 k [{}, {}]"):
        with pytest.raises(abe.UnsupportedError):
            run(f"%abe_publish {line}")
    assert plain.sent == []


def test_consume(run: Run, q: abe.SyncBackend) -> None:
    q.publish_many([("a.x", {"n": 1}), ("b.x", {"n": 2}), ("a.y", {"n": 3})])
    got = run("got = %abe_consume a.* -n 2 -o kept\ngot")
    assert isinstance(got, Messages)
    assert got == [{"n": 1}, {"n": 3}]
    assert run("kept") is got
    assert run("%abe_consume -n 1") == [{"n": 2}]
    assert run("%abe_consume -g {{'other'}} -t 0") == []
    q.publish("c", {"n": 4})
    assert run("%abe_consume -g other -n 1") == [{"n": 4}]
    assert run("%abe_consume -n 1") == [{"n": 4}]


def test_consume_says_what_it_did(
    run: Run, q: abe.SyncBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    q.publish("k", {"n": 1})
    run("got = %abe_consume -n 1")
    run("got = %abe_consume -n 1 -t 0 -g g")
    assert capsys.readouterr().out.splitlines() == [
        "acked 1 message from memory, the default group",
        "acked 0 messages from memory, group g: nothing arrived within 0 s",
    ]


def test_nothing_is_taken_if_the_line_is_wrong(run: Run, q: abe.SyncBackend) -> None:
    q.publish("k", {"n": 1})
    for line in ("-o 1x", "-n 0", "--nmber 1", "-g"):
        with pytest.raises(UsageError):
            run(f"%abe_consume {line}")
    assert q.take(1) == [{"n": 1}]
