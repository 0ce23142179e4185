"""Amazon SQS, and SNS in front of it, for `abe`; selected by ``QUEUE_BACKEND=sqs``."""

from __future__ import annotations

from abe_backend_sqs._version import __version__
from abe_backend_sqs.backend import SqsBackend

__all__ = ["SqsBackend", "__version__"]
