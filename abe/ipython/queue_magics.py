"""The magics that consume, inspect and clean up a queue."""

from __future__ import annotations

from typing import Any

from abe.backends.message_queue.base.keys import KeyFilter
from abe.display.options import (
    DEAD_NUMBER,
    GROUP,
    ID,
    NUMBER,
    QUIET,
    SOME_GROUP,
    YES,
    Option,
    seconds,
)
from abe.display.results import Count
from abe.display.text import cell, group_name, plural
from abe.errors import AbeError
from abe.ipython.grammar import OUT, Syntax, one_of
from abe.ipython.session import Call, Settings, magic, say

ACTIONS = ("list", "replay")
TIMEOUT = Option("--timeout", "-t", "S", "Seconds to wait in total.", seconds, "5")
MAX_DEAD = 100
"""Dead letters that are listed without ``-n``."""


class QueueMagics(Settings):
    """Consume, inspect and clean up."""

    @magic(
        Syntax("%abe_consume", "[KEYS…]", (GROUP, NUMBER, TIMEOUT, QUIET, OUT), completes="keys")
    )
    def abe_consume(self, call: Call) -> Any:
        """Take messages, acknowledge them and return them.

        ::

            %abe_consume
            %abe_consume orders.* -n 100 -t 2
            %abe_consume orders.eu.** payments -g billing -o messages
            messages = %abe_consume orders.*

        Returned messages are acknowledged: they are not redelivered to this group. Each group gets
        every message published after its first use, and those still retained then. Without KEYS
        every key is taken; * matches one segment of a key and a final ** one or more.

        Returns:
          the Messages: a list of dicts with .key, .id, .headers …, shown as a table; .payloads are
          the bare dicts
        """
        group, timeout, quiet = call.group, call.options["timeout"], call.options["quiet"]
        timeout = self.timeout if timeout is None else timeout
        taken = self.session.backend().take(
            call.options["number"] or self.limit,
            timeout=timeout,
            quiet=self.quiet if quiet is None else quiet,
            keys=call.words or None,
            group=group,
        )
        self.session.note((message.key for message in taken), [group])
        nothing = "" if taken else f": nothing arrived within {timeout:g} s"
        say(f"acked {plural(len(taken), 'message')} {taken.caption}{nothing}")
        return call.result(taken)

    @magic(Syntax("%abe_peek", "[KEYS…]", (GROUP, NUMBER, OUT), completes="keys"))
    def abe_peek(self, call: Call) -> Any:
        """Show messages that wait for a group, without taking them.

        ::

            %abe_peek
            %abe_peek orders.* -n 100
            waiting = %abe_peek payments -g billing

        Nothing changes: the messages still wait, and no attempt is counted. The result is the
        messages that the group could take now, oldest first, without those in flight or delayed.

        Returns:
          the Messages: a list of dicts with .key, .id, .headers …, shown as a table; they cannot
          be acknowledged
        """
        group, backend = call.group, self.session.backend()
        limit = call.options["number"] or self.limit
        found = backend.peek(call.words or None, group=group, limit=limit)
        self.session.note(keys=(m.key for m in found), groups=[group])
        return call.result(found)

    @magic(Syntax("%abe_stats", "[KEYS…]", (SOME_GROUP, OUT), completes="keys"))
    def abe_stats(self, call: Call) -> Any:
        """Show how many messages wait, by key and group.

        ::

            %abe_stats
            %abe_stats orders.** -g billing
            backlog = %abe_stats

        The columns: ready (can be taken now), in flight (taken and not settled), delayed (not due
        yet), dead (given up, see %abe_dead) and the age of the oldest waiting message. A ? marks a
        number that the broker does not know.

        Returns:
          the Backlog: a list with .key, .group, .ready, .in_flight, .delayed, .dead, .oldest_age,
          shown as a table with a plot
        """
        group = call.options["group"]
        backend = self.session.backend()
        found = backend.stats()
        self.session.note((e.key for e in found), (e.group for e in found))
        groups = None if group is None else [group or None]
        return call.result(found.select(call.words or None, groups))

    @magic(
        Syntax(
            "%abe_dead",
            "[list|replay]",
            (GROUP, DEAD_NUMBER, ID, OUT),
            completes="action",
            max_words=1,
        )
    )
    def abe_dead(self, call: Call) -> Any:
        """List the dead letters of a group, or replay them.

        ::

            %abe_dead
            %abe_dead list -g billing -n 20
            %abe_dead replay -g billing
            %abe_dead replay --id 0198c2 --id 0198c3

        A dead letter is a message that was given up: rejected, or failed too often. Each group has
        its own. list, the default, shows them with the reason and takes none. replay delivers them
        to the same group only, as if for the first time.

        Returns:
          list: the DeadLetters, a list of dicts with .key, .id, .headers …, shown as a table;
          replay: the number of replayed messages
        """
        number, ids = call.options["number"], call.options["id"]
        try:
            action = one_of(*ACTIONS)(call.words[0] if call.words else "list")
        except ValueError as error:
            raise call.syntax.error(f"the action {error}") from None
        if action == "list" and ids:
            raise call.syntax.error("--id selects messages to replay; it does not go with list")
        group, backend = call.group, self.session.backend()
        self.session.note(groups=[group])
        if action == "list":
            return call.result(backend.dead_letters(group=group, limit=number or MAX_DEAD))
        where = f"of {group_name(group)} on {cell(backend.name)}"
        count = backend.replay(group=group, ids=ids or None, limit=number)
        return call.result(Count(count, f"replayed {plural(count, 'dead letter')} {where}"))

    @magic(Syntax("%abe_purge", "[KEYS…]", (GROUP, YES, OUT), completes="keys"))
    def abe_purge(self, call: Call) -> Any:
        """Delete the waiting messages of a group permanently.

        ::

            %abe_purge --yes
            %abe_purge orders.* -g billing --yes

        Messages in flight, dead letters and other groups are not touched. Without --yes nothing
        is deleted; the error says how many messages would be.

        Returns:
          the number of deleted messages
        """
        keys, group = call.words or None, call.group
        KeyFilter(keys)
        backend = self.session.backend()
        where = f"waiting for {group_name(group)} on {cell(backend.name)}"
        if not call.options["yes"]:
            found = self._waiting(keys, group) or "the messages"
            raise call.syntax.error(f"this deletes {found} {where}; repeat it with --yes")
        self.session.note(groups=[group])
        count = backend.purge(keys, group=group)
        return call.result(Count(count, f"purged {plural(count, 'message')} {where}"))

    def _waiting(self, keys: list[str] | None, group: str | None) -> str:
        """Return how many messages wait, where the backend can tell."""
        try:
            found = self.session.backend().stats().select(keys, [group])
            numbers = [number for it in found for number in (it.ready, it.delayed)]
            return plural(sum(filter(None, numbers)), "message") if None not in numbers else ""
        except AbeError:
            return ""
