"""Where messages go and come from: queues, their dead-letter queues, and a topic before them."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from typing import Any
from urllib.parse import unquote

from abe.errors import ConfigurationError
from abe.types import ConsumerGroup
from abe_backend_sqs.link import Link
from abe_backend_sqs.queue import Queue, name_of

__all__ = ["QueueResolver", "region_in"]

NAME = 80
"""Most characters of a queue's name."""
HASHED = 34
"""Characters of a group's name that had to be hashed."""
FRESH = 60.0
"""Seconds for which a topic is taken to have subscribers because it had."""

_REGION = re.compile(
    r"https://(?:sqs[.-]([a-z0-9-]+)|([a-z0-9-]+)\.queue)\.(?:amazonaws|api\.aws)"
    r"|arn:[a-z-]+:s[qn]s:([a-z0-9-]+):"
)
_TOPIC = re.compile(r"arn:[a-z-]+:sns:[a-z0-9-]+:\d{12}:[\w-]{1,256}(\.fifo)?")


def region_in(address: str) -> str | None:
    """Return the region in a queue's URL or an ARN, ``None`` if there is none."""
    found = _REGION.match(address)
    return found and (found[1] or found[2] or found[3])


class QueueResolver:
    """Finds queues, once each.

    Args:
        link: Calls the services.
        queue: Name, URL or ARN of the default group's queue.
        topic: ARN of the topic before all queues.
        groups: Those of the queues of named groups.
        template: Likewise, with ``{group}`` in it, for all other groups.

    Raises:
        ConfigurationError: If that does not fit together.
    """

    def __init__(
        self,
        link: Link,
        *,
        queue: str | None,
        topic: str | None,
        groups: Mapping[str, str],
        template: str | None,
    ) -> None:
        named = [("topic", topic), ("queue", queue), ("group_queue", template)]
        named = [(name, address) for name, address in named if address]
        named += [("groups", address) for address in groups.values()]
        if not topic and not queue:
            raise ConfigurationError("queue is not set; it must be the name, URL or ARN of a queue")
        if not topic and len(named) > 1:
            raise ConfigurationError(f"{named[1][0]} is set without a topic before the queues")
        if topic and not _TOPIC.fullmatch(topic):
            sample = "arn:aws:sns:eu-central-1:123456789012:orders"
            raise ConfigurationError(f"topic is {topic!a}; it must look like {sample}")
        if template and (template.count("{group}") != 1 or _room(template) < HASHED):
            raise ConfigurationError(
                f"group_queue is {template!a}; it must contain {{group}} once, and leave {HASHED} "
                f"of the {NAME} characters of a queue's name to the group"
            )
        for argument, address in named:
            if address and "@" in address:
                raise ConfigurationError(
                    f"{argument} has a user or a password in a URL; credentials are set as "
                    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                )
        kinds = {str(address).endswith(".fifo") for _, address in named}
        if len(kinds) > 1:
            text = "either all or none of the queues and the topic must end in .fifo"
            raise ConfigurationError(text)
        self.fifo = kinds == {True}
        self.topic = topic
        self._link = link
        self._sqs, self._sns = partial(link.call, "sqs"), partial(link.call, "sns")
        self._queue = queue
        self._groups = groups
        self._template = template
        self._known: dict[str, Queue] = {}
        self._lock = asyncio.Lock()
        self._subscribed_at = -math.inf

    def configured(self, group: ConsumerGroup) -> str:
        """Return the name, URL or ARN of the queue of ``group``; refuse one without a queue."""
        if group is None:
            if self._queue:
                return self._queue
            advice = "set ABE_SQS_QUEUE, or name a group"
            raise ConfigurationError(f"the default group has no queue: {advice}")
        if group in self._groups:
            return self._groups[group]
        if self._template is None:
            advice = "add it to ABE_SQS_GROUPS, or set ABE_SQS_GROUP_QUEUE"
            raise ConfigurationError(f"group {group!a} has no queue: {advice}")
        return self._template.replace("{group}", _in_a_name(group, _room(self._template)))

    async def queue_of(self, group: ConsumerGroup) -> Queue:
        return await self._once(self.configured(group))

    async def dead_of(self, queue: Queue) -> Queue:
        """Return the dead-letter queue of ``queue``; refuse one without a redrive policy."""
        if not queue.dead_arn:
            advice = "give it one, or leave ABE_SQS_DEAD_LETTERS unset"
            raise ConfigurationError(f"queue {queue.name} has no redrive policy; {advice}")
        return await self._once(queue.dead_arn)

    async def _once(self, address: str) -> Queue:
        async with self._lock:
            if address not in self._known:
                self._known[address] = await self._describe(address)
            return self._known[address]

    async def _describe(self, address: str) -> Queue:
        names = ["QueueArn", "MaximumMessageSize", "RedrivePolicy"]
        owner: dict[str, Any] = {}
        if address.startswith("arn:"):
            owner = {"QueueOwnerAWSAccountId": address.split(":")[-2]}
        try:
            url = address
            if "://" not in address:
                answer = await self._sqs("get_queue_url", QueueName=name_of(address), **owner)
                url = answer["QueueUrl"]
            answer = await self._sqs("get_queue_attributes", QueueUrl=url, AttributeNames=names)
        except ConfigurationError as error:
            raise ConfigurationError(f"queue {address}: {error}") from error
        about = answer["Attributes"]
        redrive = json.loads(about.get("RedrivePolicy") or "{}")
        limit, dead = int(about["MaximumMessageSize"]), redrive.get("deadLetterTargetArn", "")
        return Queue(self._link, url, about["QueueArn"], limit, dead)

    # -- the topic -------------------------------------------------------------------------

    async def subscriptions(self) -> dict[str, str]:
        """Return the queues behind the topic: ARN of the queue to ARN of its subscription."""
        assert self.topic is not None
        found: dict[str, str] = {}
        more: dict[str, Any] = {}
        while True:
            page = await self._sns("list_subscriptions_by_topic", TopicArn=self.topic, **more)
            for row in page.get("Subscriptions", ()):
                if row["Protocol"] == "sqs" and row["SubscriptionArn"].startswith("arn:"):
                    found[row["Endpoint"]] = row["SubscriptionArn"]
            if not page.get("NextToken"):
                return found
            more = {"NextToken": page["NextToken"]}

    async def groups(self) -> list[ConsumerGroup]:
        """Return the groups whose queues are subscribed; without a topic there is the default one.

        Not those whose names had to be hashed to fit into a queue's name.
        """
        if self.topic is None:
            return [None]
        known: dict[str, ConsumerGroup] = {name_of(q): group for group, q in self._groups.items()}
        if self._queue:
            known[name_of(self._queue)] = None
        start, _, end = name_of(self._template or "").partition("{group}")
        found = []
        for arn in await self.subscriptions():
            name = name_of(arn)
            if name in known:
                found.append(known[name])
            elif self._template and name.startswith(start) and name.endswith(end):
                group = _out_of_a_name(name[len(start) : len(name) - len(end)])
                found += [group] if group else []
        return found

    async def delete(self, group: ConsumerGroup) -> None:
        """Delete a group's subscription, queue, and dead-letter queue unless that is shared."""
        queue = await self.queue_of(group)
        subscription = (await self.subscriptions()).get(queue.arn)
        if subscription is None:
            raise ConfigurationError(f"there is no group {group!a}: its queue is not subscribed")
        await self._sns("unsubscribe", SubscriptionArn=subscription)
        self._subscribed_at = -math.inf
        if queue.dead_arn:
            dead = await self.dead_of(queue)
            answer = await dead.call("list_dead_letter_source_queues")
            if [name_of(url) for url in answer["queueUrls"]] == [queue.name]:
                await dead.call("delete_queue")
                self._known.pop(queue.dead_arn, None)
        await queue.call("delete_queue")
        self._known.pop(self.configured(group), None)

    async def has_audience(self) -> bool:
        """Whether somebody receives what is published: true of a queue, looked up for a topic."""
        if self.topic is None:
            return True
        now = asyncio.get_running_loop().time()
        if now - self._subscribed_at >= FRESH and await self.subscriptions():
            self._subscribed_at = now
        return now - self._subscribed_at < FRESH

    async def check_subscription(self, queue: Queue) -> None:
        """Refuse a queue that is not subscribed with raw message delivery."""
        subscription = (await self.subscriptions()).get(queue.arn)
        if subscription is not None:
            answer = await self._sns("get_subscription_attributes", SubscriptionArn=subscription)
            if answer["Attributes"].get("RawMessageDelivery", "").lower() == "true":
                return
        missing = "has no raw message delivery" if subscription else "does not exist"
        raise ConfigurationError(
            f"the subscription of queue {queue.name} to {self.topic} {missing}; create it with "
            "the attribute RawMessageDelivery=true"
        )


def _room(template: str) -> int:
    """Return how many characters of a queue's name are left to the group."""
    return NAME + len("{group}") - len(name_of(template))


def _in_a_name(group: str, room: int) -> str:
    """Return ``group`` in the letters of a queue's name; different for every group."""
    text = re.sub(
        r"[^A-Za-z0-9-]",
        lambda found: "".join(f"_{byte:02X}" for byte in found.group().encode()),
        group,
    )
    # No escape has two underscores in a row.
    return text if len(text) <= room else f"__{sha256(group.encode()).hexdigest()[: HASHED - 2]}"


def _out_of_a_name(text: str) -> str:
    """Return the group that `_in_a_name` turned into ``text``; "" if it cannot be told."""
    try:
        group = unquote(text.replace("_", "%"), errors="strict")
    except UnicodeDecodeError:
        return ""
    return group if text == _in_a_name(group, NAME) else ""
