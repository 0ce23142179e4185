"""Keeping passwords and tokens out of errors and logs."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, quote_plus

__all__ = ["Secrets"]

_HIDDEN = "***"


class Secrets:
    """What must not appear in any text, for providers whose drivers like to quote it.

    Every form in which a secret gets into texts counts: as it is, percent-encoded as in a URL, and
    as in a ``repr``.

    Args:
        secrets: Passwords, tokens and the like; empty ones and ``None`` are ignored.
    """

    def __init__(self, *secrets: str | None) -> None:
        self._forms: list[str] = []
        self.add(*secrets)

    def add(self, *secrets: str | None) -> None:
        """Hide these too, from now on."""
        forms = set(self._forms)
        for secret in filter(None, secrets):
            forms |= {secret, quote(secret, safe=""), quote(secret), quote_plus(secret)}
            forms |= {repr(secret)[1:-1], repr(secret.encode(errors="replace"))[2:-1]}
        # Longest first: one form may contain another.
        self._forms = sorted(forms, key=len, reverse=True)

    def hide(self, text: str) -> str:
        """Return ``text`` with ``***`` in the place of every secret."""
        for form in self._forms:
            text = text.replace(form, _HIDDEN)
        return text

    def clean(self, error: BaseException) -> None:
        """Take secrets out of an exception and of all that it was raised from, in place."""
        seen: set[int] = set()
        todo: list[BaseException | None] = [error]
        while todo:
            current = todo.pop()
            if current is None or id(current) in seen:
                continue
            seen.add(id(current))
            current.args = tuple(self._hidden(part) for part in current.args)
            for name, value in list(vars(current).items()):
                if isinstance(value, str | bytes | dict):
                    setattr(current, name, self._hidden(value))
            if isinstance(current, OSError):  # shows these, not its args, once they are set
                for name in ("strerror", "filename"):
                    if (value := getattr(current, name)) is not None:
                        setattr(current, name, self._hidden(value))
            todo += [current.__cause__, current.__context__]

    def _hidden(self, value: Any) -> Any:
        if value is None or isinstance(value, int | float):
            return value
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, dict):
            return {name: self._hidden(inner) for name, inner in value.items()}
        shown = value.decode(errors="replace") if isinstance(value, bytes) else repr(value)
        hidden = self.hide(shown)
        return value if hidden == shown else hidden
