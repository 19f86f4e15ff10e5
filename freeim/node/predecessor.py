"""The successor's side of a hand-over: gets the listening sockets, and watches the instance that drains."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Self

from freeim._core import Client, Router
from freeim.errors import ConfigError
from freeim.node.handover_door import is_listener, knock, receive
from freeim.node.handover_link import Link, Roster
from freeim.node.handover_messages import (
    Ask,
    BadMessage,
    Clients,
    Complete,
    Done,
    Left,
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

ANSWER_SECONDS: Final = 5.0
"""How long the predecessor may take for its offer."""
CLIENTS_SECONDS: Final = 20.0
"""How long it may take to tell of all its clients."""


class Predecessor:
    """The instance that has served under this node's name so far.

    Args:
        offer: What it has offered.
        sock: The listening socket.
        admin: That of the metrics; None where it has none.
    """

    def __init__(self, offer: Offer, sock: socket.socket, admin: socket.socket | None) -> None:
        self.epoch = offer.epoch
        self.pid = offer.pid
        self.sock = sock
        self.admin_address = offer.admin
        self.admin = admin
        self.on_end: Callable[[bool], None] | None = None
        """Called when it has ended: True where it has closed its last connection in peace."""
        self.on_refused: Callable[[], None] | None = None
        """Called where it has given this process up, and serves on."""
        self.refused = ""
        """Why it has."""
        self._link = Link(self._told, self._ended)
        self._complete: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._early: list[Clients] = []
        self._roster: Roster | None = None
        self._done = False

    # ---- the beginning

    @classmethod
    async def ask(cls, path: str, ask: Ask) -> Self | None:
        """Ask whoever serves at a path for its sockets; None where nobody does.

        Raises:
            ConfigError: Somebody does, and does not hand over to this process.
        """
        sock = await knock(path)
        if sock is None:
            return None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await asyncio.get_running_loop().sock_sendall(sock, encode(ask))
                line, rest, sockets = await _first_line(sock)
        except TimeoutError:
            sock.close()
            raise ConfigError(
                f"the process at --handover {path!r} does not answer; end it, or start this one without --handover",
                "handover",
            ) from None
        except (OSError, BadMessage):
            sock.close()
            return None  # it has just ended
        try:
            predecessor = cls._accept(path, line, sockets)
        except BaseException:
            sock.close()
            for each in sockets:
                each.close()
            raise
        await asyncio.get_running_loop().create_unix_connection(lambda: predecessor._link, sock=sock)
        predecessor._link.feed(rest)
        log.info("process %d hands the node %s over", predecessor.pid, ask.node)
        return predecessor

    @classmethod
    def _accept(cls, path: str, line: bytes, sockets: list[socket.socket]) -> Self:
        try:
            answer = decode(line)
        except BadMessage as error:
            raise ConfigError(
                f"the process at --handover {path!r} cannot hand over to this release: {error}", "handover"
            ) from error
        if isinstance(answer, Refused):
            raise ConfigError(f"the process at --handover {path!r} does not hand over: {answer.reason}", "handover")
        wanted = 2 if isinstance(answer, Offer) and answer.admin else 1
        if not isinstance(answer, Offer) or len(sockets) != wanted or not all(map(is_listener, sockets)):
            raise ConfigError(f"the process at --handover {path!r} did not hand over a listening socket", "handover")
        for each in sockets:
            each.setblocking(False)
        return cls(answer, sockets[0], sockets[1] if answer.admin else None)

    async def all_told(self, router: Router, stream: Stream | None) -> bool:
        """Wait until its clients are known to the router; False where it has ended.

        Args:
            router: The node's.
            stream: The node's, where it has one.

        Raises:
            ConfigError: It took too long.
        """
        self._roster = roster = Roster(router, self._link, stream=stream)
        for each in self._early:
            roster.learn(each.counts)
        self._early.clear()
        try:
            async with asyncio.timeout(CLIENTS_SECONDS):
                lives = await asyncio.shield(self._complete)
        except TimeoutError:
            raise ConfigError(f"process {self.pid} does not tell of its clients, so it cannot hand over") from None
        if self._link.ended.done():
            roster.end()
            return False
        return lives

    def serving(self) -> None:
        """Tell it that this instance accepts connections; it accepts no more from then on."""
        self._link.send(Serving())

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._link.ended.done()

    def changed(self, client: Client) -> None:
        """A client got a connection here, or lost one."""
        if self._roster is not None and not self._link.ended.done():
            self._roster.changed(client)

    def close(self) -> None:
        """This instance ends, or could not start: leave it alone."""
        self.on_end = None
        self._link.abort()
        for sock in (self.sock, self.admin):
            if sock is not None:
                sock.close()

    # ---- what it says

    def _told(self, message: Message) -> None:
        if isinstance(message, Clients):
            if self._roster is not None:
                self._roster.learn(message.counts)
            else:
                self._early.append(message)
        elif isinstance(message, Left):
            if self._roster is not None:
                self._roster.learn_left(message.places)
            else:
                self._early.append(Clients(dict.fromkeys(message.places, 0)))
        elif isinstance(message, Complete):
            if not self._complete.done():
                self._complete.set_result(True)
        elif isinstance(message, Refused):
            self.refused = message.reason
            if self.on_refused is not None:
                self.on_refused()
        elif isinstance(message, Done):
            self._done = True
            log.info("process %d has closed its last connection and ends", self.pid)
        else:
            raise BadMessage(f"a {type(message).__name__} is out of place")

    def _ended(self) -> None:
        if not self._complete.done():
            self._complete.set_result(False)
        if self._roster is not None:
            self._roster.end()
        if self.on_end is not None:
            self.on_end(self._done)


async def _first_line(sock: socket.socket) -> tuple[bytes, bytes, list[socket.socket]]:
    """Read the answer; return it, what came behind it, and the sockets that came along."""
    data = b""
    sockets: list[socket.socket] = []
    while b"\n" not in data:
        more, found = await receive(sock)
        sockets += found
        if not more or len(data) > 65536:
            for each in sockets:
                each.close()
            raise BadMessage("no whole line")
        data += more
    line, _, rest = data.partition(b"\n")
    return line, rest, sockets
