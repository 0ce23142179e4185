"""The command line as users run it: real processes, pipes and signals, on one queue file."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

import abe

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 100.0
ABE = [sys.executable, "-W", "error", "-m", "abe"]

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="signals and pipes of POSIX"),
    pytest.mark.timeout(2 * TIMEOUT),
]

HANDLERS = """
import asyncio
import logging
import pathlib
import time

async def wait(message):
    print("start", message["n"], flush=True)
    while not pathlib.Path("go").exists():
        await asyncio.sleep(0.01)
    print("end", message["n"], flush=True)

async def quick(message):
    print("done", message["n"], flush=True)

def stuck(message):
    print("start", message["n"], flush=True)
    time.sleep(3600)

def says(message):
    logging.getLogger("domain.bills").info("billed %s", message["n"])

async def blocks(message):
    print("start", message["n"], flush=True)
    while True:  # a signal that comes just before one long sleep would not be heard until its end
        time.sleep(0.1)
"""


class Shell:
    """Runs ``abe`` in a folder with a queue file of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = {
            "ABE_SQLITE_PATH": str(folder / "queue.sqlite3"),
            "ABE_SQLITE_LEASE": "2",
            "ABE_SQLITE_SYNCHRONOUS": "NORMAL",
        }
        names = {"QUEUE_BACKEND": "sqlite", "PYTHONUNBUFFERED": ""}
        self.env = {**os.environ, **names, **self.settings}
        self.running: list[subprocess.Popen[str]] = []

    def start(
        self, *arguments: str, stdin: Any = subprocess.DEVNULL, stdout: Any = subprocess.PIPE
    ) -> subprocess.Popen[str]:
        """Start a command."""
        process = subprocess.Popen(
            [*ABE, *arguments],
            cwd=self.folder, env=self.env, text=True,
            stdin=stdin, stdout=stdout, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.running.append(process)
        return process

    def run(
        self, *arguments: str, input: str = "", status: int = 0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        done = subprocess.run(
            [*ABE, *arguments],
            cwd=self.folder, env=self.env, text=True,
            input=input, capture_output=True, timeout=TIMEOUT, check=False,
        )  # fmt: skip
        assert done.returncode == status, done
        return done

    def pipe(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a line of shell, in which ``abe`` is the command."""
        abe = " ".join(f"'{part}'" for part in ABE)
        script = f'abe() {{ {abe} "$@"; }}; {line}'
        bash = shutil.which("bash") or "bash"
        return subprocess.run(
            [bash, "-c", script],
            cwd=self.folder, env=self.env, text=True, stdin=subprocess.DEVNULL,
            capture_output=True, timeout=TIMEOUT, check=False,
        )  # fmt: skip

    def queue(self) -> abe.SyncBackend:
        """The queue file, opened by the test itself: a process for each look takes long."""
        return abe.connect("sqlite", env=self.settings)

    def publish(self, *numbers: int, **more: str) -> None:
        """Publish ``{"n": …}`` under ``o``."""
        with self.queue() as q:
            q.publish_many([{"n": n, **more} for n in numbers], key="o")

    def waiting(self) -> list[int]:
        """The numbers that the default group could take now."""
        with self.queue() as q:
            return [message["n"] for message in q.peek(limit=100_000)]

    def in_flight(self) -> int:
        """How many messages the default group holds."""
        with self.queue() as q:
            return sum(entry.in_flight or 0 for entry in q.stats().entries)

    def end(self) -> None:
        """Leave no process behind."""
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A folder with a queue file of its own."""
    (tmp_path / "shop.py").write_text(HANDLERS)
    shell = Shell(tmp_path)
    yield shell
    shell.end()


def line_of(stream: IO[str] | None) -> str:
    """The next line; the test's own time limit applies."""
    assert stream is not None
    return stream.readline()


def ended(process: subprocess.Popen[str], status: int) -> str:
    """Wait for the end and return what was said on standard error."""
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == status, errors
    return errors


class TestPipes:
    """Data in, data out."""

    def test_entry_points(self, shell: Shell) -> None:
        assert shell.run("--version").stdout.startswith("abe ")
        script = Path(sys.executable).parent / "abe"
        done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout == shell.run("--version").stdout

    def test_file_in_and_pipe_out(self, shell: Shell) -> None:
        (shell.folder / "events.jsonl").write_text('{"n": 1}\n{"n": "zwölf"}\n')
        done = shell.pipe("abe publish orders < events.jsonl && abe consume -q 0.1 | cat")
        assert done.stderr == ""
        first, *lines = done.stdout.splitlines()
        assert first == "published 2 messages to orders"
        assert [json.loads(line)["payload"] for line in lines] == [{"n": 1}, {"n": "zwölf"}]
        assert shell.run("stats", "-g", "", "--json").stdout == ""

    def test_bad_line_in_a_pipe_publishes_nothing(self, shell: Shell) -> None:
        done = shell.pipe("""(echo '{"n": 1}'; echo; echo oops) | abe publish o""")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "abe: line 3: not JSON: Expecting value at column 1: oops\n"
        assert shell.waiting() == []

    def test_endless_input_is_published_as_it_comes(self, shell: Shell) -> None:
        publisher = shell.start("publish", "o", "--stream", stdin=subprocess.PIPE)
        consumer = shell.start("consume", "--follow")
        assert publisher.stdin is not None
        for n in (1, 2):
            publisher.stdin.write(f'{{"n": {n}}}\n')
            publisher.stdin.flush()
            assert json.loads(line_of(consumer.stdout))["payload"] == {"n": n}
        publisher.stdin.write("oops\n")
        publisher.stdin.flush()
        errors = ended(publisher, 1)
        assert errors.startswith("abe: line 3: not JSON")
        assert errors.endswith("published 2 messages, all before it\n")
        consumer.send_signal(signal.SIGTERM)
        assert ended(consumer, 143) == ""

    def test_many_messages(self, shell: Shell) -> None:
        done = shell.pipe(
            """seq 1 5000 | sed 's/.*/{"n": &}/' | abe publish o && abe consume -n 5000 | wc -l"""
        )
        assert done.stderr == ""
        assert done.stdout.split()[-1] == "5000"
        assert shell.waiting() == []

    def test_reader_goes_away(self, shell: Shell) -> None:
        """What was not read is not acked, and nothing is said about it."""
        shell.publish(1)
        read, write = os.pipe()
        consumer = shell.start("consume", "--follow", stdout=write)
        os.close(write)
        with os.fdopen(read) as reader:
            assert json.loads(reader.readline())["payload"] == {"n": 1}
        shell.publish(2)
        assert ended(consumer, 141) == ""
        assert shell.waiting() == [2]
        assert shell.in_flight() == 0

    def test_head(self, shell: Shell) -> None:
        shell.publish(1, 2, 3)
        done = shell.pipe("abe consume -q 0.1 | head -1; echo ${PIPESTATUS[0]} >&2")
        assert json.loads(done.stdout)["payload"] == {"n": 1}
        assert done.stderr in ("0\n", "141\n")

    def test_tables_and_head(self, shell: Shell) -> None:
        shell.publish(1, 2, 3)
        done = shell.pipe("abe peek --text | head -1; abe stats | true; abe --help | true")
        assert done.stdout.startswith("id ")
        assert done.stderr == ""

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
    def test_full_disk(self, shell: Shell) -> None:
        shell.publish(1)
        done = shell.pipe("abe consume > /dev/full")
        assert done.returncode == 1
        assert done.stderr == "abe: cannot write to standard output: No space left on device\n"
        assert shell.waiting() == [1]

    def test_closed_output(self, shell: Shell) -> None:
        shell.publish(1)
        done = shell.pipe("abe consume >&-")
        assert (done.returncode, done.stderr) == (1, "abe: standard output is closed\n")
        assert shell.waiting() == [1]

    def test_slow_reader_keeps_its_message(self, shell: Shell) -> None:
        """The pipe is full for longer than a lease: nobody else gets the message meanwhile."""
        text = "x" * 200_000
        shell.publish(1, text=text)
        consumer = shell.start("consume", "-n", "1")
        assert consumer.stdout is not None
        beginning = consumer.stdout.read(10)
        other = shell.run("consume", "-t", "3.5")
        assert other.stdout == ""
        rest = consumer.stdout.read()
        assert json.loads(beginning + rest)["payload"]["text"] == text
        assert ended(consumer, 0) == ""
        assert shell.run("stats", "-g", "", "--json").stdout == ""

    def test_terminal(self, shell: Shell) -> None:
        """A person reads text, and no message can write to the terminal what it likes."""
        shell.publish(1, text="\x1b[31mred\u202e")
        master, slave = os.openpty()
        consumer = shell.start("consume", "-n", "1", stdout=slave)
        os.close(slave)
        with os.fdopen(master) as screen:
            line = screen.readline()
        assert line.endswith('  o  {"n": 1, "text": "\\u001b[31mred\\u202e"}\n')
        assert ended(consumer, 0) == "acked 1 message of the default group\n"


class TestSignals:
    """Ctrl-C and kill."""

    @pytest.mark.parametrize(
        ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=str
    )
    def test_consume(self, shell: Shell, signum: signal.Signals, status: int) -> None:
        shell.publish(1)
        consumer = shell.start("consume", "--follow")
        line_of(consumer.stdout)
        consumer.send_signal(signum)
        assert ended(consumer, status) == ""
        shell.publish(2)
        assert 2 in shell.waiting()

    def test_interrupted_while_the_pipe_is_full(self, shell: Shell) -> None:
        shell.publish(1, text="x" * 200_000)
        consumer = shell.start("consume", "-n", "1")
        assert consumer.stdout is not None
        consumer.stdout.read(10)
        consumer.send_signal(signal.SIGINT)
        assert consumer.wait(TIMEOUT) == 130
        assert shell.waiting() == [1]

    def test_publish_while_it_reads(self, shell: Shell) -> None:
        path = shell.folder / "pipe"
        os.mkfifo(path)
        publisher = shell.start("publish", "o", "--file", str(path))
        with path.open("w") as pipe:
            pipe.write('{"n": 1}\n' * 50_000)  # more than a pipe holds, so somebody reads
            pipe.flush()
            publisher.send_signal(signal.SIGINT)
            assert ended(publisher, 130) == ""
        assert shell.waiting() == []

    def test_publish_a_stream(self, shell: Shell) -> None:
        publisher = shell.start("publish", "o", "--stream", stdin=subprocess.PIPE)
        assert publisher.stdin is not None
        for n in (1, 2):
            publisher.stdin.write(f'{{"n": {n}}}\n')
            publisher.stdin.flush()
            line_of(shell.start("consume", "-n", "1", "-t", "20").stdout)
        publisher.send_signal(signal.SIGINT)
        # The second was sent once the first was counted; its own answer may be on its way.
        said = re.fullmatch("abe: interrupted; (.*), perhaps more\n", ended(publisher, 130))
        assert said
        assert said[1] in ("published 2 messages", "published 1 message")


class TestRun:
    """abe run."""

    def start(self, shell: Shell, handler: str, *options: str) -> subprocess.Popen[str]:
        """Start a worker whose log is one line a record."""
        return shell.start("run", f"shop:{handler}", *options)

    def test_drains(self, shell: Shell) -> None:
        shell.publish(1, 2)
        worker = self.start(shell, "wait", "--health-file", "health")
        assert line_of(worker.stdout) == "start 1\n"
        worker.send_signal(signal.SIGTERM)
        until(worker.stderr, "draining: 1 in flight")
        assert worker.poll() is None
        (shell.folder / "go").touch()
        errors = ended(worker, 0)
        assert "stopped: 1 processed, 0 failed, 0 dead" in errors
        assert shell.waiting() == [2]
        assert shell.in_flight() == 0
        assert not (shell.folder / "health").exists()

    def test_drains_when_idle(self, shell: Shell) -> None:
        worker = self.start(shell, "quick", "--json-logs")
        record = json.loads(line_of(worker.stderr))
        assert record["message"] == "consuming from backend sqlite, group None"
        worker.send_signal(signal.SIGINT)
        assert "stopped: 0 processed" in ended(worker, 0)

    @pytest.mark.parametrize(
        "head", ["", "import logging.config; logging.config.dictConfig(CONFIG)"]
    )
    def test_what_a_handler_logs_names_its_message(self, head: str, shell: Shell) -> None:
        """Whatever the logger is called, and whatever the application has set up itself."""
        config = {
            "version": 1,
            "handlers": {"console": {"class": "logging.StreamHandler"}},
            "root": {"level": "INFO", "handlers": ["console"]},
        }
        (shell.folder / "shop.py").write_text(f"{head.replace('CONFIG', repr(config))}\n{HANDLERS}")
        shell.publish(1)
        worker = self.start(shell, "says", "--json-logs")
        records = [json.loads(line_of(worker.stderr)) for _ in range(2)]
        assert [record["message"] for record in records] == [
            "consuming from backend sqlite, group None",
            "billed 1",
        ]
        billed = records[1]
        assert (billed["key"], billed["group"], billed["attempt"]) == ("o", None, 1)
        assert billed["id"]
        worker.send_signal(signal.SIGTERM)
        assert "stopped: 1 processed" in ended(worker, 0)

    def test_the_backend_logs_as_the_worker_does(self, shell: Shell) -> None:
        pytest.importorskip("abe_backend_redis", reason="abe-backend-redis is not installed")
        settings = ("ABE_REDIS_URL=redis://127.0.0.1:1", "ABE_REDIS_RETAIN_LENGTH=1")
        drop = "ABE_REDIS_DROP_UNSETTLED=1"  # is warned of
        options = [it for setting in (*settings, drop) for it in ("--env", setting)]
        worker = self.start(shell, "quick", "--json-logs", "--backend", "redis", *options)
        record = json.loads(line_of(worker.stderr))
        assert record["logger"] == "abe_backend_redis.backend"
        worker.send_signal(signal.SIGTERM)
        ended(worker, 0)

    def test_second_signal_gives_everything_back(self, shell: Shell) -> None:
        shell.publish(1)
        worker = self.start(shell, "wait")
        assert line_of(worker.stdout) == "start 1\n"
        worker.send_signal(signal.SIGTERM)
        until(worker.stderr, "draining")
        worker.send_signal(signal.SIGTERM)
        ended(worker, 143)
        assert shell.waiting() == [1]
        (line,) = shell.run("peek").stdout.splitlines()
        assert json.loads(line)["attempt"] == 1

    def test_blocked_loop_does_not_keep_the_process(self, shell: Shell) -> None:
        shell.publish(1)
        worker = self.start(shell, "blocks")
        assert line_of(worker.stdout) == "start 1\n"
        worker.send_signal(signal.SIGTERM)
        worker.send_signal(signal.SIGINT)
        assert worker.wait(TIMEOUT) in (128 + signal.SIGINT, 128 + signal.SIGTERM)

    def test_handler_that_does_not_finish(self, shell: Shell) -> None:
        shell.publish(1)
        worker = self.start(shell, "stuck", "--drain-timeout", "0.2")
        assert line_of(worker.stdout) == "start 1\n"
        worker.send_signal(signal.SIGTERM)
        errors = ended(worker, 1)
        assert errors.endswith(
            "abe: 1 of the handlers did not finish within 0.2 s; "
            "their messages will be redelivered\n"
        )
        line = shell.run("consume", "-n", "1", "-t", "20").stdout
        assert json.loads(line)["attempt"] == 2

    def test_killed_worker_loses_nothing(self, shell: Shell) -> None:
        shell.publish(1, 2, 3)
        worker = self.start(shell, "wait")
        assert line_of(worker.stdout) == "start 1\n"
        worker.kill()
        ended(worker, -signal.SIGKILL)
        (shell.folder / "go").touch()
        again = self.start(shell, "quick")
        done = {line_of(again.stdout) for _ in range(3)}
        assert done == {"done 1\n", "done 2\n", "done 3\n"}
        again.send_signal(signal.SIGTERM)
        ended(again, 0)

    def test_health_file(self, shell: Shell) -> None:
        shell.publish(1)
        worker = self.start(shell, "wait", "--health-file", "health")
        assert line_of(worker.stdout) == "start 1\n"
        path = shell.folder / "health"
        deadline = time.monotonic() + TIMEOUT
        while not path.exists():
            assert time.monotonic() < deadline
        assert json.loads(path.read_text())["processed"] == 0
        worker.send_signal(signal.SIGTERM)
        (shell.folder / "go").touch()
        ended(worker, 0)

    def test_failure_of_the_stream(self, shell: Shell) -> None:
        (shell.folder / "queue.sqlite3").write_text("this is no queue file, and long enough" * 100)
        worker = self.start(shell, "quick")
        errors = ended(worker, 1).splitlines()
        assert errors[-1].startswith("abe: ")
        assert "Traceback" not in "".join(errors)


def until(stream: IO[str] | None, text: str) -> None:
    """Read lines up to one that contains ``text``."""
    assert stream is not None
    for line in stream:
        if text in line:
            return
    pytest.fail(f"{text!r} was not said")


class TestGuide:
    """docs/reference/cli.md says what is so."""

    GUIDE = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")

    def test_commands(self, shell: Shell) -> None:
        shown = shell.run("--help").stdout.partition("Commands:")[2]
        commands = {line.split()[0] for line in shown.splitlines() if line.strip()}
        table = self.GUIDE.partition("## ")[0]
        assert set(re.findall(r"`abe ([a-z-]+)`", table)) == commands

    def test_examples(self, shell: Shell) -> None:
        publishing, worker, provider = re.findall(r"```sh\n(.*?)```", self.GUIDE, re.DOTALL)
        done = shell.pipe(f"set -e; {publishing}")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.count("published ") == 2
        assert [json.loads(f"{{{it}") for it in re.findall(r'^"payload".*', done.stdout, re.M)] == [
            {"payload": {"id": 1}},
            {"payload": {"id": 2}},
        ]
        assert json.loads(done.stdout.splitlines()[-1])["payload"] == {"id": 3}
        assert shell.pipe(f"set -e; {provider}").returncode == 0
        options = shell.run("run", "--help").stdout
        assert all(option in options for option in re.findall(r"--[a-z-]+", worker))

    def test_members(self, shell: Shell) -> None:
        shell.publish(1)
        rows = re.findall(r"^\| (`.+?`) \| (`.+`) \|$", self.GUIDE, re.MULTILINE)
        members = {
            command: set(re.findall(r"`(\w+)`", names))
            for commands, names in rows
            for command in re.findall(r"`([\w ]+)`", commands)
        }
        for command, *arguments in (
            ("publish", "o", "{}"),
            ("stats",),
            ("peek",),
            ("dead replay",),
            ("consume",),
            ("purge", "--yes"),
        ):
            line = shell.run(*command.split(), *arguments, "--json").stdout.splitlines()[0]
            assert set(json.loads(line)) == members[command]


def test_without_the_extra() -> None:
    program = """
import sys
sys.modules["typer"] = None
from abe.cli import main
sys.exit(main())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        'abe: the command line needs typer; from the checkout: pip install -e ".[cli]"\n'
    )
