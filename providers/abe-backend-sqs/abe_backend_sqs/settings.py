"""The variables of `SqsBackend`, AWS's own among them."""

from __future__ import annotations

import json
import re

from abe.backends.message_queue.base import Setting, validate_key
from abe_backend_sqs.link import LONGEST_WAIT

__all__ = ["SETTINGS"]

LONGEST_LEASE = 1800


def _endpoint(url: str) -> str:
    if not re.fullmatch(r"https?://(\[[\da-fA-F:.]+\]|[^/@:\s]+)(:\d{1,5})?(/[^@\s]*)?", url):
        raise ValueError("a URL like http://localhost:4566, without user and password")
    return url


def _groups(text: str) -> dict[str, str]:
    try:
        groups = json.loads(text)
        if isinstance(groups, dict) and all(v and isinstance(v, str) for v in groups.values()):
            return {validate_key(group): queue for group, queue in groups.items()}
    except ValueError:
        pass
    raise ValueError('JSON that maps groups to queues, like {"billing": "shop-billing"}')


def _aws(name: str, help: str, *, secret: bool = False) -> Setting:
    kind = _endpoint if "ENDPOINT" in name else str
    return Setting(name, kind, help=help, secret=secret, argument=name)


# fmt: off
SETTINGS = (
    Setting("ABE_SQS_QUEUE", sample="orders",
            help="name, URL or ARN of the queue; with a topic, of the default group's"),
    Setting("ABE_SQS_TOPIC", sample="arn:aws:sns:eu-central-1:123456789012:orders",
            help="ARN of an SNS topic: publish there, and let groups have queues of their own"),
    Setting("ABE_SQS_GROUP_QUEUE", sample="orders-{group}",
            help="with a topic: name, URL or ARN of a group's queue"),
    Setting("ABE_SQS_GROUPS", _groups, sample='{"billing": "invoices"}',
            help="with a topic: queues of groups that the pattern does not fit, as JSON"),
    Setting("ABE_SQS_DEAD_LETTERS", bool, False, sample="1",
            help="`1`: every queue has a redrive policy; reject to the dead-letter queue that it "
            "names"),
    Setting("ABE_SQS_LEASE", float, 30.0, "s", minimum=1, maximum=LONGEST_LEASE, sample="120",
            help="how long a message may be neither settled nor extended, else it is redelivered"),
    Setting("ABE_SQS_WAIT", float, 5.0, "s", minimum=1, maximum=LONGEST_WAIT, sample="20",
            help="how long SQS holds back its answer while there are no messages"),
    Setting("ABE_SQS_TIMEOUT", float, 10.0, "s", minimum=0.01, sample="3",
            help="how long to wait for a connection, and for each answer"),
    Setting("ABE_SQS_PUBLISH_TIMEOUT", float, 30.0, "s", sample="5",
            help="how long `publish` retries what may pass"),
    Setting("ABE_SQS_REGION", sample="eu-central-1",
            help="region of the queue and the topic",
            default_text="from the ARN or URL, else AWS's variables"),
    Setting("ABE_SQS_ENDPOINT", _endpoint, sample="http://localhost:4566",
            help="where SQS and SNS are, for a stand-in",
            default_text="from AWS's variables, else AWS"),
    _aws("AWS_REGION", "region, without `ABE_SQS_REGION`"),
    _aws("AWS_DEFAULT_REGION", "the same, without `AWS_REGION`"),
    _aws("AWS_ENDPOINT_URL", "where AWS is, without `ABE_SQS_ENDPOINT`"),
    _aws("AWS_ENDPOINT_URL_SQS", "where SQS is, before `AWS_ENDPOINT_URL`"),
    _aws("AWS_ENDPOINT_URL_SNS", "where SNS is, before `AWS_ENDPOINT_URL`"),
    _aws("AWS_ACCESS_KEY_ID", "credentials; without them AWS's usual ways, such as a role"),
    _aws("AWS_SECRET_ACCESS_KEY", "the key's secret", secret=True),
    _aws("AWS_SESSION_TOKEN", "the session token of temporary credentials", secret=True),
    _aws("AWS_PROFILE", "profile of the AWS configuration files"),
)
# fmt: on
