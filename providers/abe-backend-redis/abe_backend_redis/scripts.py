"""The Lua scripts: every operation that must not be seen half done."""

from __future__ import annotations

from hashlib import sha1
from pathlib import Path
from typing import Final

_FOLDER = Path(__file__).parent / "lua"


def _read(name: str) -> str:
    return (_FOLDER / f"{name}.lua").read_text(encoding="utf-8")


_COMMON = _read("common")
_GUARD = _read("guard")


class Script:
    """A script and the digest that Redis knows it by."""

    __slots__ = ("sha", "text")

    def __init__(self, name: str, *, before: str = "", guard: str = _GUARD) -> None:
        self.text = before + _COMMON + guard + _read(name)
        # Redis names scripts by this digest; nothing depends on its strength.
        self.sha = sha1(self.text.encode(), usedforsecurity=False).hexdigest()


ACK: Final = Script("ack")
BACK: Final = Script("back")
BEGIN: Final = Script("begin")
CLOSE: Final = Script("close")
COUNT: Final = Script("count")
DELETE: Final = Script("delete")
EXTEND: Final = Script("extend")
GROUPS: Final = Script("groups")
MIGRATE: Final = Script("migrate", guard="")
OPEN: Final = Script("open")
PEEK: Final = Script("peek")
PUBLISH: Final = Script("publish", before=_read("plain"))
PURGE: Final = Script("purge")
RECALL: Final = Script("recall")
REPLAY: Final = Script("replay")
TAKE: Final = Script("take")
