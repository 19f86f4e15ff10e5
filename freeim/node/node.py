"""One node: start, run, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from dataclasses import replace
from importlib.metadata import version
from types import TracebackType
from typing import Any, Final, Self

import hiredis

from freeim._core import Message
from freeim.clock import boot_time
from freeim.config import Options
from freeim.config_checks import join_bind
from freeim.embedded.join import EmbeddedRedis, join_in_thread
from freeim.envelope import direct, direct_tail, receipt_text
from freeim.errors import ConfigError, NodeReplaced
from freeim.names import Names, connect_url, default_prefix, owners, parse_client_id
from freeim.node.accept import Acceptor, listen
from freeim.node.admin import Admin
from freeim.node.burial import Burier
from freeim.node.bus import Bus
from freeim.node.connections import Connections
from freeim.node.handshake import Handshake
from freeim.node.link import LinkLost
from freeim.node.master_watch import MasterWatch
from freeim.node.presence import Presence, refuses_writes
from freeim.node.redis_watch import RedisWatch
from freeim.node.sentinel import ask_sentinels
from freeim.node.session import Session
from freeim.node.tls import server_context
from freeim.node.tls_gate import TlsGate
from freeim.redis_url import RedisAddress, parse_redis_url

log = logging.getLogger("freeim")

ADMIN_BACKLOG: Final = 16
"""Scrapes that may wait to be accepted."""

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
        self._admin: Admin | None = None
        self._embedded: EmbeddedRedis | None = None
        self._end: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._comparing = False
        self._forgotten = 0
        """How often Redis dropped all its keys."""

    # ---- life

    async def start(self) -> None:
        """Listen, connect to Redis, take the node's name, and accept connections.

        Raises:
            ConfigError: The options contradict what other nodes registered, the name has a living owner, no Redis is
                named and none can be started, or the address of the metrics cannot be bound.
            RedisUnavailable: Redis cannot be reached.
            OSError: The address cannot be bound.
        """
        self._end = asyncio.get_running_loop().create_future()
        self.options = self.options.for_embedded()
        self._redis_url = self.options.redis_url_with_password()
        host, port = self.options.address
        self._sock = listen(host, port, self.options.backlog, self.options.send_buffer)
        try:
            self._listen_for_admin()
            # With port 0 the name becomes known only now.
            self.options = options = self.options.for_worker(0, port=self._sock.getsockname()[1])
            assert options.node is not None
            self._names = names = Names(options.prefix or default_prefix(options.path, options.ids))
            self._session = Session(self._locate_redis, names.server(options.node), self, options.bus_queue_limit)
            if self._redis_url is not None:
                self._session.place = parse_redis_url(self._redis_url).place
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
            # What the session asks of a node, straight from the bus: it is asked for each message.
            self.on_message = self._bus.on_message
            self.on_invalidate = self._bus.on_invalidate
            self.on_received = self._bus.on_received
            self.on_hurry = self._bus.on_hurry
            self._redis_watch = RedisWatch(self._session, self._bus)
            self._master_watch = MasterWatch(self._session, self._find_redis if self._redis_url else None)
            self._burier = Burier(self._session, names, self._presence.epoch, self._presence.bury)
            self._connections.router = self._bus.router
            tls = server_context(options)
            gate = None if tls is None else TlsGate(tls, self._connections, options.handshake_timeout)
            self._acceptor = Acceptor(
                self._sock, lambda: Handshake(self._connections), self._connections.fanout.backlog, gate
            )
            self._connections.on_closed = self._acceptor.closed
            self._acceptor.check_capacity(options.max_connections)
            await self._session.start(self._take)
            if self._admin is not None:
                await self._admin.start()
        except BaseException:
            self._sock.close()
            self._sock = None
            if self._admin is not None:
                self._admin.close()
            self._leave_embedded()
            raise
        self._connections.start()
        self._acceptor.start()

    def _listen_for_admin(self) -> None:
        address = self.options.admin_address
        if address is None:
            return
        from freeim.node.metrics import Metrics  # it brings much along that nobody else needs

        try:
            sock = listen(*address, ADMIN_BACKLOG, 0)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {self.options.admin_bind} for the metrics: {error.strerror or error}; "
                "choose another --admin-bind",
                "admin_bind",
            ) from error
        self.options = replace(self.options, admin_bind=join_bind(address[0], sock.getsockname()[1]))
        self._admin = Admin(sock, Metrics(self).page)

    async def _take(self) -> None:
        await self._master_watch.connected()
        await self._presence.take()
        self._bus.router.set_tracking(self._session.tracking)
        self._bus.router.open = True
        await self._redis_watch.connected()

    async def stop(self) -> None:
        """Stop: let nobody in, close every connection with 1012, take everything out of Redis.

        Takes at most the drain time, the close time-out and `RELEASE_TIMEOUT`. Until the last connection is gone,
        ``/health`` and ``/ready`` are answered and new terminals are refused with 503.
        """
        if self._sock is None:
            return
        sock, self._sock = self._sock, None
        try:
            await self._connections.drain()
            self._acceptor.stop()
            sock.close()
            await self._connections.stop()
            if self._session.up:
                with contextlib.suppress(OSError, TimeoutError, hiredis.HiredisError):
                    async with asyncio.timeout(RELEASE_TIMEOUT):
                        await self._presence.release()
        finally:  # also where the stop is cancelled
            self._acceptor.close()
            sock.close()
            if self._admin is not None:
                self._admin.close()
            await asyncio.gather(self._master_watch.stop(), self._burier.stop(), return_exceptions=True)
            for task in self._tasks:
                task.cancel()
            try:
                await asyncio.gather(self._session.stop(), *self._tasks, return_exceptions=True)
            finally:
                self._leave_embedded()

    def reload_tls(self) -> None:
        """Read the certificate and its key again; connections that stand keep theirs. Does nothing without TLS.

        Raises:
            ConfigError: They cannot be used. The node goes on with those it has.
        """
        context, gate = server_context(self.options), self._acceptor.gate
        if context is not None and gate is not None:
            gate.context = context
            log.info("read the TLS certificate %s again; new connections get it", self.options.tls_cert)

    async def _locate_redis(self) -> RedisAddress:
        """Return where Redis is. The embedded one is joined again: what we had joined may have come to its end."""
        if self._redis_url is not None:
            return await self._find_redis()
        joined = await join_in_thread()
        self._leave_embedded()
        self._embedded = joined
        return parse_redis_url(joined.url)

    async def _find_redis(self) -> RedisAddress:
        assert self._redis_url is not None
        address = parse_redis_url(self._redis_url)
        return await ask_sentinels(address) if address.sentinels else address

    def _leave_embedded(self) -> None:
        if self._embedded is not None:
            self._embedded.close()
            self._embedded = None

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

    @property
    def metrics_url(self) -> str | None:
        """Where its metrics are served, or None where ``admin_bind`` is off."""
        return None if self._admin is None else f"http://{self.options.admin_bind}/metrics"

    def banner(self) -> str:
        """Return a few lines that say what runs where."""
        options = self.options
        redis = self._session.place
        if self._embedded is not None:
            redis = f"embedded {self._embedded.name} at {redis} (keeps nothing on disk)"
        capacity = min(self._acceptor.capacity, options.max_connections or self._acceptor.capacity)
        membership = "by client, with CLIENT TRACKING"
        if not self._session.tracking:
            membership = f"by channel, as FreeIM does it ({self._session.tracking_refused})"
        return "\n".join(
            [
                f"freeim {version('freeim')}: node {self.name}",
                f"  listens on   {options.bind}{' (TLS)' if options.tls_cert is not None else ''}",
                f"  connect URL  {self.url}?token=...",
                f"  nodes        {', '.join(self.nodes)}",
                f"  Redis        {redis}",
                f"  names        begin with {self._names.prefix}, {options.ids} ids",
                f"  membership   {membership}",
                f"  metrics      {self.metrics_url or 'off'}",
                f"  connections  up to {capacity:,} ({self._acceptor.limit:,} descriptors)",
            ]
        )

    # ---- what the session asks

    def on_gap(self) -> None:
        self._bus.hold()

    async def recover(self) -> None:
        """After a reconnect: renew the lease, compare presence, read memberships again."""
        compared = -1
        while compared != self._forgotten:  # Redis dropped its keys meanwhile: what was just put back is gone again
            compared = self._forgotten
            await self._master_watch.connected()
            await self._renew()
            if not self._session.refused:
                await self._presence.reconcile(self._connections.living)
            if compared == self._forgotten:
                self._bus.reread_all(self._session.tracking)
                self._connections.retry_fenced()
                await self._redis_watch.connected()

    async def beat(self) -> None:
        """Renew the lease; where the life had ended, compare presence."""
        if self._embedded is not None and not self._embedded.intact:
            raise LinkLost("the folder of the embedded Redis has been removed")
        broken = await self._renew()
        answered = boot_time()
        if broken and not self._session.refused:
            await self._presence.reconcile(self._connections.living)
        self._connections.retry_fenced()
        await self._master_watch.beat()
        await self._redis_watch.beat()
        await self._burier.beat(answered, broken=broken)
        self._bus.tell_losses()
        self._connections.tell_rest()
        self._presence.tell_rest()
        if self._acceptor.gate is not None:
            self._acceptor.gate.tell_rest()

    async def _renew(self) -> bool:
        """Renew the lease. True where it had ended or could not be renewed, so that everything is to be compared."""
        session = self._session
        try:
            revived = await self._presence.beat()
        except NodeReplaced as error:
            if self._end is not None and not self._end.done():
                self._end.set_exception(error)
            return False
        except hiredis.ReplyError as error:
            if not refuses_writes(error):
                raise
            if not session.refused:
                log.error("Redis refuses to write (%s): messages go on, but nobody can connect", error)
            session.refused = str(error)
            return True
        if session.refused:
            session.refused = ""
            log.info("Redis writes again")
            return True
        return revived or not self._presence.complete

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


def _forget(_reply: object) -> None:
    """A receipt that could not be published is lost, as any message to a node that nobody hears."""
