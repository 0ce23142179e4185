"""Every error abe raises, and the two signals a handler may raise.

Each error is also the builtin a caller would expect, so code that knows nothing of abe still
catches it::

    AbeError
    ├── UnknownBackendError   (LookupError, RuntimeError)  no such backend is installed
    ├── AmbiguousBackendError (LookupError)                two distributions claim one name
    ├── BackendLoadError      (ImportError)                a provider is installed but broken
    ├── ConfigurationError    (ValueError)                 a variable or argument is wrong
    ├── InvalidKeyError       (ValueError)                 a key, group or key filter is malformed
    ├── PayloadError          (ValueError)                 not exactly representable as JSON
    ├── PublishError          (RuntimeError)               the broker did not accept a message
    ├── ConnectionLostError   (ConnectionError)            the broker cannot be reached
    ├── UnsupportedError      (NotImplementedError)        this backend cannot do that
    ├── BackendClosedError    (RuntimeError)               used after close
    └── LoopError             (RuntimeError)               called on the wrong event loop

    Reject, Retry             (Exception)                  raised *by* a handler, never by abe
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = [
    "AbeError",
    "AmbiguousBackendError",
    "BackendClosedError",
    "BackendLoadError",
    "ConfigurationError",
    "ConnectionLostError",
    "InvalidKeyError",
    "LoopError",
    "PayloadError",
    "PublishError",
    "Reject",
    "Retry",
    "UnknownBackendError",
    "UnsupportedError",
]


class AbeError(Exception):
    """Base of every error raised by abe and its providers.

    Attributes:
        retryable: Whether the same call may succeed later, with nothing changed by the caller:
            true of `ConnectionLostError`, of some `PublishError` and of no other.
    """

    retryable: bool = False


class UnknownBackendError(AbeError, LookupError, RuntimeError):
    """No installed distribution registers a backend under the requested name."""


class AmbiguousBackendError(AbeError, LookupError):
    """Two distributions register the same backend name; uninstall one of them."""


class BackendLoadError(AbeError, ImportError):
    """A provider is installed, but its backend cannot be imported or instantiated.

    Attributes:
        distribution: The distribution that registers the backend.
        entry_point: The entry point's value, e.g. ``"abe_backend_x.backend:XBackend"``.
    """

    def __init__(self, message: str, *, distribution: str = "", entry_point: str = "") -> None:
        super().__init__(message)
        self.distribution = distribution
        self.entry_point = entry_point


class ConfigurationError(AbeError, ValueError):
    """A setting is missing or malformed; the text names it and the form it must have."""


class InvalidKeyError(AbeError, ValueError):
    """A key, group name or key filter breaks the rules of `abe.types.MessageQueueKey`."""


class PayloadError(AbeError, ValueError):
    """A payload or header would not arrive exactly as published; the text names the path."""


class PublishError(AbeError, RuntimeError):
    """The broker did not accept what was published.

    Attributes:
        retryable: Whether publishing the same messages again may succeed.
        published: Positions (0-based) in the items of ``publish_many`` that were accepted.
        failed: Position and reason of every item that was not accepted.
    """

    def __init__(
        self,
        message: str,
        *,
        retryable: bool = False,
        published: Sequence[int] = (),
        failed: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.published = published
        self.failed: Mapping[int, str] = failed if failed is not None else {}


class ConnectionLostError(AbeError, ConnectionError):
    """The broker cannot be reached; a stream retries by itself, ``publish`` raises this.

    Attributes:
        undelivered: How many settlements the broker did not get before a stream or a backend was
            closed; those messages are redelivered.
    """

    retryable = True
    undelivered: int = 0


class UnsupportedError(AbeError, NotImplementedError):
    """The backend does not declare the capability that was asked for."""


class BackendClosedError(AbeError, RuntimeError):
    """The backend was closed; open a new one."""


class LoopError(AbeError, RuntimeError):
    """Called on an event loop or thread on which the call would deadlock or misbehave."""


class Reject(Exception):
    """Raised by a handler: do not retry this message, send it to the dead letters.

    Args:
        reason: Kept with the dead letter, as text, for whoever looks at it; may be an exception.
    """

    reason: str = ""  # also of a subclass whose own constructor does not call this one

    def __init__(self, reason: object = "") -> None:
        super().__init__(reason)
        if isinstance(reason, BaseException):
            self.reason = f"{type(reason).__name__}: {reason}"
        else:
            self.reason = "" if reason is None else str(reason)


class Retry(Exception):
    """Raised by a handler: this delivery failed, deliver the message again.

    Args:
        delay: Seconds until then, at least; ``None`` leaves it to the consumer's
            `abe.RetryPolicy`.

    Raises:
        TypeError: If ``delay`` is no number.
    """

    delay: float | None = None

    def __init__(self, delay: float | None = None) -> None:
        super().__init__(delay)
        try:
            self.delay = None if delay is None else float(delay)
        except (TypeError, ValueError):
            text = f"delay is {delay!r}; it must be a number of seconds, or None"
            raise TypeError(text) from None

    def __str__(self) -> str:
        return "" if self.delay is None else f"again in {self.delay:g} s"
