"""Resume: connections that are lost stay counted for a while, and whoever comes back gets what was missed.

A connection can be resumed where its request asked for it (``?resume=``) and the node has a resume window. Its client
then has a log of all that is delivered to it. When such a connection is lost it is *away*: Redis still counts it, the
client stays a member of its channels, and the log goes on, until it is resumed or the window is over.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple
from urllib.parse import unquote

from freeim._core import Client, Connection, Log, Logs, Router, control_frame
from freeim.config import Options
from freeim.errors import CloseCode
from freeim.node.http import Request
from freeim.node.timers import Deadlines

PARAMETER: Final = "resume"
"""The parameter of the query by which a terminal asks for it."""

HEAD: Final = "__FreeIM__(Resume)"
"""The beginning of the node's first text frame to such a terminal. No JSON begins like this, so no message does."""

GOODBYE: Final = 4000
"""The close code of a terminal that does not come back."""

FINAL: Final = frozenset(
    {
        ("terminal", GOODBYE),
        ("node", CloseCode.GOING_AWAY),
        ("node", CloseCode.SERVICE_RESTART),
        ("node", CloseCode.REPLACED),
    }
)
"""Who closed with which code where nobody is to come back. All other ends are losses."""

KEPT_AGES: Final = 31
"""Parts of the time for which messages are kept, one less than a log knows: `AGES` in _core.pxd."""

LOGS_PER_LOOK: Final = 1_000
"""Logs that one look at the clock lets forget what is too old."""

AWAY_COST: Final = 3_072
"""Bytes of memory that count for each connection that is away, besides its messages. Measured: 2,563, its log included,
by tests/node/test_resume_many.py."""

AWAY_PER_CLIENT: Final = 16
"""Connections of one client that are away at the same time: one that comes and goes must not use up what is for all."""

_OPCODE_TEXT: Final = 1


class LastId(NamedTuple):
    """The id of the last message that a terminal has, ``<log>.<serial>-<number>``.

    Attributes:
        log: Of the log that it means.
        serial: Of the connection that it had.
        number: Of the message in the log.
    """

    log: str
    serial: int
    number: int

    def __str__(self) -> str:
        return f"{self.log}.{self.serial}-{self.number}"

    @classmethod
    def parse(cls, text: str) -> LastId | None:
        """Return what a text says; None where it is of another form."""
        found = re.fullmatch(r"([0-9a-f]{16})\.([0-9]{1,18})-([0-9]{1,18})", text)
        return cls(found[1], int(found[2]), int(found[3])) if found else None


def resume_of(request: Request) -> str | None:
    """Return the last id that a request names, "" for a first connection; None where it does not ask for resuming.

    Args:
        request: A request for a WebSocket. What it names may be anything.
    """
    for pair in request.query.split("&"):
        name, _, value = pair.partition("=")
        if name == PARAMETER:
            return unquote(value)
    return None


class History:
    """What one client may come back for.

    Args:
        log: The messages.
    """

    def __init__(self, log: Log) -> None:
        self.log = log
        self.id = secrets.token_hex(8)
        """Makes the ids of this log unlike those of any other."""
        self.stays: dict[int, Stay] = {}
        """The client's connections that can be resumed, by their serial: open, closing and away."""
        self.serials = 0
        self.broken = 0
        """Connections up to this serial lived while messages may have been lost on their way to this node."""
        self.gaps = 0
        """How many gaps `broken` knows of."""
        self.away: dict[Stay, None] = {}
        """Those of `stays` that are away, the oldest first."""

    def count(self, stay: Stay) -> None:
        """Tell the log whether a connection is one of those that are lost and not resumed; to be called after changes.

        Not by a look at all of them: a client may have thousands, which are lost together.
        """
        counts = stay.lost and stay.successor is None and stay.serial in self.stays
        self.log.away += counts - stay.counts
        stay.counts = counts


