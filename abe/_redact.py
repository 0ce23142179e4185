"""The one redactor: text, tables, errors and logs are shown without passwords, tokens and keys.

A value is confidential by the name it is stored under (`is_secret`), by its place in a text
(`redact`: credentials in URLs, ``password=…``), or because it is known (`Secrets`, `known`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, quote_plus, unquote, urlsplit

__all__ = ["SECRET", "Secrets", "Variables", "is_secret", "known", "redact"]

SECRET = "***"  # noqa: S105 - what stands in for one
"""What is shown in place of a secret."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_ROOT = re.compile(
    r"passw(?:or)?d|passphrase|secret(?!ar)|credential|authorization"
    r"|(?:api|access|account|auth|private|signing|encryption)key|token\Z|pwd\Z"
)
_LAST = {"auth", "cookie", "jwt", "pass"}
_OTHER_KEYS = re.compile(
    "business|cache|customer|date|dedup|deduplication|entity|event|foreign|group|hash|idempotency"
    "|index|item|join|letter|map|message|natural|new|old|order|parent|partition|primary|product"
    "|public|range|record|routing|row|search|sort|surrogate|unique|user"
)
"""Words before ``key`` that make it an identifier."""
_ABOUT_FIRST = {"has", "is", "max", "min", "no", "num"}
_ABOUT_LAST = re.compile(
    "age|at|count|expires|expiry|file|hint|length|limit|names?|path|policy|rate|size|sock|ttl"
    "|type|uri|url|used"
)
"""First and last words of names that hold a fact about a secret, not the secret."""

# Errors show the form of a URL with this placeholder.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]{0,30}://)(?!\[user:password@\])[^\s/?#\"'<>]*@")
_PAIR = re.compile(
    r"(?<![\w.-])(?P<name>[A-Za-z][\w.\-]{0,80})(?P<is>[\"']?\s*=\s*|[\"']\s*:\s*)"
    r"(?P<value>\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[^\s\"'<>&;,#()\[\]{}]+)"
)
_HEADER = re.compile(r"(authorization:\s*(?:\w+\s+)?)[^\s'\"]+", re.IGNORECASE)
_SIGNATURE = re.compile(r"(?:.*[_.-])?sig(?:nature)?", re.IGNORECASE)
_NO_SECRETS = {"", "true", "false", "none", "null"}
_FOLDERS = {"PWD", "OLDPWD"}
_FILE = re.compile(r"[~./\\].*\.\w{1,5}|[A-Za-z]:\\.*")


@lru_cache(4096)
def is_secret(name: str) -> bool:
    """Return whether a name such as ``ABE_X_PASSWORD`` or ``apiKey`` announces a secret."""
    words = [word.lower() for word in _WORD.findall(name[:200])]
    if not words or _ABOUT_LAST.fullmatch(words[-1]) or words[0] in _ABOUT_FIRST:
        return False
    if words[-1] == "key" and len(words) > 1 and not _OTHER_KEYS.fullmatch(words[-2]):
        return True
    return words[-1] in _LAST or "token" in words or _ROOT.search("".join(words)) is not None


def redact(text: str) -> str:
    """Return ``text`` without credentials in URLs and without values of confidential names."""
    if "://" in text:
        text = _URL.sub(rf"\1{SECRET}@", text)
    if "=" in text or ":" in text:
        text = _PAIR.sub(_redacted_pair, _HEADER.sub(rf"\1{SECRET}", text))
    return text


def _redacted_pair(match: re.Match[str]) -> str:
    name, sign, value = match.groups()
    signature = "=" in sign and _SIGNATURE.fullmatch(name)
    if not (signature or is_secret(name)) or value.lower() in _NO_SECRETS:
        return match.group()
    mark = value[0] if value[0] in "\"'" else ""
    return f"{name}{sign}{mark}{SECRET}{mark}"


class Variables(dict[str, str]):
    """Environment variables whose ``repr``, as in a traceback with values, shows no secret."""

    def __repr__(self) -> str:
        return repr({n: SECRET if is_secret(n) else redact(v) for n, v in self.items()})


