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
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

import hiredis

from freeim._core import Connection
from freeim.config import Options
from freeim.envelope import PROBE_HEAD
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


class Presence:
    """Takes the node's name, and opens and closes connections in Redis.

    Args:
        session: Where commands go.
        names: The deployment's keys.
        options: The node's options, with its name.
    """

    def __init__(self, session: Session, names: Names, options: Options) -> None:
        self.epoch = secrets.token_hex(16)
        self.nodes: tuple[str, ...] = ()
        self._session = session
        self._names = names
        self._options = options
        self._name = options.node or ""
        self._beats = 0
        self._closes: list[int] = []
        self.complete = True
        """Whether the last comparison put everything back."""
        self.restored = 0
        """Connections that Redis had lost and that were put back."""
        self.buried = 0
        """Connections of dead instances that were taken out."""
        self._refused_log = SparseLog(logging.WARNING, WARNINGS_PER_MINUTE, "Redis refused %d more such updates")

    # ---- the name

    async def take(self) -> None:
        """Take the node's name, register it and the list of nodes, and bury a dead predecessor.

        Raises:
            ConfigError: The name has a living owner, or the list of nodes differs from the one in use.
            hiredis.HiredisError, OSError: Redis failed.
        """
        names, options = self._names, self._options
        reply = await self._session.run_and_wait(
            load_script("take"),
            [names.lease(self._name), names.alive(self.epoch), names.shares, names.nodes, names.urls],
            names.prefix,
            self._name,
            self.epoch,
            LEASE_MS,
            int(options.takeover),
            json.dumps(options.nodes) if options.nodes else "",
            int(options.replace_nodes),
            options.public_url or "",
            1,  # this process has subscribed to the channel already
        )
        outcome, detail, *dead = (part.decode() for part in reply)
        if outcome == "TAKEN":
            raise ConfigError(
                f"a living process already is the node {self._name!r} (epoch {detail}); stop it, give this one another "
                "name with --node, or take its place with --takeover"
            )
        if outcome == "LIST":
            mine = options.nodes or (self._name,)
            raise ConfigError(
                f"the list of nodes differs from the one in use. Here: {', '.join(mine)}. Registered in Redis: "
                f"{', '.join(json.loads(detail))}. Start every node with the same --nodes in the same order; to change "
                "the list, stop all nodes first, or force it with --replace-nodes"
            )
        self.nodes = tuple(json.loads(detail))
        for epoch in dead:
            await self.bury(epoch)

    async def bury(self, epoch: str) -> int:
        """Take out all that a dead instance left behind, and return how many connections that was."""
        names = self._names
        total = 0
        while True:
            taken = await self._session.run_and_wait(
                load_script("close"),
                [names.share(epoch), names.online, names.list_chan, names.shares, names.alive(epoch)],
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

    async def beat(self) -> bool:
        """Renew the lease and send a probe; True where the life had ended and everything must be compared.

        Raises:
            NodeReplaced: Another process owns the name now.
            hiredis.HiredisError, OSError: Redis failed.
        """
        names = self._names
        self._beats += 1
        self._session.probe_sent(self._beats)
        reply = await self._session.run_and_wait(
            load_script("beat"),
            [
                names.lease(self._name),
                names.alive(self.epoch),
                names.shares,
                names.server(self._name),
                names.nodes,
                names.urls,
            ],
            self._name,
            self.epoch,
            LEASE_MS,
            f"{PROBE_HEAD}{self._beats}",
            json.dumps({"v": 1, "by": "mod", "nodes": self.nodes, "prev": None}, separators=(",", ":")),
            self._options.public_url or "",
        )
        if reply == b"REPLACED":
            raise NodeReplaced(f"another process took the name {self._name!r} over")
        return bool(reply == b"REVIVED")

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

    def forget(self, client_id: bytes) -> None:
        """Let Redis stop tracking a client that left: a key that was read while missing is tracked for good."""
        key = self._names.client("").encode() + client_id
        self._session.run(self.warn, load_script("touch"), [key])

    def _send_closes(self) -> None:
        closes, self._closes = self._closes, []
        self._take_out(closes)

    def _take_out(self, numbers: list[int]) -> None:
        names = self._names
        for start in range(0, len(numbers), CLOSES_PER_SCRIPT):
            self._session.run(
                self.warn,
                load_script("close"),
                [names.share(self.epoch), names.online, names.list_chan, names.shares, names.alive(self.epoch)],
                names.prefix,
                names.event_offline,
                "",
                *numbers[start : start + CLOSES_PER_SCRIPT],
            )

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
        share = {int(number) for number in await self._session.call("HKEYS", self._names.share(self.epoch))}
        # Closes that wait are sent too: the share was read before some of their openings.
        self._closes += [number for number in share if number not in living]
        self._send_closes()
        gaps = self._session.gaps
        missing = [connection for number, connection in living.items() if number not in share]
        refused: list[Connection] = []
        for number, connection in enumerate(missing, 1):
            # One that has closed meanwhile stays out; one that closes from here on sends its close after its open.
            if connection.number in living:
                on_reply = partial(self._put_back, connection, living, refused)
                self._run_open(connection, [], connection.client.channel_names, on_reply)
            if number % OPENS_PER_TURN == 0:
                await asyncio.sleep(0)
                if self._session.gaps != gaps:
                    raise LinkLost("the connection to Redis was lost while connections were put back")
        # One more round trip, behind all of these in the same pipeline: then they are done.
        await self._session.call("PING")
        self._send_closes()  # of those that closed meanwhile, while the session did not count as up
        self.complete = not refused
        self.restored += len(missing) - len(refused)
        if missing:
            log.info("put %d connections back that Redis had lost", len(missing) - len(refused))

    def _put_back(
        self, connection: Connection, living: dict[int, Connection], refused: list[Connection], reply: Any
    ) -> None:
        self.warn(reply)
        if isinstance(reply, Exception):
            refused.append(connection)
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


def refuses_writes(error: hiredis.ReplyError) -> bool:
    """Tell whether an error says that Redis takes no writes at the moment, though it does everything else."""
    return _REFUSES_WRITES.match(str(error)) is not None
