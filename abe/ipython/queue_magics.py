"""The magics that consume, inspect and clean up a queue."""

from __future__ import annotations

from typing import Any

from abe.backends.message_queue.base.keys import KeyFilter
from abe.display.results import Count
from abe.display.text import cell, group_name, plural
from abe.errors import AbeError
from abe.ipython.grammar import GROUP, NUMBER, OUT, Option, Syntax, one_of, seconds
from abe.ipython.session import Call, Settings, magic, say

__all__ = ["ACTIONS", "QueueMagics"]

ACTIONS = ("list", "replay")
MAX_DEAD = 100
"""Dead letters that are listed without ``-n``."""


class QueueMagics(Settings):
    """Consume, inspect and clean up."""

    @magic(
        Syntax(
            "%abe_consume",
            "[KEYS…] [-g GROUP] [-n 10] [-t 5] [-q 0.5] [-o NAME]",
            (
                *(GROUP, NUMBER),
                Option("--timeout", "-t", "S", seconds),
                Option("--quiet", "-q", "S", seconds),
                OUT,
            ),
            completes="keys",
        )
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

        Options:
          -g, --group GROUP  the consumer group (without it: the default group)
          -n, --number N     take at most N messages (10)
          -t, --timeout S    wait at most S seconds in total (5)
          -q, --quiet S      end after S seconds without a further message, once one has come (0.5)
          -o, --out NAME     also store the result in the variable NAME

        Returns:
          the Messages: a list of dicts with .key, .id, .headers …, shown as a table; .payloads are
          the bare dicts
        """
        options, group = call.options, call.group
        timeout = self.timeout if options["timeout"] is None else options["timeout"]
        backend = self.session.backend()
        taken = backend.take(
            options["number"] or self.limit,
            timeout=timeout,
            quiet=self.quiet if options["quiet"] is None else options["quiet"],
            keys=call.words or None,
            group=group,
        )
        self.session.note((message.key for message in taken), [group])
        nothing = "" if taken else f": nothing arrived within {timeout:g} s"
        say(f"acked {plural(len(taken), 'message')} {taken.caption}{nothing}")
        return call.result(taken)

    @magic(
        Syntax(
            "%abe_peek",
            "[KEYS…] [-g GROUP] [-n 10] [-o NAME]",
            (GROUP, NUMBER, OUT),
            completes="keys",
        )
    )
    def abe_peek(self, call: Call) -> Any:
        """Show messages that wait for a group, without taking them.

        ::

            %abe_peek
            %abe_peek orders.* -n 100
            waiting = %abe_peek payments -g billing

        Nothing changes: the messages still wait, and no attempt is counted. The result is the
        messages that the group could take now, oldest first, without those in flight or delayed.

        Options:
          -g, --group GROUP  the consumer group (without it: the default group)
          -n, --number N     show at most N messages (10)
          -o, --out NAME     also store the result in the variable NAME

        Returns:
          the Messages: a list of dicts with .key, .id, .headers …, shown as a table; they cannot
          be acknowledged
        """
        group, backend = call.group, self.session.backend()
        limit = call.options["number"] or self.limit
        found = backend.peek(call.words or None, group=group, limit=limit)
        self.session.note(keys=(m.key for m in found), groups=[group])
        return call.result(found)

    @magic(Syntax("%abe_stats", "[KEYS…] [-g GROUP] [-o NAME]", (GROUP, OUT), completes="keys"))
    def abe_stats(self, call: Call) -> Any:
        """Show how many messages wait, by key and group.

        ::

            %abe_stats
            %abe_stats orders.** -g billing
            backlog = %abe_stats

        The columns: ready (can be taken now), in flight (taken and not settled), delayed (not due
        yet), dead (given up, see %abe_dead) and the age of the oldest waiting message. A ? marks a
        number that the broker does not know.

        Options:
          -g, --group GROUP  only this group (without it: all; -g "" is the default group)
          -o, --out NAME     also store the result in the variable NAME

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
            "[list|replay] [-g GROUP] [-n N] [--id ID]… [-o NAME]",
            (GROUP, NUMBER, Option("--id", "", "ID", repeat=True), OUT),
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

        Options:
          -g, --group GROUP  the consumer group (without it: the default group)
          -n, --number N     at most N, oldest first (list: 100, replay: all)
          --id ID            replay the message with this id; repeatable
          -o, --out NAME     also store the result in the variable NAME

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

    @magic(
        Syntax(
            "%abe_purge",
            "[KEYS…] [-g GROUP] --yes [-o NAME]",
            (GROUP, Option("--yes"), OUT),
            completes="keys",
        )
    )
    def abe_purge(self, call: Call) -> Any:
        """Delete the waiting messages of a group permanently.

        ::

            %abe_purge --yes
            %abe_purge orders.* -g billing --yes

        Messages in flight, dead letters and other groups are not touched. Without --yes nothing
        is deleted; the error says how many messages would be.

        Options:
          -g, --group GROUP  the consumer group (without it: the default group)
          --yes              confirm the deletion
          -o, --out NAME     also store the result in the variable NAME

        Returns:
          the number of deleted messages
        """
        wanted, group = KeyFilter(call.words or None), call.group
        backend = self.session.backend()
        where = f"waiting for {group_name(group)} on {cell(backend.name)}"
        if not call.options["yes"]:
            raise call.syntax.error(
                f"this deletes {self._purged(wanted, group)} {where};"
                " repeat it with --yes to delete them"
            )
        self.session.note(groups=[group])
        count = backend.purge(call.words or None, group=group)
        return call.result(Count(count, f"purged {plural(count, 'message')} {where}"))

    def _purged(self, wanted: KeyFilter, group: str | None) -> str:
        """Return how many messages a purge would delete, where the backend can tell."""
        try:
            found = [
                number
                for entry in self.session.backend().stats().entries
                if entry.group == group and wanted.matches(entry.key)
                for number in (entry.ready, entry.delayed)
            ]
        except AbeError:
            found = [None]
        counts = [number for number in found if number is not None]
        known = len(counts) == len(found)
        return plural(sum(counts), "message") if known else "the messages"
