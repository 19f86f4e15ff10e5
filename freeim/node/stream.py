"""With ``--bus stream``: what was published to a node while it was away reaches it once it is back.

Each message is in the node's stream in Redis and is published on its channel at the same time (lua/publish.lua). What
is heard is delivered at once. After a gap nothing is heard until the stream has been read up to its end, on the
connection that is subscribed: what was published before that reading is in it, what is published after it comes behind
its reply.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from time import monotonic
from typing import Any, Final

import hiredis

from freeim._core import Router
from freeim.config import Options
from freeim.envelope import STREAM_HEAD
from freeim.errors import ConfigError
from freeim.names import Names
from freeim.node.link import LinkLost
from freeim.node.session import Session
from freeim.node.stream_position import Entry, Outcome, Position, StreamId, read_entry, read_id, split_heard
from freeim.scripts import load_script

log = logging.getLogger("freeim")

CHUNK: Final = 262_144
"""Bytes of the stream that are read at a time, and up to 32 messages more: Redis cuts those who ask for too much."""

SLICE: Final = 0.002
"""Seconds for which the messages of a chunk keep the loop."""

TURN: Final = 0.05
"""Seconds between two looks at the position, while it moves. What is written is the one of the last look: so that what
it covers has left for the terminals, and at most what came within two of these is delivered again after a crash."""

AWAY_PER_COMMAND: Final = 500
"""Clients of one command, when a node that stops writes down how far each has come."""

KEPT_AT_LEAST: Final = 4096
"""Places of messages that are remembered in the grace, however few messages are kept."""

LAST_MOMENT: Final = 1_000
"""Milliseconds before the end of a predecessor that was killed in a hand-over, whose messages its clients get again."""

_HEAD: Final = STREAM_HEAD.encode()


class Stream:
    """The node's end of its stream.

    Args:
        options: The node's options, with its name.
        names: The deployment's keys.
        session: The node's connections to Redis.
        router: Where messages go.
        epoch: Of this instance; only the owner of the name writes the position.
    """

    def __init__(self, options: Options, names: Names, session: Session, router: Router, epoch: str) -> None:
        self.position = Position()
        self.behind = True
        """Whether what is heard is left to the reading of the stream."""
        self.succeeds = False
        """The name was taken over from an instance that serves on until its terminals have moved."""
        self.caught_up = 0
        """Messages that were read from the stream, not heard."""
        self._options = options
        self._session = session
        self._router = router
        self._epoch = epoch
        node = options.node or ""
        self._stream_key = names.stream(node)
        self._position_key = names.position(node)
        self._away_key = names.away(node)
        self._keys: list[str | bytes] = [names.lease(node), self._position_key, self._stream_key]
        self._loop = asyncio.get_running_loop()
        self._generation = 0
        """Counts the readings: the replies of one that was given up are of no use."""
        self._followed = 0
        """The reading since which a successor has heard all."""
        self._read: asyncio.Future[None] | None = None
        self._entries: deque[Any] = deque()
        """Of the chunk that is being handled."""
        self._last_chunk = False
        self._offered = False
        """In a hand-over that this instance has offered, and for which it began to keep what comes."""
        self._dropped = False
        self._unheard = False
        """Something that was published since the last reading began has been dropped before it was handled."""
        self._rewound = 0
        """How often Redis came back without something that it had."""
        self._rest: Callable[[], Any] | None = None
        """Goes on with a message that has not reached everybody yet."""
        self._lost_told = 0
        self._kept: list[tuple[int, StreamId, int]] = []
        """In the grace: of each message its place in the router, its id and its number."""
        self._before_kept = 0, self.position.id, self.position.number
        self._ahead: dict[bytes, StreamId] = {}
        """In a hand-over, clients that have had more at the predecessor than has come here yet."""
        self._timers: list[asyncio.TimerHandle | None] = [None, None]
        self._seen = self.position.id, self.position.number
        self._written: tuple[StreamId, int] | None = self._seen

    # ---- what is heard

    def take(self, payload: bytes) -> Callable[[], Any] | None:
        """Handle what was published on the node's channel; see `Router.take`."""
        if not payload.startswith(_HEAD):
            return self._router.take(payload)  # published without the stream: heard now or never
        if self.behind:
            return None
        entry = split_heard(payload)
        if entry is None:
            return self._router.take(payload)  # which tells that it is no message
        outcome = self.position.hear(entry)
        if outcome is Outcome.NEXT:
            return self._hand_on(entry)
        if outcome is Outcome.GAP:
            self._start_reading()
        return None

    def _hand_on(self, entry: Entry) -> Callable[[], Any] | None:
        self._look()
        if self._router.kept_since is not None:
            self._keep(entry)
        return self._router.take(entry.payload or b"")

    def _keep(self, entry: Entry) -> None:
        self._kept.append((self._router.position, entry.id, entry.number))
        if self._ahead:
            self._skip(entry)
        if len(self._kept) > 2 * self._router.window_size + KEPT_AT_LEAST:
            since = self._router.kept_since or 0
            self._before_kept = self._kept_before(since)
            del self._kept[: bisect_left(self._kept, since, key=_place_of)]

    # ---- what was missed

    def lose(self) -> None:
        """The session has a gap: what is heard is left to the next reading of the stream."""
        self._give_up()
        self._fail(LinkLost("the connection to Redis was lost"))

    def forget(self) -> None:
        """Redis has dropped keys (FLUSHALL, or FLUSHDB of any database), perhaps the stream; `catch_up` follows."""
        self._dropped = True

    def on_dropped(self) -> None:
        """Messages were dropped before they came here: they are in the stream."""
        self._unheard = True
        if not self.behind:
            self.behind = True
            self._loop.call_soon(self._read_unheard)  # not from the midst of what has dropped them

    def _read_unheard(self) -> None:
        if self._unheard:
            self._start_reading()

    def count_lost(self) -> int:
        """Return a number that grows whenever messages to this node may be lost."""
        return self.position.lost + self._rewound

    def _give_up(self) -> None:
        self.behind = True
        self._generation += 1

    async def catch_up(self) -> None:
        """Read the stream from the position on, and hand on what is there, up to its end.

        Raises:
            hiredis.HiredisError, OSError: Redis failed, or cannot do this.
        """
        if not self._session.resp3:
            raise LinkLost("this Redis has no RESP3, which --bus stream needs")
        if self._read is None or self._read.done():
            self._read = self._loop.create_future()
        self._start_reading()
        await asyncio.shield(self._read)  # of another call too, whose reading this one has taken over

    def _start_reading(self) -> None:
        self._give_up()
        self._read_chunk()

    def _read_chunk(self) -> None:
        self._unheard = False
        answered = partial(self._answered, self._generation)
        script = load_script("backlog").text
        self._session.read(answered, "EVAL", script, 1, self._stream_key, self.position.id_text, CHUNK)

    def _answered(self, generation: int, reply: Any) -> Callable[[], Any] | None:
        if generation != self._generation:
            return None
        if isinstance(reply, Exception):
            self._fail(reply)
            return None
        newest, last, entries, known = reply
        dropped, self._dropped = self._dropped, False
        if dropped and not (known and self.position.is_at(read_entry(known))):
            # What is there now is new, also where it came in the millisecond of the last message before.
            self.position.restart()
            self._rewound += 1
            self._read_chunk()
            return None
        self._entries, self._last_chunk = deque(entries), bool(last)
        if self.position.meet(None if newest is None else read_id(newest)):
            self._rewound += 1
            log.warning(
                "Redis has lost messages of this node's stream that had been handled; those which were published and "
                "lost with it while the node was away cannot be counted"
            )
        return self._go_on()

    def _fail(self, error: Exception) -> None:
        if self._read is not None and not self._read.done():
            self._read.set_exception(error)
            self._read.exception()  # whoever waited may have given up
        elif not isinstance(error, ConnectionError):
            self._session.lose(LinkLost(f"the node's stream cannot be read: {error}"))

    def _go_on(self) -> Callable[[], Any] | None:
        """Hand on the entries of a chunk for a slice of time; nothing else of the connection is handled before."""
        end = monotonic() + SLICE
        while self._rest is not None or self._entries:
            if self._rest is not None:
                self._rest = self._rest()
            else:
                entry = read_entry(self._entries.popleft())
                if entry is not None and self.position.read_next(entry):
                    self.caught_up += 1
                    self._rest = self._hand_on(entry)
            if monotonic() >= end and (self._rest is not None or self._entries):
                return self._go_on
        if not self._last_chunk or self._unheard:
            self._read_chunk()
            return None
        self.behind = False
        self._look()
        if self.position.lost > self._lost_told:
            log.warning(
                "%d messages to this node are lost: more than --stream-length (%d) were published while it was away",
                self.position.lost - self._lost_told,
                self._options.stream_length,
            )
            self._lost_told = self.position.lost
        if self._read is not None and not self._read.done():
            self._read.set_result(None)
        return None

    # ---- the life of the node

    async def start(self) -> None:
        """The name is taken: go on where the predecessor was.

        Raises:
            ConfigError: This Redis cannot do it.
            OSError: Redis was lost.
        """
        try:
            self.position = Position.read(await self._session.call("GET", self._position_key))
            away = await self._session.call("HGETALL", self._away_key)
            self._before_kept = 0, self.position.id, self.position.number
            if self._options.stream_grace:
                self._router.begin_grace()
            await self.catch_up()
        except (hiredis.ReplyError, LinkLost) as error:
            if self._session.resp3 and isinstance(error, LinkLost):
                raise
            raise ConfigError(
                f"--bus stream needs Redis 6.2 or newer, and a user who may use its commands: {error}", "bus"
            ) from error
        for client_id, text in away.items():
            self._remember(client_id, read_id(text))
        if away:
            await self._session.call("DEL", self._away_key)

    def _remember(self, client_id: bytes, seen: StreamId | None) -> None:
        if seen is not None and self._kept:
            at = bisect_right(self._kept, seen, key=_id_of)
            position = self._kept[at][0] if at < len(self._kept) else self._router.position
            self._router.set_away(client_id, position)

    def begin(self) -> None:
        """Terminals can connect from now on: those that do within the grace get what they missed."""
        if self._options.stream_grace:
            self._timers[1] = self._loop.call_later(self._options.stream_grace, self._end_grace)

    def _end_grace(self) -> None:
        self._stop_timer()
        self._router.end_grace()
        self._kept.clear()
        self._ahead.clear()

    def _stop_timer(self) -> None:
        if self._timers[1] is not None:
            self._timers[1].cancel()
            self._timers[1] = None

    def leave(self, *, handed_over: bool) -> None:
        """The node begins to stop: what comes to clients that it sends away is for the node after it to deliver.

        Args:
            handed_over: That one serves already, and answers the receipts.
        """
        if handed_over and not self._offered:
            self._end_grace()  # receipts that wait since before the hand-over are this instance's
        self._stop_timer()
        self._keep_from_here(in_two=handed_over)

    def _keep_from_here(self, *, in_two: bool) -> None:
        # Without tracking a message takes its place in the router only once its channel's members have been read.
        if self._options.stream_grace and self._router.tracking and self._router.kept_since is None:
            self._before_kept = self._router.position, self.position.id, self.position.number
            self._router.begin_grace(in_two)

    async def release(self) -> None:
        """The node has stopped: write down how far it has come, and how far each client that it sent away has.

        Raises:
            hiredis.HiredisError, OSError: Redis failed.
        """
        self.lose()
        self.stop()  # what is written here is to stay
        if await self._session.call("GET", self._keys[0]) != self._epoch.encode():
            return  # another instance has taken the name, and goes on from its own position
        since = self._router.kept_since
        if since is None:
            await self._write(self.position.id, self.position.number)
            return
        start = self._kept_before(since)
        away = self._router.away() if self._router.tracking else {}
        marks = ((client, self._kept_before(position)[1]) for client, position in away.items())
        flat = (part for client, at in marks if at > start[1] for part in (client, _text(at)))
        # The marks first: a position without them would have everything delivered again, and that is all.
        for chunk in _chunks(flat, 2 * AWAY_PER_COMMAND):
            await self._session.call("HSET", self._away_key, *chunk)
        await self._write(start[1], start[2])

    def _kept_before(self, position: int) -> tuple[int, StreamId, int]:
        at = bisect_left(self._kept, position, key=_place_of)
        return self._kept[at - 1] if at else self._before_kept

    async def _write(self, place: StreamId, number: int) -> None:
        await self._session.run_and_wait(load_script("position"), self._keys, *self._values(place, number))

    def _values(self, place: StreamId, number: int) -> tuple[str | int, ...]:
        # The last message itself is left: by it a node sees that the stream is the one that it knows.
        oldest, since = place, self._router.kept_since
        if since is not None:  # a stop in the grace goes back to there
            oldest = min(place, self._kept_before(since)[1])
        return self._epoch, _text(place), number, _text(oldest)

    def stop(self) -> None:
        """Stop the timers."""
        for timer in self._timers:
            if timer is not None:
                timer.cancel()

    # ---- a hand-over: the predecessor's side

    def offer(self) -> None:
        """Another instance may take the name: from now on it is known how far each client has come that leaves."""
        self._offered = self._router.kept_since is None
        self._keep_from_here(in_two=True)

    def take_back(self) -> None:
        """It has not come to serve."""
        if self._offered:
            self._offered = False
            self._end_grace()

    def place_of(self, client_id: bytes) -> str | None:
        """Return the id of the last message that a client which has left was given; None where that is not known."""
        position = self._router.away_since(client_id)
        return None if position is None else _text(self._kept_before(position)[1])

    # ---- the successor's

    async def follow(self) -> None:
        """Hear the stream from its end on: what came before is the predecessor's.

        Raises:
            ConfigError, OSError: As `start`.
        """
        heard: asyncio.Future[None] = self._loop.create_future()

        def answered(reply: Any) -> None:
            if heard.done():
                return
            if isinstance(reply, Exception):
                heard.set_exception(reply)
                return
            entry = read_entry(reply[0]) if reply else None
            if entry is not None:
                self.position = Position(entry.id, entry.number)
            self._followed = self._generation
            self.behind = False  # at this place: what is heard next is the next one
            heard.set_result(None)

        if not self._session.resp3:
            raise ConfigError("--bus stream needs Redis 6.2 or newer: this one has no RESP3", "bus")
        self._session.read(answered, "XREVRANGE", self._stream_key, "+", "-", "COUNT", 1)
        try:
            await heard
        except hiredis.ReplyError as error:
            raise ConfigError(f"--bus stream needs a user who may use its commands: {error}", "bus") from error

    def take_over(self) -> None:
        """The name passes to this instance, at this place of what is heard."""
        self.succeeds = not self.behind and self._generation == self._followed
        self._look()
        self._keep_from_here(in_two=True)

    async def succeed(self) -> None:
        """The name is taken.

        Raises:
            OSError: The place where it was taken is not known.
        """
        if not self.succeeds:
            raise LinkLost("more came at the moment of the hand-over than was handled")
        await self._session.call("DEL", self._away_key)

    def left(self, client_id: bytes, place: str | None) -> None:
        """A client has lost its last connection at the predecessor.

        Args:
            client_id: Whose.
            place: Of the last message that it was given there; None: not known, so it gets what comes from now on.
        """
        client = self._router.clients.get(client_id)
        if self._router.kept_since is None or (client is not None and client.connections):
            return
        seen = self.position.id if place is None else read_id(place.encode())
        if seen is None:
            return
        at = bisect_right(self._kept, seen, key=_id_of)
        self._router.set_away(client_id, self._kept[at][0] if at < len(self._kept) else self._router.position)
        if seen > self.position.id:
            self._ahead[client_id] = seen

    def _skip(self, entry: Entry) -> None:
        """Clients that have moved had this message at the predecessor."""
        for client_id, seen in list(self._ahead.items()):
            if entry.id <= seen:
                self._router.set_away(client_id, self._router.position + 1)
            if entry.id >= seen:
                del self._ahead[client_id]

    def cut_off(self, clients: Iterable[bytes]) -> None:
        """The predecessor has ended with clients; they get what came since a moment before, perhaps again."""
        milliseconds = max(0, self.position.id[0] - LAST_MOMENT)
        for client_id in clients:
            self.left(client_id, _text((milliseconds, 0)))

    # ---- the position

    def _look(self) -> None:
        if self._timers[0] is None:
            self._timers[0] = self._loop.call_later(TURN, self._turn)

    def _turn(self) -> None:
        """Write the position of the last look; look again for as long as it moves."""
        self._timers[0] = None
        seen, self._seen = self._seen, (self.position.id, self.position.number)
        if seen != self._written and seen[0] <= self.position.id and self._session.up:
            self._written = seen
            self._session.run(self._wrote, load_script("position"), self._keys, *self._values(*seen))
        if self._seen != seen:
            self._look()

    def _wrote(self, reply: object) -> None:
        if reply != 1:
            self._written = None  # it is written when the position moves again, or after the gap


def _chunks(parts: Iterator[bytes | str], size: int) -> Iterator[list[bytes | str]]:
    while chunk := list(islice(parts, size)):
        yield chunk


def _text(place: StreamId) -> str:
    return f"{place[0]}-{place[1]}"


def _place_of(kept: tuple[int, StreamId, int]) -> int:
    return kept[0]


def _id_of(kept: tuple[int, StreamId, int]) -> StreamId:
    return kept[1]
