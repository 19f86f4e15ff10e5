"""One node: start, run, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self

import hiredis

from freeim._core import Message
from freeim.config import Options
from freeim.envelope import direct, direct_tail, receipt_text
from freeim.errors import NodeReplaced
from freeim.names import Names, connect_url, default_prefix, owners, parse_client_id
from freeim.node.accept import Acceptor, listen
from freeim.node.bus import Bus
from freeim.node.connections import Connections
from freeim.node.handshake import Handshake
from freeim.node.presence import Presence
from freeim.node.session import Session, describe
from freeim.redis_url import parse_redis_url

log = logging.getLogger("freeim")

IDLE_REREADS = 1000
"""Re-reads between two beats that found nothing new; with more, Redis is asked whether its tracking table is full."""

RELEASE_TIMEOUT = 3.0
"""Seconds that a stopping node gives Redis for the last words."""


class Node:
    """A node inside of a running event loop; ``freeim-server`` is a thin shell over it.

    ::

        async with Node(Options(bind="127.0.0.1:6001")) as node:
            await node.finished()

    Args:
        options: The options of one node (of several workers: `Options.for_worker`).
        barrier: Only for tests: False lets messages overtake the re-reading of memberships.
    """

    def __init__(self, options: Options | None = None, *, barrier: bool = True) -> None:
        self.options = options if options is not None else Options()
        self._barrier = barrier
        self._sock: socket.socket | None = None
        self._end: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._comparing = False
        self._forgotten = 0
        """How often Redis dropped all its keys."""
        self._tracking_limit = 0

    # ---- life

    async def start(self) -> None:
        """Listen, connect to Redis, take the node's name, and accept connections.

        Raises:
            ConfigError: The options contradict what other nodes registered, or the name has a living owner.
            RedisUnavailable: Redis cannot be reached.
            OSError: The address cannot be bound.
        """
        loop = asyncio.get_running_loop()
        address = parse_redis_url(self.options.redis_url_with_password())
        self._end = loop.create_future()
        host, port = self.options.address
        self._sock = listen(host, port, self.options.backlog, self.options.send_buffer)
        try:
            # With port 0 the name becomes known only now.
            self.options = options = self.options.for_worker(0, port=self._sock.getsockname()[1])
            assert options.node is not None
            self._redis = describe(address)
            self._names = names = Names(options.prefix or default_prefix(options.path, options.ids))
            self._session = Session(address, names.server(options.node), self)
            self._presence = Presence(self._session, names, options)
            self._connections = Connections(options, names, self._session, self._presence)
            self._bus = Bus(
                options,
                names,
                self._session,
                self._connections,
                self._send_receipt,
                self._on_forgotten,
                barrier=self._barrier,
            )
            self._connections.router = self._bus.router
            self._acceptor = Acceptor(self._sock, lambda: Handshake(self._connections))
            self._connections.on_closed = self._acceptor.closed
            await self._session.start(self._take)
        except BaseException:
            self._sock.close()
            self._sock = None
            raise
        self._connections.start()
        self._acceptor.start()

    async def _take(self) -> None:
        await self._presence.take()
        self._bus.router.set_tracking(self._session.tracking)
        self._bus.open = True
        await self._warn_about_redis()

    async def stop(self) -> None:
        """Stop: accept no more, close every connection with 1012, take everything out of Redis.

        Takes at most the drain time, the close time-out and `RELEASE_TIMEOUT`.
        """
        if self._sock is None:
            return
        self._acceptor.stop()
        await self._connections.drain()
        await self._connections.stop()
        if self._session.up:
            with contextlib.suppress(OSError, TimeoutError, hiredis.HiredisError):
                async with asyncio.timeout(RELEASE_TIMEOUT):
                    await self._presence.release()
        self._sock.close()
        self._sock = None
        await self._session.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def finished(self) -> None:
        """Wait until the node ends by itself.

        Raises:
            NodeReplaced: Another process took its name; `stop` is still to be called.
        """
        assert self._end is not None, "the node was not started"
        await asyncio.shield(self._end)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # ---- what it is

    @property
    def name(self) -> str:
        """The node's name in the list of nodes."""
        assert self.options.node is not None
        return self.options.node

    @property
    def nodes(self) -> tuple[str, ...]:
        """The list of nodes that clients are partitioned over."""
        return self._presence.nodes

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self.options.address[1]

    @property
    def url(self) -> str:
        """What terminals connect to, without the token."""
        return connect_url(self.name, self.options.public_url, self.options.path, "").removesuffix("?token=")

    def banner(self) -> str:
        """Return a few lines that say what runs where."""
        options = self.options
        membership = "by client, with CLIENT TRACKING"
        if not self._session.tracking:
            membership = f"by channel, as FreeIM does it ({self._session.tracking_refused})"
        return "\n".join(
            [
                f"freeim {version('freeim')}: node {self.name}",
                f"  listens on   {options.bind}",
                f"  connect URL  {self.url}?token=...",
                f"  nodes        {', '.join(self.nodes)}",
                f"  Redis        {self._redis}, names begin with {self._names.prefix}, {options.ids} ids",
                f"  membership   {membership}",
                f"  connections  up to {self._acceptor.capacity:,} ({self._acceptor.limit:,} descriptors)",
            ]
        )

    # ---- what the session asks

    def on_message(self, payload: bytes) -> None:
        self._bus.on_message(payload)

    def on_invalidate(self, keys: list[bytes] | None) -> None:
        self._bus.on_invalidate(keys)

    def on_received(self) -> None:
        self._bus.on_received()

    def on_gap(self) -> None:
        self._bus.hold()

    async def recover(self) -> None:
        """After a reconnect: renew the lease, compare presence, read memberships again."""
        compared = -1
        while compared != self._forgotten:  # Redis dropped its keys meanwhile: what was just put back is gone again
            compared = self._forgotten
            await self._renew()
            await self._presence.reconcile(self._connections.living)
        self._bus.reread_all(self._session.tracking)
        self._connections.retry_fenced()

    async def beat(self) -> None:
        """Renew the lease; where the life had ended, compare presence."""
        if await self._renew():
            await self._presence.reconcile(self._connections.living)
        self._connections.retry_fenced()
        await self._watch_tracking()

    async def _watch_tracking(self) -> None:
        """Give tracking up where Redis has no room for all clients: it invalidates at random, and we read for ever."""
        idle, self._bus.idle_rereads = self._bus.idle_rereads, 0
        if not self._session.tracking or idle < max(IDLE_REREADS, len(self._bus.router.clients)):
            return
        if self._tracking_limit and await self._tracked_keys() >= 0.9 * self._tracking_limit:
            reason = f"more clients than tracking-table-max-keys ({self._tracking_limit}) in this Redis"
            log.error("%s: from now on each channel message costs a look-up of its channel's members", reason)
            self._session.stop_tracking(reason)
            self._bus.fall_back()

    async def _renew(self) -> bool:
        try:
            return await self._presence.beat()
        except NodeReplaced as error:
            if self._end is not None and not self._end.done():
                self._end.set_exception(error)
            return False

    # ---- what the bus asks

    def _send_receipt(self, message: Message, receiver: bytes, delivered: bool) -> None:
        ids = self.options.ids
        sender = parse_client_id(message.sender.decode(), ids)
        source = parse_client_id(receiver.decode(), ids)
        if sender is None or source is None:
            return
        text = receipt_text(message.text.decode(), delivered)
        payload = direct(source, [sender], direct_tail(text, receipt=False))
        owner = owners(sender, self.nodes)[0]
        self._session.send(_forget, "PUBLISH", self._names.server(owner), payload)

    def _on_forgotten(self) -> None:
        """Redis dropped its keys (FLUSHALL): everything is compared and read again, on the connections that stand."""
        self._forgotten += 1
        self._bus.hold()
        if not self._comparing:
            self._comparing = True
            self._spawn(self._compare())

    async def _compare(self) -> None:
        try:
            await self.recover()
        except (OSError, hiredis.HiredisError) as error:
            self._session.lose(error)
        finally:
            self._comparing = False

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _warn_about_redis(self) -> None:
        """Read the settings of Redis that can hurt a node, and say so; a Redis may refuse to tell."""
        policy = await self._redis_setting("maxmemory-policy")
        if policy not in (None, "noeviction"):
            log.warning("Redis may evict presence and memberships: set maxmemory-policy noeviction, not %s", policy)
        self._tracking_limit = int(await self._redis_setting("tracking-table-max-keys") or 0)
        tracked = await self._tracked_keys() if self._tracking_limit else 0
        if tracked > 0.7 * self._tracking_limit:
            log.warning(
                "Redis tracks %d keys and has room for %d: set tracking-table-max-keys higher (0 is no limit)",
                tracked,
                self._tracking_limit,
            )

    async def _tracked_keys(self) -> int:
        try:
            stats = await self._session.call("INFO", "stats")
        except hiredis.ReplyError:
            return 0
        match = re.search(rb"tracking_total_keys:(\d+)", stats)
        return int(match[1]) if match else 0

    async def _redis_setting(self, name: str) -> str | None:
        try:
            reply = await self._session.call("CONFIG", "GET", name)
        except hiredis.ReplyError:
            return None
        pairs = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
        value = pairs.get(name.encode())
        return None if value is None else value.decode()


def _forget(_reply: object) -> None:
    """A receipt that could not be published is lost, as any message to a node that nobody hears."""
