"""`abe peek`, `stats`, `dead`, `purge` and `backends`."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import abe
from abe.display.text import INVISIBLE
from tests.unit_test.cli.support import UNREACHABLE, Abe

if TYPE_CHECKING:
    from tests.conftest import FakeDistribution


class TestLooking:
    """abe peek, stats, dead, purge, backends."""

    def test_peek_takes_nothing(self, cli: Abe) -> None:
        cli.ok("publish", "o", '[{"n": 1}, {"n": 2}]')
        for _ in range(2):
            assert [it["payload"] for it in cli.ok("peek").records] == [{"n": 1}, {"n": 2}]
        assert len(cli.ok("peek", "-n", "1").records) == 1
        assert cli.ok("peek", "p.*").out == ""

    def test_peek_as_a_table(self, cli: Abe) -> None:
        cli.ok("publish", "o", '{"text": "\\u001b[31mred\\u202e", "password": "pa55word"}')
        head, line, row = cli.ok("peek", "--text").out.splitlines()
        assert head.split() == ["id", "key", "payload", "time"]
        assert set(line) == {"-", " "}
        assert '{"text": "\\u001b[31mred\\u202e", "password": "***"}' in row

    def test_json_is_data_but_harmless(self, cli: Abe) -> None:
        text = "\x1b[31mred\u202e\u200b\x9b ü 😀 \U000e0041"
        cli.ok("publish", "o", json.dumps({"text": text, "password": "data"}))
        done = cli.ok("peek", "--json")
        assert done.records[0]["payload"] == {"text": text, "password": "data"}
        assert not INVISIBLE.search(done.out.rstrip("\n"))
        assert "ü 😀" in done.out

    def test_stats(self, cli: Abe) -> None:
        cli.ok("publish", "o.a", '[{"n": 1}, {"n": 2}]')
        cli.ok("publish", "p", "{}")
        cli.ok("consume", "-g", "x", "-n", "1")
        found = cli.ok("stats", "-g", "x", "o.*", "--json").records
        assert [
            {name: it[name] for name in ("key", "group", "ready", "in_flight", "dead")}
            for it in found
        ] == [{"key": "o.a", "group": "x", "ready": 1, "in_flight": 0, "dead": 0}]
        assert set(found[0]) == {
            *("key", "group", "ready", "in_flight", "delayed", "dead", "oldest_age", "approximate")
        }
        head, _, *rows = cli.ok("stats").out.splitlines()
        assert head.split() == [
            "key",
            "group",
            "ready",
            "in",
            "flight",
            "delayed",
            "dead",
            "oldest",
        ]
        assert [row.split()[:3] for row in rows] == [["o.a", "x", "1"], ["p", "x", "1"]]

    def test_nothing_waits(self, cli: Abe) -> None:
        assert cli.ok("stats").out == "backlog of memory: nothing is waiting\n"
        assert cli.ok("stats", "--json").out == ""

    def test_dead_letters(self, cli: Abe) -> None:
        cli.ok("publish", "o", '[{"n": 1}, {"n": 2}]')

        async def fail() -> None:
            async with abe.aconnect("memory", env=cli.env) as q, q.consume(group="x") as stream:
                for message in await stream.take(2, 1.0):
                    await message.reject("no such customer")

        asyncio.run(fail())
        first, second = cli.ok("dead", "-g", "x").records
        assert first["headers"]["abe-dead-reason"] == "no such customer"
        table = cli.ok("dead", "list", "-g", "x", "--text").out
        assert table.count("no such customer") == 2
        assert cli.ok("dead", "replay", "-g", "x", "--id", second["id"]).out == (
            "replayed 1 dead letter of group x\n"
        )
        assert cli.payloads("x") == [{"n": 2}]
        assert cli.ok("dead", "replay", "-g", "x", "--json").records == [
            {"replayed": 1, "group": "x"}
        ]
        assert cli.ok("dead", "-g", "x").out == ""

    def test_ids_are_for_replay(self, cli: Abe) -> None:
        done = cli("dead", "--id", "x")
        assert done.status == 2
        assert "--id is for 'abe dead replay'" in done.err

    def test_purge(self, cli: Abe) -> None:
        cli.ok("publish", "o.a", "{}")
        cli.ok("publish", "p", "{}")
        refused = cli("purge")
        assert refused.status == 2
        assert "add --yes" in refused.err
        assert cli.ok("purge", "o.*", "--yes").out == "purged 1 message of the default group\n"
        assert cli.ok("purge", "--yes", "--json").records == [{"purged": 1, "group": None}]
        assert cli.payloads() == []

    def test_backends(self, cli: Abe) -> None:
        done = cli.ok("backends")
        assert [
            line.split()[0] for line in done.out.splitlines() if "abstract-backend" in line
        ] == [
            "memory",
            "sqlite",
        ]
        assert done.out.endswith("Without a name memory is chosen: named by QUEUE_BACKEND.\n")
        found = {it["name"]: it for it in cli.ok("backends", "--json", "--check").records}
        assert found["memory"]["chosen"]
        assert found["memory"]["builtin"]
        assert found["sqlite"]["status"] == "loaded"

    def test_broken_backends(self, cli: Abe, fake_distribution: FakeDistribution) -> None:
        fake_distribution("bad", {"bad": "bad:Backend"}, {"bad.py": "1 / 0"})
        assert "ZeroDivisionError" not in cli.ok("backends").out
        done = cli.ok("backends", "--check")
        assert "broken" in done.out
        assert "ZeroDivisionError" in done.out
        assert cli("stats", "-b", "bad").status == 1

    def test_unsupported(self, cli: Abe, fake_distribution: FakeDistribution) -> None:
        fake_distribution("gone", {"gone": "gone:Backend"}, {"gone.py": UNREACHABLE})
        done = cli("peek", "-b", "gone")
        assert (done.status, done.out) == (1, "")
        assert done.err == "abe: backend 'Backend' does not support peek() (capability 'peek')\n"
