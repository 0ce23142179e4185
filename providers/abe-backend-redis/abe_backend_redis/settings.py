"""The variables of `RedisBackend`."""

from __future__ import annotations

import re

from abe.backends.message_queue.base import Setting

__all__ = ["DEFAULT_PREFIX", "DEFAULT_URL", "SETTINGS"]

DEFAULT_URL = "redis://localhost:6379/0"
DEFAULT_PREFIX = "abe"


def _prefix(text: str) -> str:
    if not re.fullmatch(r"[^\s{}#]{1,100}", text):
        raise ValueError("1 to 100 characters without white space, braces and '#'")
    return text


SETTINGS = (
    Setting(
        "ABE_REDIS_URL",
        default=DEFAULT_URL,
        help="where Redis is, see below",
        sample="rediss://queue.example.com:6380/0",
    ),
    Setting("ABE_REDIS_USERNAME", help="ACL user", default_text="from the URL", sample="orders"),
    Setting(
        "ABE_REDIS_PASSWORD",
        help="its password; appears in no error, `repr` or log line",
        secret=True,
        default_text="from the URL",
    ),
    Setting(
        "ABE_REDIS_PREFIX",
        _prefix,
        DEFAULT_PREFIX,
        help="namespace: backends with different prefixes know nothing of each other",
        sample="shop",
    ),
    Setting(
        "ABE_REDIS_LEASE",
        float,
        30.0,
        "s",
        "how long a message may be neither settled nor extended, else it is redelivered",
        minimum=0.1,
        sample="120",
    ),
    Setting(
        "ABE_REDIS_TIMEOUT",
        float,
        5.0,
        "s",
        "how long to wait for a connection, and for an answer to begin or go on",
        minimum=0.01,
        sample="2",
    ),
    Setting(
        "ABE_REDIS_PUBLISH_TIMEOUT",
        float,
        10.0,
        "s",
        "how long `publish` tries to reach Redis",
        sample="30",
    ),
    Setting(
        "ABE_REDIS_MAX_BACKLOG",
        int,
        0,
        "messages",
        "messages in the namespace beyond which `publish` raises a retryable `PublishError`",
        default_text="`0` (no limit)",
        sample="1000000",
    ),
    Setting(
        "ABE_REDIS_RETAIN_LENGTH",
        int,
        0,
        "messages",
        "messages of each key kept for later groups once settled",
        sample="10000",
    ),
    Setting(
        "ABE_REDIS_RETAIN_AGE",
        float,
        0.0,
        "s",
        "how long messages are kept for later groups",
        sample="86400",
    ),
    Setting(
        "ABE_REDIS_DROP_UNSETTLED",
        bool,
        False,
        help="`1`: the two limits also drop what a group has *not* settled, with a warning",
        sample="1",
    ),
    Setting(
        "ABE_REDIS_TLS_CA",
        help="file of certificate authorities, with `rediss://`",
        default_text="the system's",
        sample="/etc/ssl/redis-ca.pem",
    ),
    Setting("ABE_REDIS_TLS_CERT", help="file of the client certificate", sample="/etc/ssl/me.pem"),
    Setting("ABE_REDIS_TLS_KEY", help="file of its key", sample="/etc/ssl/me.key"),
    Setting("ABE_REDIS_SENTINEL_USERNAME", help="ACL user of the Sentinels themselves"),
    Setting("ABE_REDIS_SENTINEL_PASSWORD", help="its password", secret=True),
)
