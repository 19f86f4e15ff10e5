"""One of several processes handles the events: a lease with a fence, and what followers keep; no I/O.

All members of a group are subscribed, so all see the same events in the same order. The leader publishes a *mark* with
each beat, which is at the same place in that order for everybody, and says in it how far it has handled events: so many
behind such a mark. The others keep what came since, and whoever takes over goes on from there.
"""

from __future__ import annotations

import json
import logging
import random
import secrets
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from freeim.commands import Command
from freeim.names import Names
from freeim.scripts import load_script

logger: Final = logging.getLogger("freeim")

LEASE_SECONDS: Final = 6.0
"""How long the lease of a leader that is not heard any more lasts; Redis counts."""
BEAT_SECONDS: Final = 1.0
"""How often the leader renews its lease and the others try to take it."""
MARGIN_SECONDS: Final = 0.5
"""How long before the end of its lease a leader stops to rely on it: both clocks count seconds, not quite the same."""
KEPT_EVENTS: Final = 100_000
"""How many events and marks a member keeps that nobody is known to have handled; beyond that, the oldest are lost."""

RawEvent = tuple[bytes, bytes]
"""A channel, and what was published on it."""
MarkId = tuple[int, int]
"""The fence of the leader that published a mark, and the mark's number."""

_GREATEST_NUMBER: Final = 10**12
"""Of a fence, a mark, a count: more than there will ever be, and few enough digits for Lua's numbers."""


def beat_pause() -> float:
    """Return how long to wait between two turns, in seconds; jittered, so that members do not go in step."""
    return BEAT_SECONDS * random.uniform(0.8, 1.0)


