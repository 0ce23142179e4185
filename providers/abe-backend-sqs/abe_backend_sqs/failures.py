"""The driver's exceptions, translated once, with every secret taken out."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, quote_plus

import aiohttp
from botocore import exceptions as driver

from abe.errors import ConfigurationError, ConnectionLostError

__all__ = ["DRIVER_ERRORS", "Refused", "Secrets", "UnreachedError"]

HIDDEN = "***"
_TOKEN = re.compile(r"(x-amz-security-token\s*[:=]\s*)[^\s&'\"]+", re.IGNORECASE)
"""AWS repeats a refused request, with a token that may be newer than the one we know."""

DRIVER_ERRORS = (
    driver.BotoCoreError,
    driver.ClientError,
    aiohttp.ClientError,
    OSError,
    TimeoutError,
)
"""What a call of the driver may raise."""

_CREDENTIALS = (
    "AccessDenied",
    "AuthFailure",
    "AuthorizationError",
    "ExpiredToken",
    "IncompleteSignature",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSecurity",
    "MissingAuthenticationToken",
    "NotAuthorized",
    "OptInRequired",
    "SignatureDoesNotMatch",
    "UnrecognizedClient",
)
"""Beginnings of error codes: SQS, SNS and their older protocols spell them differently."""
_BUSY = (
    "KMSThrottling",
    "KmsThrottled",
    "OverLimit",
    "RequestLimitExceeded",
    "RequestThrottled",
    "Throttl",
    "TooManyRequests",
)
_PASSING = ("InternalError", "InternalFailure", "RequestTimeout", "ServiceUnavailable")
_MISSING = ("AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist", "NotFound")
_SETUP = (
    driver.NoCredentialsError,
    driver.PartialCredentialsError,
    driver.CredentialRetrievalError,
    driver.TokenRetrievalError,
    driver.NoAuthTokenError,
    driver.SSOError,
    driver.LoginError,
    driver.ProfileNotFound,
    driver.ConfigParseError,
    driver.ConfigNotFound,
)
_UNREACHED = (driver.EndpointConnectionError, driver.ConnectTimeoutError)


class UnreachedError(ConnectionLostError):
    """AWS has done nothing: there was no connection, or it turned the call away unread."""


class Refused(ConfigurationError):
    """AWS answered a call with an error that trying again does not cure."""


class Secrets:
    """What must not appear in any text."""

    def __init__(self) -> None:
        self._forms: list[str] = []

    def add(self, *secrets: str | None) -> None:
        """Hide these from now on; empty ones are ignored."""
        known = {secret for secret in secrets if secret}
        forms = {*self._forms, *known}
        for secret in known:
            forms |= {quote(secret, safe=""), quote(secret), quote_plus(secret)}
            forms |= {repr(secret)[1:-1], repr(secret.encode(errors="replace"))[2:-1]}
        # Longest first: one form may contain another.
        self._forms = sorted(forms, key=len, reverse=True)

    def hide(self, text: str) -> str:
        """Return ``text`` without secrets."""
        for form in self._forms:
            text = text.replace(form, HIDDEN)
        return _TOKEN.sub(rf"\1{HIDDEN}", text)

    def clean(self, error: BaseException) -> None:
        """Take secrets out of an exception and of those it was raised from."""
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
            if isinstance(current, OSError):  # shows these, not its args
                current.strerror = self._hidden(current.strerror)
                current.filename = self._hidden(current.filename)
            todo += [current.__cause__, current.__context__]

    def _hidden(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, bytes):
            return self.hide(value.decode(errors="replace"))
        if isinstance(value, dict):
            return {name: self._hidden(inner) for name, inner in value.items()}
        return value

    def translate(self, error: BaseException, where: str) -> Exception:
        """Return what to raise ``from error``.

        Args:
            error: What the driver raised.
            where: The service and its place, for the text.
        """
        self.clean(error)
        text = self.hide(str(error)) or type(error).__name__
        if isinstance(error, driver.ClientError):
            return _of_answer(error, text, where)
        if isinstance(error, _SETUP):
            return ConfigurationError(
                f"{where}: no usable AWS credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                f"AWS_PROFILE, or a role): {text}"
            )
        if isinstance(error, driver.NoRegionError):
            return ConfigurationError(
                "no AWS region is known: set ABE_SQS_REGION or AWS_DEFAULT_REGION"
            )
        if isinstance(error, _UNREACHED):
            return UnreachedError(f"{where} cannot be reached: {text}")
        if isinstance(error, driver.BotoCoreError) and not isinstance(
            error, driver.HTTPClientError | driver.ConnectionError
        ):
            return Refused(f"{where}: {text}")
        return ConnectionLostError(f"{where} cannot be reached: {text}")


def _of_answer(error: driver.ClientError, text: str, where: str) -> Exception:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    name = code.rpartition(".")[2] if code.startswith("com.amazonaws") else code
    if name.startswith(_CREDENTIALS) or name.endswith("AccessDeniedException"):
        return ConfigurationError(
            f"{where} refuses the credentials, or they may not do this: {text}"
        )
    if name in _MISSING:
        return ConfigurationError(f"{where} knows no such queue or topic; create it first: {text}")
    if status == 429 or name.startswith(_BUSY):
        return UnreachedError(f"{where} is too busy for this now: {text}")
    if status >= 500 or name.startswith(_PASSING):
        return ConnectionLostError(f"{where} cannot serve this now: {text}")
    return Refused(f"{where} refuses a call: {text}")
