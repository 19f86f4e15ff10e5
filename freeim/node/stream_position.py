"""How far a node has come in its stream; no I/O.

A message in the stream has an *id* of Redis, milliseconds and a sequence number, which only grows; and a running
*number*, one more than the last one's, which tells how many are missing. The id decides what is new: the clock is in
it, so that it goes on growing where Redis has lost its data and the numbers begin again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple, Self

from freeim.envelope import STREAM_HEAD

_HEAD: Final = STREAM_HEAD.encode()
_HEARD: Final = re.compile(rb"%b([0-9]{1,20})-([0-9]{1,20}) ([0-9]{1,19}) " % re.escape(_HEAD))
_ID: Final = re.compile(rb"([0-9]{1,20})-([0-9]{1,20})")
_POSITION: Final = re.compile(rb"([0-9]{1,20})-([0-9]{1,20}) ([0-9]{1,19})")

_LARGEST: Final = 2**64 - 1

StreamId = tuple[int, int]
"""Milliseconds since 1970 by the clock of Redis, and a number among those of the same millisecond."""


class Entry(NamedTuple):
    """A message of the stream, and its payload, None where the entry holds none."""

    id: StreamId
    number: int
    payload: bytes | None


def split_heard(payload: bytes) -> Entry | None:
    """Take apart what was published behind `STREAM_HEAD`; None where it is of no such form."""
    found = _HEARD.match(payload)
    place = None if found is None else _id(found)
    if found is None or place is None:
        return None
    return Entry(place, int(found[3]), payload[found.end() :])


def read_id(text: bytes) -> StreamId | None:
    """Read an id of a stream; None where it is none."""
    found = _ID.fullmatch(text)
    return None if found is None else _id(found)


def _id(found: re.Match[bytes]) -> StreamId | None:
    place = int(found[1]), int(found[2])
    return place if max(place) <= _LARGEST else None  # Redis would refuse to read from there


def read_entry(entry: list[object]) -> Entry | None:
    """Read an entry of XRANGE; None where its id is none.

    One that no helper or node has written has the number 0, and no payload.
    """
    at, fields = entry
    place = read_id(at) if isinstance(at, bytes) else None
    if place is None:
        return None
    match fields:
        case [b"n", bytes(number), b"m", bytes(payload)] if number.isdigit() and len(number) < 20:
            return Entry(place, int(number), payload)
    return Entry(place, 0, None)


class Outcome(Enum):
    """What to do with a message that was just heard."""

    NEXT = "it is the next one"
    OLD = "it was handled already"
    GAP = "something is missing before it, or the stream is not the one that was known: read the stream"


@dataclass(slots=True)
class Position:
    """The last message that a node has handled.

    Attributes:
        id: Its id; (0, 0) before the first one.
        number: Its running number.
        lost: How many messages had been trimmed before this node read them.
    """

    id: StreamId = (0, 0)
    number: int = 0
    lost: int = 0

    @property
    def id_text(self) -> str:
        """The id, as Redis writes it."""
        return f"{self.id[0]}-{self.id[1]}"

    @classmethod
    def read(cls, raw: bytes | None) -> Self:
        """Read what lua/position.lua wrote; the beginning where nothing is there, or nothing that makes sense."""
        found = _POSITION.fullmatch(raw or b"")
        place = None if found is None else _id(found)
        return cls() if found is None or place is None else cls(place, int(found[3]))

    def hear(self, entry: Entry) -> Outcome:
        """Judge a message that was just heard, and move on to it where it is the next one."""
        if entry.id > self.id and entry.number == self.number + 1:
            self.id, self.number = entry.id, entry.number
            return Outcome.NEXT
        if entry.id <= self.id and entry.number <= self.number:
            return Outcome.OLD
        return Outcome.GAP

    def read_next(self, entry: Entry) -> bool:
        """Move on to an entry that was read from the stream, counting what is missing before it.

        Returns:
            Whether it is a new one.
        """
        if entry.id <= self.id:
            return False
        if entry.number:
            # A number that is not greater: Redis has lost its data, or the last of them, and has begun again.
            if entry.number > self.number:
                self.lost += entry.number - self.number - 1
            self.number = entry.number
        self.id = entry.id
        return True

    def is_at(self, entry: Entry | None) -> bool:
        """Whether this is the last message handled. An id alone may come again in a stream that was dropped."""
        return entry is not None and (entry.id, entry.number) == (self.id, self.number)

    def restart(self) -> None:
        """The stream was dropped as a whole: all that is in it is new."""
        self.id, self.number = (0, 0), 0

    def meet(self, newest: StreamId | None) -> bool:
        """Compare with the newest message in Redis; go back to it where Redis has lost its data, or the last of them.

        Otherwise what is published from then on, by a clock that may be behind, would be taken for old.

        Returns:
            Whether it went back.
        """
        newest = newest or (0, 0)
        if newest >= self.id:
            return False
        self.id = newest
        if newest == (0, 0):
            self.number = 0  # Redis is empty, and numbers begin at 1 again
        return True