class Stay:
    """One connection that can be resumed.

    Args:
        connection: Entered in the router.
        history: Its client's.
        asked: What its request named: a last id, or "".
    """

    __slots__ = (
        "away",
        "begun",
        "connection",
        "counts",
        "final",
        "first",
        "follows",
        "history",
        "last_id",
        "lost",
        "serial",
        "start",
        "successor",
    )

    def __init__(self, connection: Connection, history: History, asked: str) -> None:
        history.serials += 1
        self.connection = connection
        self.history = history
        self.first = not asked
        """It follows no other."""
        last_id = LastId.parse(asked)
        self.last_id = last_id if last_id is not None and last_id.log == history.id else None
        """Where it goes on; None where this client's log does not know."""
        self.serial = history.serials
        self.start = history.log.last
        """The message behind which this connection gets all by itself."""
        self.begun = False
        """Its 101 is on its way."""
        self.lost = False
        """It is closing or away, and may be resumed."""
        self.counts = False
        """It counts in the log's `away`."""
        self.follows: Stay | None = None
        """The connection whose `successor` this is, until it has begun."""
        self.away = False
        """Its socket is gone."""
        self.final = False
        """Nobody comes back to it."""
        self.successor: Stay | None = None
        history.stays[self.serial] = self


class Resume:
    """Keeps the logs, and the connections that are away.

    Args:
        options: The node's options.
        on_over: Called with a connection that is not away any more: its presence is to be taken out.
    """

    def __init__(self, options: Options, on_over: Callable[[Connection], None]) -> None:
        self.router: Router | None = None
        self.count_lost: Callable[[], int] = lambda: 0
        """Returns how many messages were dropped on their way through this node."""
        self.results = Counter(dict.fromkeys(("resumed", "unknown", "forgotten", "gap"), 0))
        """Terminals that came back, by what became of it."""
        self.ends = Counter(dict.fromkeys(("resumed", "window", "limit", "offline", "stop"), 0))
        """Connections that were away, by what ended that."""
        self.replayed = 0
        """Messages that were sent from a log."""
        self.stopping = False
        """From now on nobody who leaves is waited for."""
        self.logs = Logs(options.resume_buffer, options.node_resume_buffer)
        self._on_over = on_over
        self._loop = asyncio.get_running_loop()
        self._on = options.resume_window > 0
        self._stays: dict[Connection, Stay] = {}
        self._histories: dict[Client, History] = {}
        self._away: Deadlines[Stay] = Deadlines(
            options.resume_window, lambda stay: self._end(stay, "window"), self._loop.call_soon
        )
        # A loss is noticed late, and what was sent before that must still be there at the end of the window.
        unnoticed = options.ping_interval + options.ping_timeout + options.close_timeout
        self._age_seconds = (options.resume_window + unnoticed) / KEPT_AGES
        self._most = options.node_resume_buffer // 2 // AWAY_COST
        self._lost = 0
        self._gaps = 0

    @property
    def away(self) -> int:
        """Connections that are away."""
        return len(self._away)

    # ---- a connection, from its opening to its end

    def opens(self, connection: Connection, asked: str) -> None:
        """A connection that asked for it has just been entered in the router."""
        self._look_for_losses()
        client = connection.client
        history = self._histories.get(client)
        if history is None:
            history = self._histories[client] = History(self.logs.add())
            history.gaps = self._gaps
            client.log = history.log
        self._tell_gaps(history)
        stay = self._stays[connection] = Stay(connection, history, asked)
        before = self._predecessor(stay)
        if before is not None and before.successor is None:
            before.successor = stay
            stay.follows = before
            history.count(before)

    def begins(self, connection: Connection) -> None:
        """The 101 is about to be written: put the announcement, and what was missed, in front of what waits."""
        stay = self._stays.get(connection)
        if stay is None:
            return
        stay.begun = True
        replay = self._replay(stay)
        missed = replay is None
        frames = replay or []
        last_id = LastId(stay.history.id, stay.serial, stay.start - len(frames))
        text = json.dumps({"id": str(last_id), "missed": missed}, separators=(",", ":"))
        connection.put_first([control_frame(_OPCODE_TEXT, f"{HEAD}{text}".encode()), *frames])
        self.replayed += len(frames)
        stay.follows = None
        before = self._predecessor(stay)
        if before is not None and before.successor is stay and before.away:
            self._end(before, "resumed")

    def _predecessor(self, stay: Stay) -> Stay | None:
        if stay.last_id is None or stay.last_id.serial >= stay.serial:
            return None
        return stay.history.stays.get(stay.last_id.serial)

    def _replay(self, stay: Stay) -> list[bytes] | None:
        """Return the frames that a connection is to get before its own; None where some of them may be missing."""
        if stay.first:
            return []
        self._look_for_losses()
        history, last_id = stay.history, stay.last_id
        self._tell_gaps(history)
        frames = None
        if last_id is None or last_id.serial >= stay.serial or last_id.number > stay.start or history.log.ended:
            result = "unknown"
        elif last_id.serial <= history.broken:
            result = "gap"
        else:
            frames = history.log.since(last_id.number, stay.start)
            result = "forgotten" if frames is None else "resumed"
        self.results[result] += 1
        return frames

    def closes(self, connection: Connection, by: str, code: int) -> None:
        """A connection has begun to close: from now on it may be resumed, unless this is final."""
        stay = self._stays.get(connection)
        if stay is None:
            return
        if (by, code) in FINAL:
            stay.final = True
        else:
            stay.lost = True
            stay.history.count(stay)

    def keeps(self, connection: Connection) -> bool:
        """The socket of a connection is gone. Return whether it is away now, and goes on being counted."""
        stay = self._stays.get(connection)
        if stay is None or stay.final or self.stopping or not stay.begun:
            return False
        if stay.successor is not None and stay.successor.begun:
            return False
        assert self.router is not None
        self.router.retire(connection)
        stay.lost = stay.away = True
        of_client = stay.history.away
        of_client[stay] = None
        stay.history.count(stay)
        self._away.start(stay, self._loop.time())
        self.logs.others += AWAY_COST
        if len(of_client) > AWAY_PER_CLIENT:
            self._end(next(iter(of_client)), "limit")
        elif self.away > self._most:
            self._end(self._away.first(), "limit")
        return True

    def ended(self, connection: Connection) -> None:
        """The presence of a connection is taken out."""
        stay = self._stays.pop(connection, None)
        if stay is None:
            return
        history = stay.history
        del history.stays[stay.serial]
        history.count(stay)
        before, stay.follows = stay.follows, None
        if before is not None and before.serial in history.stays:
            before.successor = None  # this one never came so far
            history.count(before)
        if not history.stays:
            self._forget(connection.client, history)

    def _forget(self, client: Client, history: History) -> None:
        history.log.end()
        if self._histories.get(client) is history:
            del self._histories[client]
            client.log = None

    def _end(self, stay: Stay, why: str) -> None:
        """A connection is not away any more."""
        if stay.away:
            stay.away = False
            del stay.history.away[stay]
            self._away.finish(stay)
            self.logs.others -= AWAY_COST
            self.ends[why] += 1
            self._on_over(stay.connection)

    # ---- what ends more than one

    def end(self, connection: Connection) -> bool:
        """The node stops: take a connection out that is away; False where it is not."""
        stay = self._stays.get(connection)
        if stay is None or not stay.away:
            return False
        self._end(stay, "stop")
        return True

    def force_offline(self, client: Client) -> None:
        """A client is forced offline: nothing is kept for it, and nobody comes back."""
        history = self._histories.get(client)
        if history is None:
            return
        self._forget(client, history)
        for stay in history.stays.values():
            stay.final = True
            # Not now: the router calls from the midst of its tables.
            if stay.away:
                self._loop.call_soon(self._end, stay, "offline")

    def gap(self) -> None:
        """Messages to this node may have been lost: whoever is connected or away is told when it comes back."""
        self._gaps += 1  # and no more: in a flood each one that comes may find another

    def _tell_gaps(self, history: History) -> None:
        if history.gaps != self._gaps:
            history.gaps = self._gaps
            history.broken = history.serials

    def _look_for_losses(self) -> None:
        """Messages that this node had no room for are a gap as well."""
        lost = self.count_lost()
        if lost != self._lost:
            self._lost = lost
            self.gap()

    def look_at_clock(self, now: float) -> None:
        """End what is over; to be called now and then with the loop's time."""
        if self._on:
            self._away.expire(now)
            self.logs.age = max(self.logs.age, int(now / self._age_seconds))
            self.logs.look(LOGS_PER_LOOK)
