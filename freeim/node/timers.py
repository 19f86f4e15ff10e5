"""Time limits without a timer per connection."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from math import inf
from typing import Final, Generic, TypeVar

T = TypeVar("T", bound=Hashable)

EXPIRED_PER_TURN: Final = 32
"""Things that are ended before the loop does anything else: thousands may have begun to close together."""

TURN: Final = 0.1
"""Seconds between two turns of a wheel: so short that a storm of connections is not pinged in one go."""
MIN_TURNS: Final = 25
"""Turns in which a wheel goes round, at least: with a short interval, too, time-outs are to be kept fairly well."""
MAX_TURNS: Final = 1000
"""The same at most: with a long interval a turn costs more than it spreads."""


class Deadlines(Generic[T]):
    """Things that have the same time to finish. Since the time is the same for all, the oldest ends first.

    Args:
        delay: Seconds that each has.
        on_expired: Called with each whose time is over.
        call_soon: The loop's ``call_soon``.
    """

    def __init__(
        self, delay: float, on_expired: Callable[[T], None], call_soon: Callable[[Callable[[], None]], object]
    ) -> None:
        self._delay = delay
        self._on_expired = on_expired
        self._call_soon = call_soon
        self._now = -inf
        self._expiring = False
        # Not a dict: finding the first of a dict whose oldest entries were deleted walks over the holes.
        self._due: OrderedDict[T, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, thing: T) -> bool:
        return thing in self._due

    def first(self) -> T:
        """Return what ends first; there must be something."""
        return next(iter(self._due))

    def things(self) -> Iterable[T]:
        """Return everything that has not finished."""
        return list(self._due)

    def start(self, thing: T, now: float) -> None:
        """Give a thing its time, from now on; one that already has a deadline keeps it."""
        self._due.setdefault(thing, now + self._delay)

    def set_delay(self, delay: float) -> None:
        """Change the time that each has, for those that have begun too."""
        later = delay - self._delay
        self._delay = delay
        for thing, due in list(self._due.items()):
            self._due[thing] = due + later  # the same for all: the oldest still ends first

    def finish(self, thing: T) -> None:
        """The thing has finished; also fine for one that never started."""
        self._due.pop(thing, None)

    def expire(self, now: float) -> None:
        """Call back for those whose time is over, the oldest first: for `EXPIRED_PER_TURN` now, and then for others."""
        self._now = now
        if not self._expiring:
            self._expire_some()

    def _expire_some(self) -> None:
        self._expiring = False
        for _ in range(EXPIRED_PER_TURN):
            if not self._due:
                return
            thing, due = next(iter(self._due.items()))
            if due > self._now:
                return
            del self._due[thing]
            self._on_expired(thing)
        self._expiring = True
        self._call_soon(self._expire_some)


class PingWheel(Generic[T]):
    """Says when to ping whom: everybody once per interval, spread over the interval by the time they came.

    Args:
        interval: Seconds between two pings of one connection.
        timeout: Seconds to answer, at most the interval.
        on_ping: Called with each that is due for a ping.
        on_check: Called with each that was pinged `timeout` ago.
    """

    def __init__(
        self, interval: float, timeout: float, on_ping: Callable[[T], None], on_check: Callable[[T], None]
    ) -> None:
        self._on_ping = on_ping
        self._on_check = on_check
        self._begin(interval, timeout)

    def _begin(self, interval: float, timeout: float) -> None:
        self._turns = turns = min(max(round(interval / TURN), MIN_TURNS), MAX_TURNS)
        self.turn_seconds = interval / turns
        # Rounded up: nobody is cut before its time is over.
        self._check_after = min(turns, -int(-timeout // self.turn_seconds))
        self._slots: list[dict[T, None]] = [{} for _ in range(turns)]
        self._now = 0

    def set_times(self, interval: float, timeout: float) -> Iterator[tuple[T, int]]:
        """Change both times; yields each thing with its new slot, which `remove` wants back.

        Of the interval the same share has passed for each as before, so that they stay spread over it. Checks of pings
        that are under way may come too early: what is awaited is to be forgotten.
        """
        slots, now, turns = self._slots, self._now, self._turns
        self._begin(interval, timeout)
        for passed in range(turns):
            slot = -(passed * self._turns // turns) % self._turns
            for thing in slots[now - passed]:
                self._slots[slot][thing] = None
                yield thing, slot

    def add(self, thing: T) -> int:
        """Enter a thing; returns the slot, which `remove` wants back."""
        # The slot that has just been turned: a full interval until the first ping.
        self._slots[self._now][thing] = None
        return self._now

    def remove(self, thing: T, slot: int) -> None:
        """Take a thing out; also fine for one that is out already."""
        self._slots[slot].pop(thing, None)

    def turn(self) -> None:
        """Move on by one slot; to be called every `turn_seconds`."""
        self._now = (self._now + 1) % self._turns
        # Checks come first: with timeout = interval the same slot is checked and pinged in one turn.
        for thing in list(self._slots[self._now - self._check_after]):
            self._on_check(thing)
        for thing in list(self._slots[self._now]):
            self._on_ping(thing)
