"""The oracle: what the contract permits after all that has happened so far.

It predicts nothing. It is told of each event, and fails the one that cannot be. Nothing in it
knows a backend or an event loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from abe.backends.message_queue.base import Capabilities, Message, Outcome
from abe.backends.message_queue.base.dead_letters import PREFIX
from abe.testing.expect import same
from abe.testing.model.entities import THERE, Copy, Hand, Reader, Sent
from abe.types import ConsumerGroup, QueueStats

__all__ = ["Oracle"]

CLOCKS = 0.005
"""Seconds by which the clocks of a broker and of this process may differ over a delay."""
GONE = "gone"
ENDS = {Outcome.ACK: "acked", Outcome.REJECT: "dead"}


class Oracle:
    """Checks every event against the contract.

    Args:
        can: What the backend declares.
    """

    def __init__(self, can: Capabilities) -> None:
        self.can = can
        self.sent: dict[tuple[str, int], Sent] = {}
        self.groups: dict[ConsumerGroup, dict[tuple[str, int], Copy]] = {}
        self.readers: list[Reader] = []
        self.events = 0
        self.torn = False
        """Whether answers of the broker may have been lost."""

    # -- publishing ------------------------------------------------------------------------

    def sending(
        self,
        key: str,
        payload: Mapping[str, Any],
        headers: Mapping[str, str],
        delay: float,
        now: float,
    ) -> Sent:
        """``publish`` is called: from now on the message may be there."""
        self.events += 1
        sent = Sent(key, payload, headers, now + delay, delay > 0, self.events)
        self.sent[key, payload["n"]] = sent
        for name in self.groups:
            self._copy(name, sent)
        return sent

    def accepted(self, sent: Sent) -> None:
        """``publish`` has returned; none that began later has returned before."""
        sent.sure, sent.ended = True, sent.began

    def _copy(self, group: ConsumerGroup, sent: Sent) -> Copy:
        copy = Copy(sent, group, sent.due, sent.due)
        copy.blurred = len(self.readers_of(group)) > 1
        self.groups[group][sent.key, sent.payload["n"]] = copy
        return copy

    # -- readers ---------------------------------------------------------------------------

    def readers_of(self, group: ConsumerGroup) -> list[Reader]:
        """Return the open readers of a group."""
        return [reader for reader in self.readers if reader.group == group]

    def opened(self, reader: Reader) -> None:
        """A reader is open, and its group exists."""
        if reader.group not in self.groups:
            others = [*self.groups.values()]
            self.groups[reader.group] = {}
            for identity, sent in self.sent.items():
                copy = self._copy(reader.group, sent)
                known = [other[identity] for other in others]
                if known and not any(it.required and not it.replayed for it in known):
                    copy.may.add(GONE)
        self.readers.append(reader)
        self._blur(reader.group)

    def _blur(self, group: ConsumerGroup) -> None:
        """With several readers, what one of them gives back comes after what another has."""
        if len(self.readers_of(group)) > 1:
            for copy in self.groups[group].values():
                copy.blurred = True

    def closed(self, reader: Reader, now: float, *, delivered: bool = True) -> None:
        """A reader is closed.

        Args:
            reader: Which.
            now: When, in seconds.
            delivered: Whether the broker has answered for its settlements.
        """
        self.settled(self.recorded_by(reader), now, delivered=delivered)
        self.readers.remove(reader)
        for hand in self.hands_of(reader):
            hand.copy.hands.remove(hand)
            # Its owner can settle it no more: it comes again when its lease has lapsed.
            hand.copy.high += not hand.counted
            hand.copy.blurred = hand.copy.stuck = True
        for copy in self.groups[reader.group].values():
            del copy.behind[reader]
            copy.stuck |= not delivered

    def hands_of(self, reader: Reader) -> list[Hand]:
        """Return what a reader was given and has not settled, or not flushed."""
        copies = self.groups[reader.group].values()
        return [hand for copy in copies for hand in copy.hands if hand.reader is reader]

    # -- deliveries ------------------------------------------------------------------------

    def delivered(self, reader: Reader, message: Message, now: float) -> Hand:
        """A reader was given a message."""
        self.events += 1
        copy = self._known(reader, message)
        sent = copy.sent
        late = copy.behind[reader] > 0
        copy.behind[reader] -= late
        hand = Hand(copy, reader, message, doubt=late)
        front, reader.front = reader.front, None
        if not late:
            self._check(copy, reader, message, now)
            assert front in (None, copy), f"{copy} came to {reader}, which had put back {front}"
        if self.can.attempts == "exact":
            low, high = (1 if late else copy.low + 1), copy.high + 1
            if not low <= message.attempt <= high:
                expected = str(low) if low == high else f"{low} to {high}"
                raise AssertionError(f"{copy}: attempt is {message.attempt}, not {expected}")
        if not late:
            for earlier in copy.hands:
                earlier.superseded = True
            copy.may = {THERE}
        sent.sure = True
        copy.seen = True
        copy.hands.append(hand)
        return hand

    def _known(self, reader: Reader, message: Message) -> Copy:
        """Return the copy of a message, which must be as it was published."""
        identity = (str(message.key), message.get("n", -1))
        copy = self.groups[reader.group].get(identity)
        assert copy is not None, f"{message!r} was never published"
        sent = copy.sent
        same(dict(message), dict(sent.payload), str(sent))
        headers = dict(message.headers)
        assert headers == dict(sent.headers), f"{sent}: headers {headers}, not {sent.headers}"
        assert sent.id in (None, message.id), f"{sent}: ids {sent.id} and {message.id}"
        sent.id = message.id
        assert reader.keys.matches(sent.key), f"{copy} does not match {reader.keys.patterns}"
        return copy

    def _check(self, copy: Copy, reader: Reader, message: Message, now: float) -> None:
        assert THERE in copy.may, f"{copy} came to {reader}, although it was {copy.may}"
        for other in copy.hands:
            assert not other.live, f"{copy} came to {reader}, but {other.reader} holds it"
        early = copy.due - now
        assert early <= CLOCKS, f"{copy} came {early:.3f} s before its delay was over"
        if self.can.ordering == "key":
            self._check_key_order(copy)
        elif self.can.ordering == "consumer" and not copy.seen:
            self._check_order(copy, reader)

    def _check_key_order(self, copy: Copy) -> None:
        for other in self.groups[copy.group].values():
            if other.sent.key == copy.sent.key and other.sent.ended < copy.sent.began:
                assert not other.required, f"{copy} came, but {other} before it is not settled"

    def _check_order(self, copy: Copy, reader: Reader) -> None:
        if copy.blurred or copy.sent.delayed:
            return
        for other in self.groups[copy.group].values():
            if (
                other.required
                and not (other.seen or other.blurred or other.sent.delayed)
                and other.sent.ended < copy.sent.began
                and reader.keys.matches(other.sent.key)
            ):
                raise AssertionError(f"{copy} came before {other}, which was published earlier")

    # -- settlements -----------------------------------------------------------------------

    def unread(self, hand: Hand) -> None:
        """A reader has put a message back to the front of its buffer."""
        if hand.doubt:
            hand.copy.behind[hand.reader] += 1
        hand.reader.front = hand.copy
        hand.copy.hands.remove(hand)

    def recorded(
        self, hand: Hand, outcome: Outcome, *, now: float = 0.0, delay: float = 0.0, why: str = ""
    ) -> None:
        """A settlement is recorded."""
        copy = hand.copy
        hand.outcome, hand.delay = outcome, delay
        if outcome in ENDS:
            if outcome is Outcome.REJECT:
                copy.reasons.add(why)
            copy.may = (copy.may if hand.doubt else set()) | {ENDS[outcome]}
        elif outcome is Outcome.NACK and not hand.counted:
            copy.high += 1
            copy.low += not hand.doubt
            copy.due = 0.0 if hand.doubt else now + delay
        elif outcome is Outcome.RELEASE and hand.counted:
            copy.low -= 1

    def recorded_by(self, reader: Reader) -> list[Hand]:
        """Return what a reader has settled and not flushed."""
        return [hand for hand in self.hands_of(reader) if hand.outcome is not None]

    def settled(self, hands: list[Hand], now: float, *, delivered: bool = True) -> None:
        """The broker has answered for settlements that were recorded, or will not."""
        for hand in hands:
            copy = hand.copy
            copy.hands.remove(hand)
            copy.latest = now + hand.delay
            if not delivered:
                self._doubtful(hand)
            elif hand.message.outcome is Outcome.LOST:
                assert hand.doubt, f"{copy}: {hand.outcome} of {hand.reader} was lost in its lease"
                if THERE in copy.may and not any(h.outcome is hand.outcome for h in copy.hands):
                    copy.may.discard(ENDS.get(hand.outcome or Outcome.LOST, ""))
            elif hand.outcome in ENDS:
                self._ended(hand, ENDS[hand.outcome])

    def _ended(self, hand: Hand, end: str) -> None:
        copy = hand.copy
        if hand.superseded and copy.may != {end}:
            # Of a verdict that was sent twice, a broker knows only that the group is done.
            done = self.torn and THERE not in copy.may
            assert done, f"{copy}: {hand.outcome} counts after its lease"
        else:
            copy.may = {end}

    def _doubtful(self, hand: Hand) -> None:
        """Whether a recorded settlement counts is not known any more."""
        copy = hand.copy
        if hand.doubt:
            return
        hand.doubt = True
        copy.may.add(THERE)
        copy.blurred = True
        if hand.outcome is not Outcome.NACK and not hand.counted:
            copy.high += 1
        copy.due = 0.0

    # -- what happens to all ---------------------------------------------------------------

    def cut(self) -> None:
        """Connections were cut: what was received ahead is given back."""
        self.torn = True
        for reader in self.readers:
            reader.front = None

    def lapsed(self) -> None:
        """Every lease that was held has lapsed."""
        for reader in self.readers:
            reader.front = None
        for group, copies in self.groups.items():
            readers = self.readers_of(group)
            for copy in copies.values():
                copy.stuck = False
                if THERE in copy.may and readers:  # one may have received it ahead
                    copy.behind.update(readers)
                    copy.high += 1
                for hand in copy.hands:
                    if hand.outcome is not None:
                        self._doubtful(hand)
                    elif not hand.counted:
                        copy.low += not hand.doubt
                        hand.doubt = hand.counted = True

    def certain(self, group: ConsumerGroup) -> int:
        """Return how many messages of a group without readers any consumer could take now."""
        copies = self.groups[group].values()
        return sum(it.required and not (it.blurred or it.due or it.sent.delayed) for it in copies)

    def stranded(self, group: ConsumerGroup) -> None:
        """A consumer of a group died and held some messages, nobody knows which."""
        for copy in self.groups[group].values():
            if THERE in copy.may:
                copy.high += 1
                copy.blurred = copy.stuck = True

    def purged(self, group: ConsumerGroup, count: int) -> None:
        """What waited for a group was dropped."""
        copies = self.groups[group].values()
        alone = not self.readers_of(group)
        may = [copy for copy in copies if THERE in copy.may and not any(h.live for h in copy.hands)]
        must = [p for p in may if alone and p.required and not (p.blurred or p.hands)]
        expected = f"{len(must)} to {len(may)}"
        assert len(must) <= count <= len(may), f"purge() returned {count}, not {expected}"
        for copy in may:
            copy.may.add(GONE)
        for copy in must:
            copy.may.remove(THERE)

    def replayed(self, group: ConsumerGroup, count: int) -> None:
        """The dead letters of a group were put back, counted as never delivered."""
        copies = [p for p in self.groups.get(group, {}).values() if "dead" in p.may]
        must = sum(copy.may == {"dead"} for copy in copies)
        expected = f"{must} to {len(copies)}"
        assert must <= count <= len(copies), f"replay() returned {count}, not {expected}"
        for copy in copies:
            if copy.may == {"dead"}:
                copy.may, copy.high = {THERE}, 0
            copy.may.add(THERE)
            copy.low, copy.due = 0, 0.0
            copy.blurred = copy.replayed = True

    # -- looking ---------------------------------------------------------------------------

    def missing(self, group: ConsumerGroup, now: float = float("inf")) -> list[str]:
        """Return what must still come to a group before any lease lapses, and is due ``now``."""
        copies = [copy for copy in self.groups[group].values() if THERE in copy.may]
        away = {copy for copy in copies if self._away(copy, now)}
        held_up = {copy.sent.key for copy in away} if self.can.ordering == "key" else ()
        return [str(it) for it in copies if it not in away and it.sent.key not in held_up]

    def _away(self, copy: Copy, now: float) -> bool:
        held = any(hand.outcome or not hand.counted for hand in copy.hands)
        return held or copy.stuck or copy.latest > now or not copy.required

    def check_stats(self, stats: QueueStats) -> None:
        """Compare the numbers of every key and group, while no settlement is on its way."""
        for group, copies in self.groups.items():
            keys = {copy.sent.key for copy in copies.values()}
            keys |= {entry.key for entry in stats.entries if entry.group == group}
            for key in keys:
                entries = [e for e in stats.entries if (e.group, e.key) == (group, key)]
                own = [copy for copy in copies.values() if copy.sent.key == key]
                waiting = sum(
                    (e.ready or 0) + (e.in_flight or 0) + (e.delayed or 0) for e in entries
                )
                dead = sum(e.dead or 0 for e in entries)
                self._check_number(own, THERE, waiting, f"{key!r} in group {group!r}: waiting")
                self._check_number(own, "dead", dead, f"{key!r} in group {group!r}: dead")

    def _check_number(self, copies: list[Copy], what: str, found: int, text: str) -> None:
        low = sum(copy.sent.sure and copy.may == {what} for copy in copies)
        high = sum(what in copy.may for copy in copies)
        assert low <= found <= high, f"stats() of {text} {found}, not {low} to {high}"

    def check_dead(self, group: ConsumerGroup, dead: list[Message]) -> None:
        """Compare the dead letters of a group and the reasons they name."""
        copies = self.groups.get(group, {})
        found = set()
        for message in dead:
            copy = copies.get((str(message.key), message.get("n", -1)))
            assert copy is not None, f"the dead letter {message!r} was never published"
            assert "dead" in copy.may, f"{copy} is a dead letter, although it is {copy.may}"
            same(dict(message), dict(copy.sent.payload), str(copy.sent))
            reason = message.headers.get(f"{PREFIX}reason")
            assert reason in copy.reasons, f"{copy} has reason {reason!r}, not {copy.reasons}"
            found.add(copy)
        for copy in copies.values():
            if copy.may == {"dead"}:
                assert copy in found, f"{copy} was rejected and is not among the dead letters"
