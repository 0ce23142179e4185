"""The driver's exceptions, translated once, with every secret taken out."""

from __future__ import annotations

import re

import aiohttp
from botocore import exceptions as driver

from abe.backends.message_queue.base import Secrets
from abe.errors import ConfigurationError, ConnectionLostError

__all__ = ["DRIVER_ERRORS", "LapsedError", "Refused", "Translator", "UnreachedError"]

_TOKEN = re.compile(r"(x-amz-security-token\s*[:=]\s*)[^\s&'\"]+", re.IGNORECASE)
"""AWS repeats a refused request, with a token that may be newer than the one we know."""

DRIVER_ERRORS = (driver.BotoCoreError, driver.ClientError, aiohttp.ClientError, OSError)
"""Errors of the driver's calls; a `TimeoutError` is an `OSError`."""

# Beginnings of error codes: SQS, SNS and their older protocols spell them differently.
_CREDENTIALS = re.compile(
    "AccessDenied|AuthFailure|AuthorizationError|ExpiredToken|IncompleteSignature|InvalidAccessKey"
    "|InvalidClientToken|InvalidSecurity|MissingAuthentication|NotAuthorized|OptInRequired"
    "|SignatureDoesNotMatch|UnrecognizedClient|.*AccessDeniedException"
)
_MISSING = re.compile("(AWS.SimpleQueueService.NonExistentQueue|QueueDoesNotExist|NotFound)$")
_BUSY = re.compile(
    "KMSThrottling|KmsThrottled|OverLimit|RequestLimitExceeded|RequestThrottled|Throttl|TooMany"
)
_PASSING = re.compile("InternalError|InternalFailure|RequestTimeout|ServiceUnavailable")
_UNREACHED = (driver.EndpointConnectionError, driver.ConnectTimeoutError)
_ON_THE_WAY = (driver.HTTPClientError, driver.ConnectionError)


class UnreachedError(ConnectionLostError):
    """AWS has done nothing: there was no connection, or it turned the call away unread."""


class Refused(ConfigurationError):
    """AWS answered a call with an error that trying again does not cure."""


class LapsedError(ConfigurationError):
    """A receipt handle is no longer valid: the delivery is over."""


class Translator(Secrets):
    """Turns the driver's exceptions into abe's."""

    def hide(self, text: str) -> str:
        return _TOKEN.sub(r"\1***", super().hide(text))

    def translate(self, error: BaseException, where: str) -> Exception:
        """Return what to raise ``from error``; ``where`` is the service and its place."""
        self.clean(error)
        text = self.hide(str(error)) or type(error).__name__
        if isinstance(error, driver.ClientError):
            return _of_answer(error, text, where)
        if isinstance(error, driver.NoRegionError):
            return ConfigurationError(
                "no AWS region is known: set ABE_SQS_REGION or AWS_DEFAULT_REGION"
            )
        if isinstance(error, driver.SSLError) and (advice := _advice_on_tls(text)):
            return ConfigurationError(f"{where}: {advice}: {text}")
        if isinstance(error, _UNREACHED):
            return UnreachedError(f"{where} cannot be reached: {text}")
        if isinstance(error, driver.ParamValidationError):
            return Refused(f"{where}: {text}")
        if isinstance(error, driver.BotoCoreError) and not isinstance(error, _ON_THE_WAY):
            return ConfigurationError(
                f"{where}: no usable AWS credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                f"AWS_PROFILE, or a role) or configuration: {text}"
            )
        return ConnectionLostError(f"{where} cannot be reached: {text}")


def _of_answer(error: driver.ClientError, text: str, where: str) -> Exception:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    name = code.rpartition(".")[2] if code.startswith("com.amazonaws") else code
    if _CREDENTIALS.match(name):
        return ConfigurationError(
            f"{where} refuses the credentials, or they may not do this: {text}"
        )
    if _MISSING.match(name):
        return ConfigurationError(f"{where} knows no such queue or topic; create it first: {text}")
    if status == 429 or _BUSY.match(name):
        return UnreachedError(f"{where} is too busy for this now: {text}")
    if status >= 500 or _PASSING.match(name):
        return ConnectionLostError(f"{where} cannot serve this now: {text}")
    return Refused(f"{where} refuses a call: {text}")


def _advice_on_tls(text: str) -> str:
    """Return what to do about a TLS connection that cannot be made; "" if it broke."""
    if "CERTIFICATE" in text.upper():
        return "its certificate cannot be verified; set AWS_CA_BUNDLE to its authority's"
    if "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER" in text:
        return "no TLS is spoken there; let the endpoint begin with http://"
    return ""
