"""What backends and consumers are made of; everything a provider needs is exported here."""

from __future__ import annotations

from abe._redact import Secrets
from abe.backends.message_queue.base.backend import BaseBackend
from abe.backends.message_queue.base.backoff import Backoff, pause, transient
from abe.backends.message_queue.base.batcher import Batcher
from abe.backends.message_queue.base.capabilities import COMPLETE, Capabilities, capabilities_of
from abe.backends.message_queue.base.dead_letters import dead_headers, raw_payload
from abe.backends.message_queue.base.keys import KeyFilter, validate_group, validate_key
from abe.backends.message_queue.base.log_records import MessageContext, log
from abe.backends.message_queue.base.message import BaseMessage, Message, SyncMessage
from abe.backends.message_queue.base.mover import Mover
from abe.backends.message_queue.base.operations import BackendOperations, Keys
from abe.backends.message_queue.base.outcome import Outcome
from abe.backends.message_queue.base.outgoing import Outgoing
from abe.backends.message_queue.base.payload import check_headers, decode_payload, encode_payload
from abe.backends.message_queue.base.protocol import EventConsumer, MessageQueueBackend
from abe.backends.message_queue.base.publisher import Publisher, not_published
from abe.backends.message_queue.base.receiver import (
    Delivery,
    EndOfStream,
    Receiver,
    SettleFailure,
    Settlement,
)
from abe.backends.message_queue.base.settings import (
    Setting,
    check_settings,
    naming_variables,
    read_settings,
)
from abe.backends.message_queue.base.subscription.leases import MAX_HOLD
from abe.backends.message_queue.base.subscription.plain import (
    backend_name,
    check_backend,
    open_stream,
)
from abe.backends.message_queue.base.subscription.read_ahead import SUSPECT_ATTEMPT
from abe.backends.message_queue.base.subscription.stream import MessageStream
from abe.backends.message_queue.base.subscription.subscription import Subscription

__all__ = [
    "MAX_HOLD",
    "SUSPECT_ATTEMPT",
    "backend_name",
    "check_backend",
    "BackendOperations",
    "Backoff",
    "BaseBackend",
    "BaseMessage",
    "Batcher",
    "COMPLETE",
    "Capabilities",
    "Delivery",
    "EndOfStream",
    "EventConsumer",
    "KeyFilter",
    "Keys",
    "Message",
    "MessageContext",
    "MessageQueueBackend",
    "MessageStream",
    "Mover",
    "Outcome",
    "Outgoing",
    "Publisher",
    "Receiver",
    "Secrets",
    "Setting",
    "SettleFailure",
    "Settlement",
    "Subscription",
    "SyncMessage",
    "capabilities_of",
    "check_settings",
    "check_headers",
    "dead_headers",
    "decode_payload",
    "encode_payload",
    "log",
    "naming_variables",
    "not_published",
    "open_stream",
    "pause",
    "raw_payload",
    "transient",
    "read_settings",
    "validate_group",
    "validate_key",
]
