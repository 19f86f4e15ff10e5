"""Presence as a lease with a fence: what this node instance contributes to Redis, and what it takes out again.

An instance is an *epoch*, 128 random bits. It lives while its `Alive` key does, and everything that it counted into
`Online` stands in its share too, so that whoever outlives it can take out exactly that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from functools import partial
from typing import Any, Final

import hiredis

from freeim._core import Connection
from freeim.bus_mode import bus_text
from freeim.config import Options
from freeim.envelope import GONE_HEAD, HANDOVER_HEAD, PROBE_HEAD
from freeim.errors import ConfigError, NodeReplaced
from freeim.names import Names
from freeim.node.link import LinkLost
from freeim.node.session import BEAT_INTERVAL, Session
from freeim.node.sparse_log import SparseLog
from freeim.scripts import load_script

log = logging.getLogger("freeim")

LEASE_MS: Final = int(3 * BEAT_INTERVAL * 1000)
"""How long a node that was heard last still counts as living, in milliseconds."""

FENCED: Final = -2
USED: Final = -3

_REFUSES_WRITES: Final = re.compile(r"(?:^|.* -)(?:OOM|MISCONF|NOREPLICAS) ")
"""The errors of a Redis that reads and publishes, but does not write: it has no memory left, could not save to its
disk, or has too few replicas. Redis 6.2 puts the code of a script's error behind a text of its own."""

WARNINGS_PER_MINUTE: Final = 20
"""Log lines about updates that Redis refused; the rest of the minute is counted."""

CLOSES_PER_SCRIPT: Final = 100
"""Connections that one script takes out: a longer one would keep Redis from everybody else."""

OPENS_PER_TURN: Final = 500
"""Connections that are put back before the loop looks at anything else."""

OPENS_PER_BEAT: Final = 100
"""Connections that are put back before the lease is renewed: with a thousand channels each, a second."""

GRACE_SECONDS: Final = 10.0
"""How long a client whose connection ended with an instance that drains has to come back until it counts as offline."""

GONE: Final = "gone:"
"""The beginning of a share's fields for such clients; the client id follows. All others are connection numbers."""

_HEIR_SECONDS: Final = 0.1
_HEIR_LOOKS: Final = 20
"""How often it is looked whether another instance is dead, and the pause between two looks."""


class Stance(StrEnum):
    """What an instance is to another one of the same name; see lua/beat.lua."""

    ALONE = ""
    OFFERED = "offered"
    BACK = "back"
    DRAINS = "drains"


