"""Redaction of the text that abe shows."""

from __future__ import annotations

import re

__all__ = ["SECRET", "is_secret", "redact"]

SECRET = "***"  # noqa: S105 - what stands in for one
"""What is shown in the place of a secret."""

_CONFIDENTIAL = (
    "pass|passw(?:or)?d|passwd|passphrase|pwd|secret|token|credentials?|authorization"
    "|api[_-]?key|access[_-]?key|private[_-]?key|secret[_-]?key"
)
_SECRET_FIELD = re.compile(rf"(?:.*[_.-])?(?:{_CONFIDENTIAL})", re.IGNORECASE | re.DOTALL)
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# But for the form that errors show.
_URL_CREDENTIALS = re.compile(
    r"([A-Za-z][A-Za-z0-9+.\-]{0,30}://)(?!\[user:password@\])[^\s/?#\"'<>]*@"
)
_URL_QUERY = re.compile(
    rf"([?&](?:[\w.-]*[_.-])?(?:{_CONFIDENTIAL}|sig|signature)=)[^&\s\"'<>#]+", re.IGNORECASE
)


def redact(text: str) -> str:
    """Return ``text`` without the credentials in its URLs."""
    if "://" in text:
        text = _URL_CREDENTIALS.sub(rf"\1{SECRET}@", text)
    if "=" in text:
        text = _URL_QUERY.sub(rf"\1{SECRET}", text)
    return text


def is_secret(name: str) -> bool:
    """Return whether a field of this name holds a secret."""
    return len(name) <= 100 and _SECRET_FIELD.fullmatch(_HUMP.sub("_", name)) is not None
