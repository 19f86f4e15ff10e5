"""The predecessor's side of a hand-over: gives the listening sockets away, once, to whoever asks and comes to serve.

Until the successor serves nothing has changed for anybody: this instance accepts and serves, and goes on where the
other one fails. From that moment on it accepts nobody, and drains.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from freeim._core import Client, Router
from freeim.node.handover_door import Door, is_same_user, send
from freeim.node.handover_link import Link, Roster
from freeim.node.handover_messages import (
    MAX_LINE,
    Ask,
    BadMessage,
    Clients,
    Complete,
    Done,
    Message,
    Offer,
    Refused,
    Serving,
    decode,
    encode,
)

if TYPE_CHECKING:
    from freeim.node.stream import Stream

log = logging.getLogger("freeim")

ASK_SECONDS: Final = 5.0
"""How long somebody who has connected may take to say what he wants."""
START_SECONDS: Final = 60.0
"""How long a successor may take until it serves: what Redis may take at a start, twice."""
DONE_SECONDS: Final = 1.0
"""How long the last word may take."""
MAX_TALKS: Final = 4
"""Connections that have not said yet what they want."""


@dataclass(frozen=True, slots=True)
class Estate:
    """What this instance serves.

    Attributes:
        epoch: Its epoch.
        node: Its name.
        bind: Where it listens.
        prefix: The beginning of its keys in Redis.
        path: The path of its endpoint.
        ids: Its kind of client id.
        nodes: The list of nodes that it runs with.
        sock: The listening socket.
        admin: That of the metrics, and its address; None where there is none.
        router: Who is here.
        stream: The node's, where it has one.
    """

    epoch: str
    node: str
    bind: str
    prefix: str
    path: str
    ids: str
    nodes: tuple[str, ...]
    sock: socket.socket
    admin: tuple[socket.socket, str] | None
    router: Router
    stream: Stream | None

    def refuse(self, ask: Ask) -> str:
        """Return why a process cannot be the successor; "" where it can."""
        for what, theirs, ours in (
            ("name", ask.node, self.node),
            ("address", ask.bind, self.bind),
            ("prefix", ask.prefix, self.prefix),
            ("path", ask.path, self.path),
            ("kind of ids", ask.ids, self.ids),
        ):
            if theirs != ours:
                return f"it has another {what}: {theirs!r} there, {ours!r} here"
        if ask.nodes and ask.nodes != self.nodes:
            return (
                f"it has another list of nodes: {', '.join(ask.nodes)} there, {', '.join(self.nodes)} here; a list "
                "cannot be changed in a hand-over"
            )
        return ""


class Successor:
    """Serves at the socket of ``--handover``.

    Args:
        door: Its socket.
        estate: What there is to hand over.
        is_busy: Returns why there can be no hand-over at the moment, or "".
        on_offered: Gets the epoch of a process that may take the name from now on.
        on_lost: That process has ended, or was too slow; see `served`.
        on_served: That process serves: accept nobody any more, and drain.
    """

    def __init__(
        self,
        door: Door,
        estate: Estate,
        *,
        is_busy: Callable[[], str],
        on_offered: Callable[[str], None],
        on_lost: Callable[[], None],
        on_served: Callable[[], None],
    ) -> None:
        self.served = False
        self._door = door
        self._estate = estate
        self._is_busy = is_busy
        self._on_offered = on_offered
        self._on_lost = on_lost
        self._on_served = on_served
        self._loop = asyncio.get_running_loop()
        self._talks: set[asyncio.Task[None]] = set()
        self._link: Link | None = None
        self._roster: Roster | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._loop.add_reader(door.sock.fileno(), self._knocked)

    def changed(self, client: Client) -> None:
        """A client got a connection here, or lost one."""
        if self._roster is not None:
            self._roster.changed(client)

    async def finish(self) -> None:
        """The last connection has closed: tell the successor."""
        link, self._link = self._link, None
        if link is not None:
            link.send(Done())
            link.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DONE_SECONDS):
                    await asyncio.shield(link.ended)

    def close(self) -> None:
        """End it; a successor that has not served yet is left with what it has."""
        self._shut(leave=self.served)
        for talk in self._talks:
            talk.cancel()
        if self._deadline is not None:
            self._deadline.cancel()
        if self._link is not None:
            link, self._link = self._link, None
            link.abort()

    def _shut(self, *, leave: bool) -> None:
        if self._door.sock.fileno() >= 0:
            self._loop.remove_reader(self._door.sock.fileno())
            self._door.close(leave=leave)

    # ---- who comes

    def _knocked(self) -> None:
        try:
            conn, _ = self._door.sock.accept()
        except OSError:
            return
        if len(self._talks) >= MAX_TALKS or not is_same_user(conn):
            log.warning("refused a connection to the socket of --handover: another user's, or too many at once")
            conn.close()
            return
        conn.setblocking(False)
        talk = self._loop.create_task(self._talk(conn))
        self._talks.add(talk)
        talk.add_done_callback(self._talks.discard)

    async def _talk(self, conn: socket.socket) -> None:
        """Hear what somebody wants, and answer."""
        try:
            async with asyncio.timeout(ASK_SECONDS):
                ask, reason = await self._read_ask(conn)
            if ask is not None and not reason:
                reason = self._is_busy() or ("it hands over to another process already" if self._link else "")
                reason = reason or self._estate.refuse(ask)
            if ask is None or reason:
                log.warning("refused to hand the node %s over: %s", self._estate.node, reason)
                conn.send(encode(Refused(reason)))
                conn.close()
                return
            await self._offer(conn, ask)
        except OSError:  # a time-out is one too
            conn.close()
        except BaseException:
            conn.close()
            raise

    async def _read_ask(self, conn: socket.socket) -> tuple[Ask | None, str]:
        data = b""
        while b"\n" not in data:
            more = await self._loop.sock_recv(conn, 65536)
            if not more:
                raise ConnectionResetError
            data += more
            if len(data) > MAX_LINE:
                return None, "a line is too long"
        try:
            message = decode(data.partition(b"\n")[0])
        except BadMessage as error:
            return None, str(error)
        return (message, "") if isinstance(message, Ask) else (None, "it asks for nothing")

    async def _offer(self, conn: socket.socket, ask: Ask) -> None:
        estate = self._estate
        sockets = [estate.sock] if estate.admin is None else [estate.sock, estate.admin[0]]
        link = self._link = Link(self._told, self._ended)
        try:
            offer = Offer(estate.epoch, os.getpid(), "" if estate.admin is None else estate.admin[1])
            self._on_offered(ask.epoch)  # before it can have the name
            send(conn, encode(offer), sockets)
            await self._loop.create_unix_connection(lambda: link, sock=conn)
        except OSError:
            self._link = None
            self._on_lost()
            raise
        log.info("handing the node %s over to process %d (freeim %s)", estate.node, ask.pid, ask.release)
        place_of = None if estate.stream is None else estate.stream.place_of
        self._roster = Roster(estate.router, link, place_of=place_of)
        self._roster.tell_all()
        self._deadline = self._loop.call_later(START_SECONDS, self._too_slow)

    def _too_slow(self) -> None:
        log.warning("the successor does not serve after %.0f s; going on without it", START_SECONDS)
        if self._link is not None:
            # It may live, and must not answer for this node any more.
            self._link.send(Refused(f"it did not serve within {START_SECONDS:.0f} s"))
            self._link.close()
            # One that reads nothing would hold the link, and with it the place of the next one, for good.
            self._loop.call_later(DONE_SECONDS, self._link.abort)

    # ---- what it says

    def _told(self, message: Message) -> None:
        if isinstance(message, Clients) and self._roster is not None:
            self._roster.learn(message.counts)
        elif isinstance(message, Serving) and not self.served:
            self.served = True
            if self._deadline is not None:
                self._deadline.cancel()
            self._shut(leave=True)
            self._on_served()
        elif not isinstance(message, Complete):
            raise BadMessage(f"a {type(message).__name__} is out of place")

    def _ended(self) -> None:
        if self._roster is not None:
            self._roster.end()
            self._roster = None
        if self._link is None:
            return  # ended by ourselves
        self._link = None
        if self._deadline is not None:
            self._deadline.cancel()
        if self.served:
            log.warning("the successor is gone; draining all the same")
        else:
            log.warning("the successor ended before it served; going on as before")
        self._on_lost()
