"""Node instances whose every command waits until the history lets Redis execute it, and every reply until it is read.

`Instance` has the real `Presence`; what it adds is what `Connections` and `Session` do around it.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from freeim._core import Connection
from freeim.config import Options
from freeim.errors import ConfigError, NodeReplaced
from freeim.node.link import LinkLost
from freeim.node.presence import FENCED, GONE, USED, Presence, Stance
from freeim.node.session import Session
from freeim.scripts import Script

if TYPE_CHECKING:
    from tests.histories.desk import Desk

NODES = ("n0", "n1")

Command = tuple[Script | None, list[str | bytes], tuple[str | bytes | int, ...]]
"""A script with its KEYS and ARGV; or None and a plain command in place of ARGV."""
Callback = Callable[[Any], None]


@dataclass
class Client:
    """A client at one instance, with the channels that the instance has last read."""

    id: bytes
    channel_names: list[bytes] = field(default_factory=list)


@dataclass(eq=False)
class Conn:
    """What `Presence` wants of a connection, and what is true of it."""

    number: int
    client: Client
    token_json: str
    token: str
    socket: bool = True
    opening: bool = True
    counted: bool = False
    """Whether its Online is the last event that was published for it."""
    handed_over: bool = False
    """It was taken out without an event: whether its client is offline is for another instance to say."""


class Pipe:
    """In place of a `Session`: commands and replies in their order, until the connection is cut."""

    def __init__(self) -> None:
        self.connected = True
        self.up = False
        self.gaps = 0
        self.sent: deque[tuple[Command, Callback]] = deque()
        self.replies: deque[tuple[Callback, Any]] = deque()

    def send(self, callback: Callback, command: Command) -> None:
        if self.connected:
            self.sent.append((command, callback))
        else:
            callback(LinkLost("cut"))

    def cut(self) -> None:
        self.connected = self.up = False
        self.gaps += 1
        lost = [callback for callback, _ in self.replies] + [callback for _, callback in self.sent]
        self.replies.clear()
        self.sent.clear()
        for callback in lost:
            callback(LinkLost("cut"))

    # ---- what Presence uses of a Session

    def run(self, callback: Callback, script: Script, keys: list[str | bytes], *args: str | bytes | int) -> None:
        self.send(callback, (script, keys, args))

    async def run_and_wait(self, script: Script, keys: list[str | bytes], *args: str | bytes | int) -> Any:
        return await self._answer((script, keys, args))

    async def call(self, *args: str | bytes | int) -> Any:
        return await self._answer((None, [], args))

    def probe_sent(self, number: int) -> None:
        """Nobody measures how long a probe takes."""

    async def _answer(self, command: Command) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def on_reply(reply: Any) -> None:
            if not future.done():
                future.set_exception(reply) if isinstance(reply, Exception) else future.set_result(reply)

        self.send(on_reply, command)
        return await future


class Instance:
    """One life of a node.

    Args:
        desk: What it stands on.
        name: The node's name.
        takeover: Whether it takes the name of a living one.
        predecessor: The instance that hands its name over, as the one before and after `Successor` does.
    """

    def __init__(self, desk: Desk, name: str, takeover: bool = False, predecessor: Instance | None = None) -> None:
        self.name = name
        self.desk = desk
        self.pipe = Pipe()
        options = Options(node=name, nodes=NODES, takeover=takeover)
        self.presence = Presence(cast(Session, self.pipe), desk.names, options)
        self.epoch = self.presence.epoch = desk.new_epoch()
        self.here = True  # the process exists
        self.frozen = False
        self.draining = False
        self.losses = 0
        """How often Redis has forgotten that it lives."""
        self._compared = 0
        self.living: dict[int, Conn] = {}
        self.conns: list[Conn] = []  # all whose end this process has not seen
        self._numbers = 0
        self._clients: dict[str, Client] = {}
        self._fenced: list[Conn] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.predecessor = predecessor
        self.successor: Instance | None = None
        self.serves = False
        self.awaited: list[str] = []
        """Clients that have some time to come back."""
        vars(self.presence)["await_return"] = self.await_return
        if predecessor is not None:
            predecessor.successor = self
            predecessor.presence.heir = self.epoch
            predecessor.presence.stance = Stance.OFFERED
        desk.subscribe(self)
        self.begin(self._start())

    @property
    def busy(self) -> bool:
        return bool(self._tasks)

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except LinkLost:
            self.cut()
        except NodeReplaced:
            self.drain()
        except ConfigError:
            self.kill()

    async def _start(self) -> None:
        predecessor = self.predecessor
        dead = await self.presence.take(predecessor.epoch if predecessor is not None else "")
        self.pipe.up = self.pipe.connected
        if predecessor is None:
            await self.presence.look_for_gone()
        self.serves = True
        if predecessor is not None:
            predecessor.presence.stance = Stance.DRAINS
        for epoch in dead:  # while it serves: there may be much of it
            self.begin(self.bury(epoch))

    def await_return(self, clients: Iterable[str]) -> None:
        self.awaited += clients

    def give_up(self) -> None:
        """The time of those who were to come back is over."""
        clients, self.awaited = self.awaited, []
        self.presence._give_up([GONE + client for client in clients])

    async def beat(self) -> None:
        losses = self.losses
        if await self.presence.beat() or not self.presence.complete:
            await self._reconcile(losses)
        self._retry_fenced()

    async def recover(self) -> None:
        self.pipe.connected = True
        replaced = False
        losses = self.losses
        try:
            await self.presence.beat()
        except NodeReplaced:
            replaced = True
        await self._reconcile(losses)
        self.pipe.up = self.pipe.connected
        if replaced:
            self.drain()
        else:
            self._retry_fenced()

    async def _reconcile(self, losses: int) -> None:
        await self.presence.reconcile(cast(dict[int, Connection], self.living))
        self._compared = losses

    async def bury(self, epoch: str) -> None:
        await self.presence.bury(epoch)

    async def release(self) -> None:
        self.presence.flush()
        await self.presence.give_up_all()
        await self.presence.release()
        self.predecessor = self.successor = None  # who has said that it ends is not looked for
        self.kill()

    # ---- connections, as freeim/node/connections.py treats them

    def open(self, client_id: str, token: str | None = None) -> Conn:
        self._numbers += 1
        client = self._clients.setdefault(client_id, Client(client_id.encode()))
        text = json.dumps({"Item1": int(client_id), "Item2": f"{self.epoch}/{self._numbers}"}, separators=(",", ":"))
        conn = Conn(self._numbers, client, text, token or self.desk.new_token())
        self.conns.append(conn)
        self.desk.conns[f"{self.epoch}/{conn.number}"] = conn
        self._send_open(conn)
        return conn

    def _send_open(self, conn: Conn) -> None:
        self.presence.open(cast(Connection, conn), conn.token, lambda reply: self._opened(conn, reply))

    def _opened(self, conn: Conn, reply: Any) -> None:
        if not conn.opening:
            self.presence.close(conn.number)
        elif isinstance(reply, int) and reply not in (FENCED, USED):
            conn.opening = False
            self.living[conn.number] = conn
        elif reply == FENCED:
            self._fenced.append(conn)
        else:  # refused: the node ends the socket
            conn.socket = False
            self.gone(conn)

    def _retry_fenced(self) -> None:
        fenced, self._fenced = self._fenced, []
        for conn in fenced:
            if conn.opening:
                self._send_open(conn)

    def gone(self, conn: Conn) -> None:
        """The process learns that a socket is gone."""
        conn.opening = False
        self.conns.remove(conn)
        self.living.pop(conn.number, None)
        self.presence.close(conn.number)

    def drain(self) -> None:
        self.draining = True
        for conn in list(self.conns):
            conn.socket = False
            self.gone(conn)

    # ---- what happens to it

    def cut(self) -> None:
        if self.pipe.connected:
            self.pipe.cut()
            if not self.serves:
                self.kill()  # a process that cannot start ends

    def thaw(self) -> None:
        self.frozen = False
        for conn in [conn for conn in self.conns if not conn.socket]:
            self.gone(conn)

    def kill(self) -> None:
        """The process ends; what it has sent may have been executed before."""
        self.here = False
        self.pipe.connected = self.pipe.up = False
        self.pipe.sent.clear()
        self.pipe.replies.clear()
        for conn in self.conns:
            conn.socket = False
        for task in self._tasks:
            task.cancel()
        self.desk.unsubscribe(self)
        if self.predecessor is not None and self.predecessor.successor is self:
            if not self.serves:
                self.predecessor.presence.stance = Stance.BACK
            elif self.predecessor.here:
                self.predecessor.begin(self.predecessor._count_as_dead(self.epoch))
        if self.successor is not None and self.successor.here and self.successor.serves:
            self.successor.begin(self.successor._bury_at_once(self.epoch))

    async def _count_as_dead(self, epoch: str) -> None:
        await self.presence.declare_dead(epoch)

    async def _bury_at_once(self, epoch: str) -> None:
        if await self.presence.declare_dead(epoch):
            await self.presence.bury(epoch)

    @property
    def hears(self) -> bool:
        """Whether it reads memberships as they change.

        What Redis says of them is not believed from a loss until all has been compared (see `Session` and `Bus`).
        """
        return self.here and not self.frozen and self.pipe.up and self._compared == self.losses