def check_group(group: object) -> str:
    """Return the name of a group.

    Raises:
        TypeError: It is no str.
        ValueError: It is empty, or UTF-8 cannot carry it.
    """
    if not isinstance(group, str):
        raise TypeError(f"group must be a str or None, not {type(group).__name__} ({group!r:.80})")
    if not group:
        raise ValueError("group must not be empty; leave it out for a bus that handles every event")
    try:
        group.encode()
    except UnicodeEncodeError:
        raise ValueError(f"group {group!r} holds a lone surrogate, which UTF-8 cannot carry") from None
    return group


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the order of events: so many behind a mark."""

    mark: MarkId
    events: int

    def json(self) -> str:
        return f"[{self.mark[0]},{self.mark[1]},{self.events}]"


@dataclass(frozen=True, slots=True)
class Mark:
    """What a leader publishes.

    Attributes:
        id: Which mark it is.
        handled: How far its leader had handled events; None while that cannot be said.
        released: Whether the leader has given its lease back.
    """

    id: MarkId
    handled: Place | None
    released: bool


def decode_mark(payload: bytes) -> Mark:
    """Read a mark.

    Raises:
        ValueError: It is none.
    """
    try:
        document: Any = json.loads(payload)
        numbers = [document["fence"], document["mark"]]
        handled = document["handled"]
        if handled is not None:
            fence, mark, events = handled
            numbers += (fence, mark, events)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{error!r}") from None
    if not all(type(number) is int and 0 <= number <= _GREATEST_NUMBER for number in numbers):
        raise ValueError("a number is none, or out of range")
    place = None if handled is None else Place((fence, mark), events)
    return Mark((numbers[0], numbers[1]), place, document.get("released") is True)


class Backlog:
    """The events that nobody is known to have handled, and the marks between them, in order.

    Attributes:
        place: Where it begins; None where that is not known.
        missed: Whether events may be missing that nobody has handled.
    """

    def __init__(self) -> None:
        self.place: Place | None = None
        self.missed = True
        self._items: deque[RawEvent | Mark] = deque()
        self._current: RawEvent | None = None

    def __len__(self) -> int:
        return len(self._items)

    def clear(self) -> None:
        """Begin again after a time in which nothing was heard."""
        self._items.clear()
        self.place = None
        self.missed = True

    def add(self, item: RawEvent | Mark) -> None:
        """Append what came next; when there is too much, the oldest is lost."""
        if len(self._items) >= KEPT_EVENTS:
            self._items.popleft()
            self.place = None
            self.missed = True
        self._items.append(item)

    def forget(self, handled: Place) -> None:
        """Drop what another member has handled."""
        if self.place is None or self.place.mark != handled.mark:
            if not any(isinstance(item, Mark) and item.id == handled.mark for item in self._items):
                return  # older than all that was kept, so that nothing is known about what is
            while True:
                item = self._items.popleft()
                if isinstance(item, Mark) and item.id == handled.mark:
                    break
            self.place = Place(handled.mark, 0)
        self.missed = False
        while self.place.events < handled.events and self._items and not isinstance(self._items[0], Mark):
            self._items.popleft()
            self.place = Place(handled.mark, self.place.events + 1)

    def next(self) -> RawEvent | None:
        """Return the next event to be handled, which stays here until it is `done`."""
        while self._items and isinstance(mark := self._items[0], Mark):
            self._items.popleft()
            self.place = Place(mark.id, 0)
        self._current = self._items[0] if self._items else None  # type: ignore[assignment]
        return self._current

    def done(self) -> None:
        """Drop the event of the last `next`, unless it was dropped meanwhile."""
        if self._current is not None and self._items and self._items[0] is self._current:
            self._items.popleft()
            if self.place is not None:
                self.place = Place(self.place.mark, self.place.events + 1)
        self._current = None


@dataclass(frozen=True, slots=True)
class Turn:
    """A command that a member must run, and when it was made."""

    command: Command
    at: float
    leaves: bool


class GroupMember:
    """Decides what a member says to Redis, and which events it handles. Times are those of `boot_time`.

    Args:
        names: The names of this deployment.
        group: The group's name.
    """

    def __init__(self, names: Names, group: str) -> None:
        self.group = check_group(group)
        self.channel = names.group(group)
        self.fence = 0  # that it leads with; 0 for a follower
        self._channel = self.channel.encode()
        self._keys = (self.channel, names.fences)
        self._id = secrets.token_hex(16)
        self._beat, self._leave = load_script("group_beat").text, load_script("group_leave").text
        self._backlog = Backlog()
        self._listening = False
        self._certain_until = 0.0
        self._mark = 0
        self._seen = 0  # the highest fence, in marks and in replies
        self._heard = 0  # the fence of the last mark
        self._free = False
        self._resyncing = False
        self._last_words: Command | None = None
        self._garbage_seen = False

    # -- the subscription ---------------------------------------------------------------------------------------

    def subscribed(self) -> None:
        """Note that from now on all is heard."""
        self._backlog.clear()
        self._free = False
        self._listening = True

    def unsubscribed(self) -> None:
        """Note that nothing is heard any more: the lease is to be given back."""
        self._listening = False
        if self.fence:
            self._mark += 1
            numbers = (self.fence, self._mark, self._handled())
            self._last_words = ("EVAL", self._leave, 1, self.channel, self._id, *numbers)
            self.fence = 0

    def heard(self, channel: bytes, payload: bytes) -> bool:
        """Take in what was published; return whether to take a turn at once, because the lease is free."""
        if channel == self._channel:
            return self._heard_mark(payload)
        self._backlog.add((channel, payload))
        return False

    def _heard_mark(self, payload: bytes) -> bool:
        try:
            mark = decode_mark(payload)
        except ValueError as error:
            if not self._garbage_seen:
                self._garbage_seen = True
                logger.warning("skipped a mark of event group %r that is none: %.200r (%s)", self.group, payload, error)
            return False
        self._backlog.add(mark)
        fence = self._heard = mark.id[0]
        self._seen = max(self._seen, fence)
        if self.fence == fence:
            return False
        if mark.handled is not None:
            self._backlog.forget(mark.handled)
        return mark.released

    # -- the lease ----------------------------------------------------------------------------------------------

    def turn(self, now: float) -> Turn | None:
        """Return what to say to Redis; None while there is nothing to say."""
        if self._last_words is not None:
            command, self._last_words = self._last_words, None
            return Turn(command, now, True)
        if not self._listening:
            return None
        # One that has missed events leaves a free lease for a moment to those that have not.
        eager = self._free or not self._backlog.missed
        self._mark += 1  # also where the answer is lost: no mark may stand in two places
        arguments = (
            *(self.group, self._id, int(LEASE_SECONDS * 1000), self.fence, self._seen),
            *(int(eager), self._mark, self._handled()),
        )
        return Turn(("EVAL", self._beat, len(self._keys), *self._keys, *arguments), now, False)

    def answered(self, turn: Turn, reply: Any) -> None:
        """Take in the answer to a turn."""
        if turn.leaves:
            return
        state, fence = reply[0], int(reply[1])
        self._free = state == b"FREE"
        self._seen = max(self._seen, fence)
        if state != b"LEADS":
            if self.fence:
                logger.warning("another process handles the events of group %r now, as this one did", self.group)
            self.fence = 0
            return
        self._certain_until = turn.at + LEASE_SECONDS - MARGIN_SECONDS
        if fence == self.fence:
            return
        self.fence = fence
        logger.info("this process handles the events of group %r now (fence %d)", self.group, fence)
        if not self._listening:
            self.unsubscribed()

    def leads(self, now: float) -> bool:
        """Tell whether this member certainly has the lease, and has heard all that its predecessor said."""
        # The last mark is its own: it has heard that it leads, and of nobody after it.
        return self.fence != 0 and self._heard == self.fence and now < self._certain_until

    def _handled(self) -> str:
        backlog = self._backlog
        if backlog.place is None or backlog.missed or self._resyncing:
            return "null"
        return backlog.place.json()

    # -- the leader ---------------------------------------------------------------------------------------------

    def take_gap(self, now: float) -> bool:
        """Tell whether events may have been missed that this member ought to handle; `resynced` ends it."""
        # Not while too much waits: more would be lost in the next moment.
        if not self._backlog.missed or not self.leads(now) or len(self._backlog) > KEPT_EVENTS // 2:
            return False
        self._backlog.missed = False
        self._resyncing = True
        return True

    def resynced(self) -> None:
        """Note that the app has read again who is online."""
        self._resyncing = False

    def next(self, now: float) -> RawEvent | None:
        """Return the next event that this member must handle, if any; `done` says when it was."""
        return self._backlog.next() if self.leads(now) and not self._resyncing else None

    def done(self) -> None:
        """Note that the event was handled."""
        self._backlog.done()
