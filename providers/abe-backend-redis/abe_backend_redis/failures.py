"""The driver's exceptions, translated once, with every secret taken out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, quote_plus

from redis import exceptions as driver

from abe.errors import ConfigurationError, ConnectionLostError

__all__ = ["GroupMissingError", "RefusedError", "Secrets", "passes"]

HIDDEN = "***"

_REFUSED = (
    driver.AuthenticationError,
    driver.AuthenticationWrongNumberOfArgsError,
    driver.NoPermissionError,
)
_ELSEWHERE = (
    driver.ReadOnlyError,
    driver.MovedError,
    driver.AskError,
    driver.ClusterDownError,
    driver.MasterDownError,
    driver.TryAgainError,
)
"""This server is not, or not yet, the one to talk to: connect anew."""
_PASSING = (
    "LOADING",
    "BUSY ",
    "OOM ",
    "MISCONF",
    "NOREPLICAS",
    "READONLY",
    "UNBLOCKED",
    "MASTERDOWN",
)
_CREDENTIALS = ("NOAUTH", "WRONGPASS", "NOPERM", "invalid password", "without any password")


def passes(text: str) -> bool:
    """Return whether what Redis says is about its state, and trying again may help."""
    return any(sign in text for sign in _PASSING)


class GroupMissingError(Exception):
    """The consumer group does not exist: it was deleted, or lost with the data."""


class RefusedError(ConfigurationError):
    """Redis answered a command with an error that trying again does not cure."""


class Secrets:
    """What must not appear in any text.

    Args:
        secrets: Passwords and the like; empty ones are ignored.
    """

    def __init__(self, secrets: Iterable[str | None]) -> None:
        known = {secret for secret in secrets if secret}
        forms = known | {quote(s, safe="") for s in known} | {quote(s) for s in known}
        forms |= {quote_plus(s) for s in known} | {repr(s)[1:-1] for s in known}
        forms |= {repr(s.encode(errors="replace"))[2:-1] for s in known}
        # Longest first: one form may contain another.
        self._forms = sorted(forms, key=len, reverse=True)

    def hide(self, text: str) -> str:
        """Return ``text`` without secrets."""
        for form in self._forms:
            text = text.replace(form, HIDDEN)
        return text

    def clean(self, error: BaseException) -> None:
        """Take secrets out of an exception and of those it was raised from."""
        seen: set[int] = set()
        todo: list[BaseException | None] = [error]
        while todo:
            current = todo.pop()
            if current is None or id(current) in seen:
                continue
            seen.add(id(current))
            if any(form in f"{current!s} {current!r}" for form in self._forms):
                current.args = tuple(self._hidden(part) for part in current.args)
                if isinstance(current, OSError):  # shows these, not its args
                    current.strerror = self._hidden(current.strerror)
                    current.filename = self._hidden(current.filename)
            todo += [current.__cause__, current.__context__]

    def _hidden(self, value: Any) -> Any:
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        if value is None or isinstance(value, int):
            return value
        return self.hide(value if isinstance(value, str) else repr(value))

    def translate(self, error: BaseException, where: str) -> Exception:
        """Return what to raise ``from error``.

        Args:
            error: What the driver raised.
            where: The server, for the text.
        """
        self.clean(error)
        text = self.hide(str(error)) or type(error).__name__
        if isinstance(error, _REFUSED) or any(sign in text for sign in _CREDENTIALS):
            return ConfigurationError(
                f"Redis at {where} refuses the credentials (ABE_REDIS_URL, ABE_REDIS_USERNAME, "
                f"ABE_REDIS_PASSWORD): {text}"
            )
        if isinstance(error, _ELSEWHERE) or passes(text):
            return ConnectionLostError(f"Redis at {where} cannot serve this now: {text}")
        if isinstance(error, driver.ResponseError):
            if "NOGROUP" in text:
                return GroupMissingError(text)
            return RefusedError(f"Redis at {where} refuses a command: {text}")
        return ConnectionLostError(f"Redis at {where} cannot be reached: {text}")
