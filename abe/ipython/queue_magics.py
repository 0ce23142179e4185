"""The magics that look at a queue and clean it up; their docstrings are what ``?`` shows."""

from __future__ import annotations

from typing import Any

from IPython.core.magic import line_magic, magics_class, needs_local_scope, no_var_expand

from abe.ipython.cleaning import dead, purge
from abe.ipython.errors import short_errors
from abe.ipython.looking import peek, stats
from abe.ipython.session import Call, Namespace, Session
from abe.ipython.settings import Settings

__all__ = ["QueueMagics"]


@magics_class
class QueueMagics(Settings):
    """Look at what waits, and clean up."""

    session: Session

    @line_magic
    @no_var_expand
    @needs_local_scope
    @short_errors
    def abe_peek(self, line: str, local_ns: Namespace = None) -> Any:
        """Look at messages that wait for a group, without taking them.

        ::

            %abe_peek
            %abe_peek orders.* -n 100
            waiting = %abe_peek payments -g billing

        Nothing changes: the messages still wait, and this counts as no attempt. Shown is what the
        group could take now, oldest first; messages in flight or delayed are not.

        Options:
          -g, --group GROUP  the consumer group (without it: the default group)
          -n, --number N     look at N messages at most (10)
          -o, --out NAME     also store the result in the variable NAME

        Returns:
          the Messages: a list of dicts with .key, .id, .headers …, shown as a table; they cannot
          be acknowledged
        """
        return peek(Call(self.session, "%abe_peek", line, local_ns))

    @line_magic
    @no_var_expand
    @needs_local_scope
    @short_errors
    def abe_stats(self, line: str, local_ns: Namespace = None) -> Any:
        """Show how many messages wait, by key and group.

        ::

            %abe_stats
            %abe_stats orders.** -g billing
            backlog = %abe_stats

        The columns: ready (could be taken now), in flight (taken and not settled), delayed (their
        time has not come), dead (given up, see %abe_dead) and the age of the oldest message that
        waits. A ? stands where the broker cannot say.

        Options:
          -g, --group GROUP  only this group (without it: all; -g "" is the default group)
          -o, --out NAME     also store the result in the variable NAME

        Returns:
          the Backlog: a list with .key, .group, .ready, .in_flight, .delayed, .dead, .oldest_age,
          shown as a table with a plot
        """
        return stats(Call(self.session, "%abe_stats", line, local_ns))

    @line_magic
    @no_var_expand
    @needs_local_scope
    @short_errors
    def abe_dead(self, line: str, local_ns: Namespace = None) -> Any:
        """Show the dead letters of a group, or put them back.

        ::

            %abe_dead
            %abe_dead list -g billing -n 20
            %abe_dead replay -g billing
            %abe_dead replay --id 0198c2 --id 0198c3

        A dead letter is a message that was given up: rejected, or failed too often. Each group has
        its own. list, which is what happens without a word, shows them with the reason and takes
        none. replay delivers them to the same group again, and no other, as if for the first time.

        Options:
          -g, --group GROUP  the consumer group (without it: the default group)
          -n, --number N     at most N, oldest first (list: 100, replay: all)
          --id ID            replay the message with this id; repeatable
          -o, --out NAME     also store the result in the variable NAME

        Returns:
          list: the DeadLetters, a list of dicts with .key, .id, .headers …, shown as a table;
          replay: how many were put back
        """
        return dead(Call(self.session, "%abe_dead", line, local_ns))

    @line_magic
    @no_var_expand
    @needs_local_scope
    @short_errors
    def abe_purge(self, line: str, local_ns: Namespace = None) -> Any:
        """Drop the messages that wait for a group, for good.

        ::

            %abe_purge --yes
            %abe_purge orders.* -g billing --yes

        Messages in flight, dead letters and other groups are not touched. Without --yes nothing
        is dropped; you are told how many messages it would be.

        Options:
          -g, --group GROUP  the consumer group (without it: the default group)
          --yes              you mean it
          -o, --out NAME     also store the result in the variable NAME

        Returns:
          the number of messages dropped
        """
        return purge(Call(self.session, "%abe_purge", line, local_ns))
