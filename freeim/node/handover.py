"""``--handover``: a node's place passes from one process to the next, with its listening socket, and nobody is refused.

For some time two instances of one name hear every message and deliver it to their own terminals. What must be done once
for both is done like this:

- Receipts are answered by one of them: by the predecessor up to the place in the stream of messages where the name
  passes, which both hear, then by the successor. Each knows of the other's connections (`Roster`).
- Offline is said by the successor alone, and only for a client that does not come back to it in time (lua/drain.lua).
- The lease of the name is the successor's; the predecessor's own life goes on beside it (`Stance`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from typing import Any, Final

import hiredis

from freeim.config import Options
from freeim.config_checks import split_bind
from freeim.errors import ConfigError, HandedOver
from freeim.names import default_prefix
from freeim.node.bus import Bus
from freeim.node.connections import Connections
from freeim.node.handover_door import Door
from freeim.node.handover_messages import Ask
from freeim.node.link import LinkLost
from freeim.node.predecessor import Predecessor
from freeim.node.presence import GRACE_SECONDS, Presence, Stance, handover_mark
from freeim.node.session import Session
from freeim.node.stream import Stream
from freeim.node.successor import Estate, Successor

log = logging.getLogger("freeim")

MARK_SECONDS: Final = 5.0
"""How long Redis may take from the moment that the name is taken until it is heard."""


class Handover:
    """Both sides of a hand-over: first the one to a predecessor, where there is one, then the one to a successor.

    Args:
        options: The node's options, with its name.

    Raises:
        ConfigError: The folder of the socket is not this user's own.
    """

    def __init__(self, options: Options) -> None:
        assert options.handover is not None
        self.epoch = secrets.token_hex(16)
        """The node's."""
        self._options = options
        self._path = options.handover
        self._door = Door(self._path)
        self._predecessor: Predecessor | None = None
        self._successor: Successor | None = None
        self._on_served: Callable[[], None] = lambda: None
        self._passed = asyncio.Event()
        self._busy_until = 0.0
        self._gaps = 0
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- from a predecessor

    async def ask(self, *, needed: bool) -> None:
        """Ask for the sockets of a predecessor, where there is one.

        Args:
            needed: False where one that serves already makes this process unnecessary.

        Raises:
            ConfigError: There is one, and it does not hand over to this process.
            HandedOver: This process is not needed.
        """
        options = self._options
        assert options.node is not None
        ask = Ask(
            epoch=self.epoch,
            pid=os.getpid(),
            release=version("freeim"),
            node=options.node,
            bind=options.bind,
            prefix=options.prefix or default_prefix(options.path, options.ids),
            path=options.path,
            ids=options.ids,
            nodes=options.nodes,
        )
        self._predecessor = await Predecessor.ask(self._path, ask)
        if self._predecessor is not None and not needed:
            raise HandedOver(f"another process serves the node {options.node} already")

    @property
    def sock(self) -> socket.socket | None:
        """The predecessor's listening socket."""
        return None if self._predecessor is None else self._predecessor.sock

    def admin_socket(self, wanted: tuple[str, int]) -> socket.socket | None:
        """The predecessor's socket for the metrics, where that is at the wanted host and port (0: any)."""
        predecessor = self._predecessor
        if predecessor is None or predecessor.admin is None:
            return None
        host, port = split_bind(predecessor.admin_address)
        if wanted not in ((host, port), (host, 0)):
            return None
        sock, predecessor.admin = predecessor.admin, None
        return sock

    def join(
        self, bus: Bus, presence: Presence, session: Session, connections: Connections, stream: Stream | None
    ) -> None:
        """Get to know the rest of the node."""
        self._bus = bus
        self._presence = presence
        self._session = session
        self._connections = connections
        self._stream = stream
        if self._predecessor is not None:
            self._predecessor.on_refused = self._refused

    async def take(self) -> list[str] | None:
        """Take the name of the predecessor; None where there is none that lives.

        Returns:
            The epochs of others of this name that are dead; see `Presence.take`.

        Raises:
            ConfigError, hiredis.HiredisError, OSError: See `Presence.take`.
        """
        predecessor, router = self._predecessor, self._bus.router
        if predecessor is None or not await predecessor.all_told(router, self._stream):
            return None
        if self._stream is not None:
            await self._stream.follow()
        router.opener = handover_mark(self.epoch).encode()
        dead = await self._presence.take(predecessor.epoch)
        try:
            async with asyncio.timeout(MARK_SECONDS):
                await self._passed.wait()
        except TimeoutError:
            raise LinkLost("the node does not hear its own channel") from None
        if self._stream is not None:
            await self._stream.succeed()
        return dead

    def check(self) -> None:
        """Look whether the predecessor still hands over.

        Raises:
            ConfigError: It has given this process up.
        """
        if self._predecessor is not None and self._predecessor.refused:
            raise ConfigError(
                f"the process at {self._path!r} does not hand over: {self._predecessor.refused}", "handover"
            )

    def _refused(self) -> None:
        # Whether this process has begun to serve or not: it answers no receipt from here on, and loses the name.
        self._bus.router.open = False
        self._bus.router.opener = None
        self._session.beat_now()

    def passed(self, epoch: str) -> None:
        """The name has passed to an instance, at this place in the stream of messages."""
        if epoch == self.epoch:
            if self._stream is not None and not self._passed.is_set():
                self._stream.take_over()
            self._passed.set()
        elif epoch == self._presence.heir:
            if self._presence.stance == Stance.BACK:
                self._session.beat_now()  # what it had sent before its end came late: take the name back
            else:
                self._mute()

    def serving(self, estate: Estate, on_served: Callable[[], None]) -> None:
        """This instance accepts connections: tell the predecessor, and be ready for a successor.

        Args:
            estate: What there is to hand over one day.
            on_served: A successor serves: accept nobody any more.
        """
        predecessor = self._predecessor
        if predecessor is not None:
            if predecessor.admin is not None:
                predecessor.admin.close()  # the metrics are somewhere else from now on
            predecessor.serving()
            if predecessor.ended:
                self._predecessor_ended(in_peace=False)
            else:
                predecessor.on_end = self._predecessor_ended
                self._connections.on_changed = predecessor.changed
                self._busy_until = float("inf")
        self._on_served = on_served
        try:
            self._door.open()
        except OSError as error:
            log.error("the socket %s cannot be put in place, so nobody can succeed this process: %s", self._path, error)
            return
        self._successor = Successor(
            self._door,
            estate,
            is_busy=self._why_busy,
            on_offered=self._offered,
            on_lost=self._successor_lost,
            on_served=self._successor_serves,
        )

    def _predecessor_ended(self, in_peace: bool) -> None:
        assert self._predecessor is not None
        self._connections.on_changed = None
        self._busy_until = self._loop.time() + GRACE_SECONDS
        if self._stream is not None:
            self._stream.begin()
        if not in_peace:
            log.warning("process %d ended before it had closed its last connection", self._predecessor.pid)
            self._spawn(self._count_as_dead(self._predecessor.epoch, bury=True))

    async def _count_as_dead(self, epoch: str, *, bury: bool) -> None:
        """Do at once what others would do once the lease has run out; they will, where this fails."""
        with contextlib.suppress(OSError, hiredis.HiredisError):
            if await self._presence.declare_dead(epoch) and bury:
                await self._presence.bury(epoch)

    # ---- to a successor

    def _why_busy(self) -> str:
        if self._loop.time() < self._busy_until:
            return (
                "it has taken over itself a moment ago, and waits for the terminals of its predecessor; try again later"
            )
        return ""

    def _offered(self, epoch: str) -> None:
        assert self._successor is not None
        self._presence.heir = epoch
        self._presence.stance = Stance.OFFERED
        if self._stream is not None:
            self._stream.offer()
        self._connections.on_changed = self._successor.changed
        self._gaps = self._session.gaps

    def _successor_lost(self) -> None:
        assert self._successor is not None
        self._connections.on_changed = None
        if self._successor.served:
            # So that the name is free at once.
            self._spawn(self._count_as_dead(self._presence.heir, bury=False))
        else:
            self._presence.stance = Stance.BACK
            self._session.beat_now()
            if self._stream is not None:
                self._stream.take_back()

    def _successor_serves(self) -> None:
        self._presence.stance = Stance.DRAINS
        self._connections.handed_over = True
        if self._session.gaps != self._gaps:
            self.recovered()
        log.info("handed over; sending %d terminals away over %g s", len(self._connections.living), self._options.drain)
        self._on_served()

    def recovered(self) -> None:
        """The stream of messages had a gap, and the place where the name passed may have been in it."""
        if self._presence.stance == Stance.DRAINS:
            self._mute()

    def _mute(self) -> None:
        self._bus.router.mute_receipts(self._bus.unrouted)

    # ---- the end

    async def finish(self) -> None:
        """The last connection has closed, and Redis knows it."""
        if self._successor is not None:
            await self._successor.finish()

    def close(self) -> None:
        """End everything."""
        for task in self._tasks:
            task.cancel()
        if self._predecessor is not None:
            self._predecessor.close()
        if self._successor is not None:
            self._successor.close()
        else:
            self._door.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
