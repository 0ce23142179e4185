"""The driver's exceptions, translated once, with every secret taken out."""

from __future__ import annotations

from redis import exceptions as driver

from abe.backends.message_queue.base import Secrets
from abe.errors import ConfigurationError, ConnectionLostError

__all__ = ["GroupMissingError", "RefusedError", "Translator", "UnreachedError", "moving", "passes"]

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
)
_MOVING = ("READONLY", "non local key")
"""A script says so of a server that is no master any more, or whose slot is moving to another."""
_CREDENTIALS = ("NOAUTH", "WRONGPASS", "NOPERM", "invalid password", "without any password")


def passes(text: str) -> bool:
    """Return whether what Redis says is about its state, and trying again may help."""
    return moving(text) or any(sign in text for sign in _PASSING)


def moving(text: str) -> bool:
    """Return whether Redis says that another server is, or will be, the one to talk to."""
    return any(sign in text for sign in _MOVING)


class GroupMissingError(Exception):
    """The consumer group does not exist: it was deleted, or lost with the data."""


class UnreachedError(ConnectionLostError):
    """Redis has done nothing: there was no connection, or it answered that it cannot do it now."""


class RefusedError(ConfigurationError):
    """Redis answered a command with an error that trying again does not cure."""


class Translator(Secrets):
    """Turns the driver's exceptions into abe's."""

    def translate(self, error: BaseException, where: str, *, sent: bool = True) -> Exception:
        """Return what to raise ``from error``.

        Args:
            error: What the driver raised.
            where: The server, for the text.
            sent: Whether there was a connection that a command may have been sent on.
        """
        self.clean(error)
        text = self.hide(str(error)) or type(error).__name__
        if isinstance(error, _REFUSED) or any(sign in text for sign in _CREDENTIALS):
            return ConfigurationError(
                f"Redis at {where} refuses the credentials (ABE_REDIS_URL, ABE_REDIS_USERNAME, "
                f"ABE_REDIS_PASSWORD): {text}"
            )
        if isinstance(error, _ELSEWHERE) or passes(text):
            return UnreachedError(f"Redis at {where} cannot serve this now: {text}")
        if isinstance(error, driver.ResponseError):
            if "NOGROUP" in text:
                return GroupMissingError(text)
            refused = RefusedError if sent else ConfigurationError
            return refused(f"Redis at {where} refuses a command: {text}")
        if type(error) is driver.RedisError:  # a setting that it cannot connect with
            return ConfigurationError(f"ABE_REDIS_URL: {text}")
        kind = ConnectionLostError if sent else UnreachedError
        return kind(f"Redis at {where} cannot be reached: {text}")