class Secrets:
    """Values that must not appear in any text; for providers whose drivers quote them.

    Each is found as it is, percent-encoded as in a URL, and as in a ``repr``.

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

    def learn(
        self, variables: Mapping[str, str], declared: Mapping[str, bool] = MappingProxyType({})
    ) -> None:
        """Hide the secrets among environment variables, credentials of their URLs included.

        Args:
            variables: Names and values.
            declared: Which of them are secrets, where the name does not decide.
        """
        found: set[str] = set()
        for name, value in variables.items():
            guess = is_secret(name) and name not in _FOLDERS and not _FILE.fullmatch(value)
            found.update(_confidential(value, declared.get(name, guess)))
        # A flag or a database number is no secret, and replacing it would garble the text.
        found = {value for value in found if len(value) > 3}
        if not found <= set(self._forms):
            self.add(*found)

    def hide(self, text: str) -> str:
        """Return ``text`` with ``***`` in place of every secret."""
        for form in self._forms:
            text = text.replace(form, SECRET)
        return redact(text)

    def clean(self, error: BaseException) -> None:
        """Take secrets out of an exception and its causes, in place.

        Tracebacks are cut before the first frame that holds a secret in a variable.
        """
        for current in _chain(error):
            current.args = tuple(self._hidden(part) for part in current.args)
            for name, value in list(vars(current).items()):
                if isinstance(value, str | bytes | dict | list):
                    setattr(current, name, self._hidden(value))
            if isinstance(current, OSError):  # shows these, not its args, once they are set
                for name in ("strerror", "filename"):
                    if (value := getattr(current, name)) is not None:
                        setattr(current, name, self._hidden(value))
            self._cut(current)

    def _cut(self, error: BaseException) -> None:
        before, here = None, error.__traceback__
        while here is not None and not self._holds(dict(here.tb_frame.f_locals)):
            before, here = here, here.tb_next
        if before is None and here is not None:
            error.__traceback__ = None
        elif before is not None:
            before.tb_next = None

    def _holds(self, value: object, depth: int = 3) -> bool:
        """Return whether ``value`` shows a secret; looks only where that is cheap."""
        if isinstance(value, bytes):
            value = value[:10_000].decode(errors="replace")
        if isinstance(value, str):
            return any(form in value[:10_000] for form in self._forms)
        if not depth or isinstance(value, Variables):
            return False
        if isinstance(value, dict):
            value = value.values()
        elif not isinstance(value, list | tuple | set | frozenset):
            return False
        return any(self._holds(inner, depth - 1) for inner in islice(value, 100))

    def _hidden(self, value: Any) -> Any:
        shown = hidden = value
        if isinstance(value, str):
            hidden = self.hide(value)
        elif isinstance(value, list):
            hidden = [self._hidden(inner) for inner in value]
        elif isinstance(value, dict):
            secret = {name for name in value if isinstance(name, str) and is_secret(name)}
            hidden = {n: SECRET if n in secret else self._hidden(it) for n, it in value.items()}
        elif value is not None and not isinstance(value, int | float | BaseException):
            with suppress(Exception):  # what has no repr shows nothing either
                shown = value.decode(errors="replace") if isinstance(value, bytes) else repr(value)
                hidden = self.hide(shown)
        return value if hidden == shown else hidden


known = Secrets()
"""What this process has read from its environment and from ``env=``."""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, its causes and contexts, and the members of groups, each once."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        current = todo.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        todo += [current.__cause__, current.__context__]
        if isinstance(current, BaseExceptionGroup):
            todo += current.exceptions


def _confidential(value: str, secret: bool) -> Iterator[str]:
    """Yield what must not be shown of a variable's value."""
    if secret and value.lower() not in _NO_SECRETS:
        yield value
    for pair in _PAIR.finditer(value):
        if is_secret(pair["name"]):
            yield pair["value"].strip("\"'")
    _, _, rest = value.partition("://")
    credentials = rest.rpartition("@")[0]
    if not credentials:
        return
    with suppress(ValueError):
        yield from _spellings(urlsplit(value).netloc.rpartition("@")[0])
    # The password may not be encoded as it must.
    port = re.split(r"[/?#]", credentials)[0].partition(":")[2]
    if port and not port.isdigit():
        yield from _spellings(credentials)


def _spellings(credentials: str) -> Iterator[str]:
    for part in (credentials, credentials.partition(":")[2]):
        yield from (part, unquote(part))
