"""The driver's exceptions, translated once, with every secret taken out."""

from __future__ import annotations

import ssl

from redis import exceptions as driver

from abe.backends.message_queue.base import Secrets
from abe.errors import ConfigurationError, ConnectionLostError

__all__ = ["GroupMissingError", "RefusedError", "Translator", "UnreachedError", "passes"]

_ELSEWHERE = (
    driver.ReadOnlyError,
    driver.MovedError,
    driver.AskError,
    driver.ClusterDownError,
    driver.MasterDownError,
    driver.TryAgainError,
    driver.BusyLoadingError,
    driver.OutOfMemoryError,
)
"""This server is not the one to talk to, or not at this moment: connect anew."""
_PASSING = (
    "LOADING",
    "BUSY ",
    "OOM ",
    "MISCONF",
    "NOREPLICAS",
    "UNBLOCKED",
    "MASTERDOWN",
    "READONLY",
    "non local key",  # of a slot that is moving to another node
)
_CREDENTIALS = ("NOAUTH", "WRONGPASS", "invalid password", "without any password")
_RIGHTS = ("NOPERM", "o permissions", "can't run this command")


def passes(text: str) -> bool:
    """Return whether what Redis says is about its state, and trying again may help."""
    return any(sign in text for sign in _PASSING)


class GroupMissingError(Exception):
    """The consumer group does not exist: it was deleted, or lost with the data."""


class UnreachedError(ConnectionLostError):
    """Redis has done nothing: there was no connection, or it answered that it cannot do it now."""


class RefusedError(ConfigurationError):
    """Redis answered a command with an error that trying again does not cure."""


class Translator(Secrets):
    """Turns the driver's exceptions into abe's.

    ``cluster`` is the URL that would reach the server as a node of a Cluster, if it is another.
    """

    def __init__(self, where: str, cluster: str | None, *secrets: str | None) -> None:
        super().__init__(*secrets)
        self._where = f"Redis at {where}"
        self._cluster = cluster
        self.served = False
        """Whether a read-only replica is no mistake in the URL but a failover: the server at this
        address has done what was asked before, or a Sentinel or Cluster names it."""

    def translate(self, error: BaseException, *, sent: bool = True) -> Exception:
        """Return what to raise ``from error``; ``sent``: whether a command may have been sent."""
        self.clean(error)
        text = self.hide(str(error)) or type(error).__name__
        if refusal := self._refusal(error, text):
            return ConfigurationError(f"{self._where} {refusal}")
        if isinstance(error, _ELSEWHERE) or passes(text):
            return UnreachedError(f"{self._where} cannot serve this now: {text}")
        if isinstance(error, driver.ResponseError):
            if "NOGROUP" in text:
                return GroupMissingError(text)
            refused = RefusedError if sent else ConfigurationError
            return refused(f"{self._where} refuses a command: {text}")
        if type(error) is driver.RedisError:  # a setting that it cannot connect with
            return ConfigurationError(f"ABE_REDIS_URL: {text}")
        kind = ConnectionLostError if sent else UnreachedError
        return kind(f"{self._where} cannot be reached: {text}")

    def _refusal(self, error: BaseException, text: str) -> str:
        """Return why trying again is of no use, and what to do; empty if it may be."""
        if text.startswith("FORMAT "):
            return (
                f"holds a namespace of another format ({text[7:50]}); upgrade abe-backend-redis, "
                "or set ABE_REDIS_PREFIX to another namespace"
            )
        if isinstance(error, driver.NoPermissionError) or any(sign in text for sign in _RIGHTS):
            return f"denies a right that abe needs (the README lists them): {text}"
        if isinstance(
            error, driver.AuthenticationError | driver.AuthenticationWrongNumberOfArgsError
        ) or any(sign in text for sign in _CREDENTIALS):
            return (
                "refuses the credentials (ABE_REDIS_URL, ABE_REDIS_USERNAME, "
                f"ABE_REDIS_PASSWORD): {text}"
            )
        if self._cluster and isinstance(error, driver.MovedError | driver.AskError):
            return f"is a node of a Redis Cluster; set ABE_REDIS_URL to {self._cluster}"
        if not self.served and (isinstance(error, driver.ReadOnlyError) or "READONLY" in text):
            return "is a read-only replica; set ABE_REDIS_URL to the primary, or to redis+sentinel:"
        if (certificate := _certificate(error)) is not None:
            return (
                f"offers a certificate that is not trusted, or trusts none of ours: {certificate}; "
                "check ABE_REDIS_TLS_CA, ABE_REDIS_TLS_CERT and ABE_REDIS_TLS_KEY"
            )
        return ""


def _certificate(error: BaseException | None) -> str | None:
    """Return what is said of a certificate, if an error was raised because of one."""
    while error is not None:
        if isinstance(error, ssl.SSLError) and "certificate" in str(error).lower():
            return str(error)
        error = error.__cause__ or error.__context__
    return None