class Presence:
    """Takes the node's name, and opens and closes connections in Redis.

    Args:
        session: Where commands go.
        names: The deployment's keys.
        options: The node's options, with its name.
        epoch: This instance; a new one where it is left out.
    """

    def __init__(self, session: Session, names: Names, options: Options, epoch: str | None = None) -> None:
        self.epoch = epoch or secrets.token_hex(16)
        self.nodes: tuple[str, ...] = ()
        self.stance = Stance.ALONE
        self.heir = ""
        """The epoch of the other instance of this name, where the name was offered to one."""
        self._session = session
        self._names = names
        self._options = options
        self._name = options.node or ""
        self._beats = secrets.randbits(48)  # another instance of this name sends probes on the same channel
        self._closes: list[int] = []
        self.complete = True
        """Whether the last comparison put everything back."""
        self.lapsed = False
        """Whether the lease ran out during the last comparison, so that somebody was not put back."""
        self.restored = 0
        """Connections that Redis had lost and that were put back."""
        self.buried = 0
        """Connections of dead instances that were taken out."""
        self._refused_log = SparseLog(logging.WARNING, WARNINGS_PER_MINUTE, "Redis refused %d more such updates")

    # ---- the name

    async def take(self, predecessor: str = "") -> list[str]:
        """Take the node's name, and register it and the list of nodes.

        Args:
            predecessor: The epoch of the living instance that hands the name over. Both hear `handover_mark` on the
                node's channel at the place in the stream where this happens.

        Returns:
            The epochs of dead predecessors, which can be buried at once.

        Raises:
            ConfigError: The name has a living owner, or the list of nodes or the kind of bus differs from those in use.
            hiredis.HiredisError, OSError: Redis failed.
        """
        names, options = self._names, self._options
        reply = await self._session.run_and_wait(
            load_script("take"),
            [
                names.lease(self._name),
                names.alive(self.epoch),
                names.shares,
                names.nodes,
                names.urls,
                names.bus,
                *([names.alive(predecessor)] if predecessor else []),
            ],
            names.prefix,
            self._name,
            self.epoch,
            LEASE_MS,
            int(options.takeover),
            json.dumps(options.nodes) if options.nodes else "",
            int(options.replace_nodes),
            options.public_url or "",
            1,  # this process has subscribed to the channel already
            bus_text(options.kept_messages),
            predecessor,
            handover_mark(self.epoch),
        )
        outcome, detail, *dead = (part.decode() for part in reply)
        if outcome == "TAKEN":
            raise ConfigError(
                f"a living process already is the node {self._name!r} (epoch {detail}); stop it, give this one another "
                "name with --node, or take its place with --takeover"
            )
        if outcome == "GONE":
            raise ConfigError(
                f"the process that hands the node {self._name!r} over is not known to this Redis; start the new one "
                "with the same --redis-url",
                "redis_url",
            )
        if outcome == "LIST":
            mine = options.nodes or (self._name,)
            raise ConfigError(
                f"the list of nodes differs from the one in use. Here: {', '.join(mine)}. Registered in Redis: "
                f"{', '.join(json.loads(detail))}. Start every node with the same --nodes in the same order; to change "
                "the list, stop all nodes first, or force it with --replace-nodes"
            )
        if outcome == "BUS":
            raise ConfigError(
                f"the kind of bus differs from the one in use. Here: --bus {options.bus}. Registered in Redis by nodes "
                f"that run: --bus {detail}. Start every node with the same; to change it, stop all nodes first",
                "bus",
            )
        self.nodes = tuple(json.loads(detail))
        return dead

    async def bury(self, epoch: str) -> int:
        """Take out all that a dead instance left behind, and return how many connections that was."""
        names = self._names
        total = 0
        while True:
            taken = await self._session.run_and_wait(
                load_script("close"),
                self._close_keys(epoch),
                names.prefix,
                names.event_offline,
                epoch,
            )
            if taken <= 0:
                break
            total += taken
            self.buried += taken
        if total:
            log.info("took out %d connections that a dead node left behind", total)
        return total

    async def declare_dead(self, other: str) -> bool:
        """Count the other instance of this name as dead at once, where it is; return whether it is.

        Raises:
            hiredis.HiredisError, OSError: Redis failed.
        """
        names = self._names
        for _ in range(_HEIR_LOOKS):  # Redis may notice its end a moment later than we did
            channel = names.server(self._name)
            if await self._session.run_and_wait(load_script("dead"), [names.alive(other)], channel, 1):
                return True
            await asyncio.sleep(_HEIR_SECONDS)
        return False

    async def beat(self) -> bool:
        """Renew the lease and send a probe; True where the life had ended and everything must be compared.

        Raises:
            NodeReplaced: Another process owns the name now.
            hiredis.HiredisError, OSError: Redis failed.
        """
        stance = self.stance
        self._beats += 1
        self._session.probe_sent(self._beats)
        reply = await self._session.run_and_wait(load_script("beat"), *self._beat_arguments())
        if reply == b"REPLACED" and stance != self.stance:
            return await self.beat()  # the name was offered to another instance meanwhile, which was quick
        if reply == b"REPLACED":
            raise NodeReplaced(f"another process took the name {self._name!r} over")
        return bool(reply == b"REVIVED")

    def _beat_arguments(self) -> tuple[Any, ...]:
        names = self._names
        return (
            [
                names.lease(self._name),
                names.alive(self.epoch),
                names.shares,
                names.server(self._name),
                names.nodes,
                names.urls,
                names.bus,
                *([names.alive(self.heir)] if self.heir else []),
            ],
            self._name,
            self.epoch,
            LEASE_MS,
            f"{PROBE_HEAD}{self._beats}",
            json.dumps({"v": 1, "by": "mod", "nodes": self.nodes, "prev": None}, separators=(",", ":")),
            self._options.public_url or "",
            bus_text(self._options.kept_messages),
            self.stance,
            self.heir,
        )

    async def release(self) -> None:
        """Give the name back after a clean stop."""
        names = self._names
        await self._session.run_and_wait(
            load_script("release"),
            [names.lease(self._name), names.alive(self.epoch), names.shares, names.share(self.epoch)],
            self.epoch,
        )

    # ---- connections

    def open(self, connection: Connection, token: str, on_reply: Callable[[Any], None]) -> None:
        """Count a connection and burn its token; see lua/open.lua for the replies."""
        self._run_open(connection, [self._names.token(token)], (), on_reply)

    def close(self, number: int) -> None:
        """Take a connection out. All closes of one turn of the loop go in one script."""
        if not self._closes:
            asyncio.get_running_loop().call_soon(self.flush)
        self._closes.append(number)

    def flush(self) -> None:
        """Send the closes that have gathered. While the session is down, they wait for the comparison after it."""
        if self._session.up:
            self._send_closes()

    def await_return(self, client_ids: Iterable[str]) -> None:
        """Clients that were connected to the instance that drains have `GRACE_SECONDS` to come back."""
        fields = [GONE + client_id for client_id in client_ids]
        asyncio.get_running_loop().call_later(GRACE_SECONDS, self._give_up, fields)

    def _give_up(self, fields: list[str]) -> None:
        if self._session.up:  # else they are found, and get their time once more, by the comparison that follows
            self._close(fields)

    async def give_up_all(self) -> None:
        """Wait no longer for anybody to come back: this instance ends.

        Raises:
            hiredis.HiredisError, OSError: Redis failed.
        """
        self._close((await self._read_share())[1])

    async def look_for_gone(self) -> set[int]:
        """Give those time to come back of whom this instance may not have heard; return the numbers in the share.

        Raises:
            hiredis.HiredisError, OSError: Redis failed.
        """
        numbers, gone = await self._read_share()
        if gone:
            self.await_return(field.removeprefix(GONE) for field in gone)
        return numbers

    async def _read_share(self) -> tuple[set[int], list[str]]:
        fields = [field.decode() for field in await self._session.call("HKEYS", self._names.share(self.epoch))]
        gone = [field for field in fields if field.startswith(GONE)]
        return {int(field) for field in fields if not field.startswith(GONE)}, gone

    def forget(self, client_id: bytes) -> None:
        """Let Redis stop tracking a client that left: a key that was read while missing is tracked for good."""
        key = self._names.client("").encode() + client_id
        self._session.run(self.warn, load_script("touch"), [key])

    def _send_closes(self) -> None:
        closes, self._closes = self._closes, []
        self._take_out(closes)

    def _take_out(self, numbers: list[int]) -> None:
        if self.stance == Stance.DRAINS:
            self._drain(numbers)
        else:
            self._close(numbers)

    def _close(self, numbers: Sequence[int | str]) -> None:
        names = self._names
        for start in range(0, len(numbers), CLOSES_PER_SCRIPT):
            self._session.run(
                self.warn,
                load_script("close"),
                self._close_keys(self.epoch),
                names.prefix,
                names.event_offline,
                "",
                *numbers[start : start + CLOSES_PER_SCRIPT],
            )

    def _close_keys(self, epoch: str) -> list[str | bytes]:
        names = self._names
        return [names.share(epoch), names.online, names.list_chan, names.shares, names.alive(epoch), names.gone]

    def _drain(self, numbers: list[int]) -> None:
        names = self._names
        for start in range(0, len(numbers), CLOSES_PER_SCRIPT):
            some = numbers[start : start + CLOSES_PER_SCRIPT]
            self._session.run(
                partial(self._drained, some),
                load_script("drain"),
                [names.share(self.epoch), names.online, names.shares, names.lease(self._name), names.gone],
                names.prefix,
                self.epoch,
                self.heir,
                names.server(self._name),
                GONE_HEAD,
                *some,
            )

    def _drained(self, numbers: list[int], reply: Any) -> None:
        if reply == -1:  # nobody has the name any more, so it is ours to say that they are gone
            self._close(numbers)
        else:
            self.warn(reply)

    def _run_open(
        self, connection: Connection, token_keys: list[str], channels: Iterable[bytes], on_reply: Callable[[Any], None]
    ) -> None:
        names = self._names
        client_id = connection.client.id
        self._session.run(
            on_reply,
            load_script("open"),
            [
                names.alive(self.epoch),
                names.share(self.epoch),
                names.online,
                names.client("").encode() + client_id,
                names.list_chan,
                names.gone,
                *token_keys,
            ],
            names.prefix,
            connection.number,
            client_id,
            connection.token_json,
            names.event_online,
            *channels,
        )

    async def reconcile(self, living: dict[int, Connection]) -> None:
        """Compare the share with the living connections, field by field, and mend what differs.

        Living connections that the share has lost were buried, or Redis lost them: their count, their Online event and
        the channels that this node remembers come back, each in one script. Where nothing is missing nobody was buried.

        Args:
            living: Connection number to connection: all whose opening was confirmed and whose socket is open.

        Raises:
            hiredis.HiredisError, OSError: Redis failed.
        """
        # A Redis that has lost the scripts would have each opening sent twice, the second time behind our last PING.
        with contextlib.suppress(hiredis.ReplyError):
            await self._session.call("SCRIPT", "LOAD", load_script("open").text)
        share = await self.look_for_gone()
        # Closes that wait are sent too: the share was read before some of their openings.
        self._closes += [number for number in share if number not in living]
        self._send_closes()
        gaps = self._session.gaps
        self.lapsed = False
        missing = [connection for number, connection in living.items() if number not in share]
        refused: list[Connection] = []
        for number, connection in enumerate(missing, 1):
            # One that has closed meanwhile stays out; one that closes from here on sends its close after its open.
            if connection.number in living:
                on_reply = partial(self._put_back, connection, living, refused)
                self._run_open(connection, [], connection.client.channel_names, on_reply)
            if number % OPENS_PER_BEAT == 0:
                # Many that come back may take Redis longer than a lease lasts: peers must not bury us meanwhile.
                self._session.run(self._renewed, load_script("beat"), *self._beat_arguments())
            if number % OPENS_PER_TURN == 0:
                await asyncio.sleep(0)
                if self._session.gaps != gaps:
                    raise LinkLost("the connection to Redis was lost while connections were put back")
        # One more round trip, behind all of these in the same pipeline: then they are done.
        await self._session.call("PING")
        self._send_closes()  # of those that closed meanwhile, while the session did not count as up
        self.complete = not refused and not self.lapsed
        self.restored += len(missing) - len(refused)
        if missing:
            log.info("put %d connections back that Redis had lost", len(missing) - len(refused))

    def _renewed(self, reply: Any) -> None:
        self.warn(reply)
        if reply == b"REVIVED":  # what was put back before may have been buried again
            self.lapsed = True

    def _put_back(
        self, connection: Connection, living: dict[int, Connection], refused: list[Connection], reply: Any
    ) -> None:
        self.warn(reply)
        if isinstance(reply, Exception):
            refused.append(connection)
        elif reply == FENCED:
            self.lapsed = True
        if connection.number not in living:
            self.close(connection.number)  # again, for the reason that `Connections` has too: see _open_answered

    # ---- what goes wrong

    def warn(self, reply: Any) -> None:
        """Say it where Redis refused an update; a lost connection is told by the session."""
        if isinstance(reply, Exception) and not isinstance(reply, ConnectionError):
            self._refused_log.tell("Redis refused to update presence: %s", reply)

    def tell_rest(self) -> None:
        """Log how many refusals had no line of their own since the last call; to be called now and then."""
        self._refused_log.tell_rest()


def handover_mark(epoch: str) -> str:
    """Return what is published on the node's channel when its name passes to an instance."""
    return HANDOVER_HEAD + epoch


def refuses_writes(error: hiredis.ReplyError) -> bool:
    """Tell whether an error says that Redis takes no writes at the moment, though it does everything else."""
    return _REFUSES_WRITES.match(str(error)) is not None
