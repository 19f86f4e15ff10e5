"""One node: start, run, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import Counter
from dataclasses import replace
from importlib.metadata import version
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import hiredis

from freeim._core import Message
from freeim.bus_mode import publish_head
from freeim.clock import boot_time
from freeim.config import OPTIONS, Options
from freeim.config_checks import join_bind
from freeim.config_reload import Change, take
from freeim.embedded.join import EmbeddedRedis, join_in_thread
from freeim.envelope import STREAM_HEAD, direct, direct_tail, receipt_text
from freeim.errors import ConfigError, NodeReplaced
from freeim.names import Names, connect_url, default_prefix, owners, parse_client_id
from freeim.node.accept import Acceptor, adopt, listen
from freeim.node.admin import Admin
from freeim.node.burial import Burier
from freeim.node.bus import Bus
from freeim.node.connections import Connections
from freeim.node.handshake import Handshake
from freeim.node.link import LinkLost
from freeim.node.master_watch import MasterWatch
from freeim.node.presence import Presence, Stance, refuses_writes
from freeim.node.redis_watch import RedisWatch
from freeim.node.sentinel import ask_sentinels
from freeim.node.session import Session
from freeim.node.stream import Stream
from freeim.node.tls_gate import TlsGate
from freeim.option_files import change_to, changed_files, read_files
from freeim.redis_url import RedisAddress, parse_redis_url

if TYPE_CHECKING:
    from freeim.node.handover import Handover
    from freeim.node.successor import Estate

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
        restarted: Only for a supervisor: it is started in place of one that has served. Where another process serves at
            the socket of ``handover`` by then, that one has taken its place, and this one is not needed.
        barrier: Only for tests: False lets messages overtake the re-reading of memberships.
    """

    def __init__(self, options: Options | None = None, *, restarted: bool = False, barrier: bool = True) -> None:
        self.options = options if options is not None else Options()
        self._given = self.options
        """As they were given: in `options` all that was left open is filled in."""
        self.reloads = Counter({"ok": 0, "error": 0})
        """How often options were read again, by result."""
        self._restarted = restarted
        self._barrier = barrier
        self._sock: socket.socket | None = None
        self._admin: Admin | None = None
        self._handover: Handover | None = None
        self._embedded: EmbeddedRedis | None = None
        self._end: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._comparing = False
        self._forgotten = 0
        """How often Redis dropped all its keys."""
        self._early_receipts: list[tuple[Message, bytes, bool]] = []
        """Those that are due before the list of nodes is known."""

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
        self._files = read_files(self.options)
        self._redis_url = self._files.redis_url
        if self.options.handover is not None:
            from freeim.node.handover import Handover

            self._handover = Handover(self.options.for_worker())
        try:
            if self._handover is not None:
                await self._handover.ask(needed=not self._restarted)
            self._sock = self._listen()
            self._listen_for_admin()
            # With port 0 the name becomes known only now.
            self.options = options = self.options.for_worker(0, port=self._sock.getsockname()[1])
            assert options.node is not None
            self._names = names = Names(options.prefix or default_prefix(options.path, options.ids))
            stored = (STREAM_HEAD.encode(),) if options.bus == "stream" else ()
            channel = names.server(options.node)
            self._session = Session(self._locate_redis, channel, self, options.bus_queue_limit, stored)
            if self._redis_url is not None:
                self._session.place = parse_redis_url(self._redis_url).place
            epoch = None if self._handover is None else self._handover.epoch
            self._presence = Presence(self._session, names, options, epoch)
            self._connections = Connections(options, names, self._session, self._presence)
            self._bus = Bus(
                options,
                names,
                self._session,
                self._connections,
                self._send_receipt,
                self._on_forgotten,
                on_handover=self._on_handover,
                on_gone=self._on_gone,
                barrier=self._barrier,
            )
            # What the session asks of a node, straight from the bus: it is asked for each message.
            self.on_message = self._bus.on_message
            self._stream: Stream | None = None
            if options.bus == "stream":
                self._stream = Stream(options, names, self._session, self._bus.router, self._presence.epoch)
                self.on_message = self._stream.take
            if self._handover is not None:
                self._handover.join(self._bus, self._presence, self._session, self._connections, self._stream)
            self.on_invalidate = self._bus.on_invalidate
            self.on_received = self._bus.on_received
            self.on_hurry = self._bus.on_hurry
            self._redis_watch = RedisWatch(self._session, self._bus)
            self._master_watch = MasterWatch(self._session, self._find_redis if self._redis_url else None)
            self._burier = Burier(self._session, names, self._presence.epoch, self._presence.bury)
            self._connections.router = self._connections.resume.router = self._bus.router
            self._connections.resume.count_lost = self._count_lost
            tls = self._files.context
            gate = None if tls is None else TlsGate(tls, self._connections, options.handshake_timeout)
            self._acceptor = Acceptor(
                self._sock, lambda: Handshake(self._connections), self._connections.fanout.backlog, gate
            )
            self._connections.on_closed = self._acceptor.closed
            self._acceptor.check_capacity(options.max_connections)
            await self._session.start(self._take)
            if self._admin is not None:
                await self._admin.start()
            if self._handover is not None:
                self._handover.check()
        except BaseException:
            if self._sock is not None:
                self._sock.close()
                self._sock = None
            if self._admin is not None:
                self._admin.close()
            if self._handover is not None:
                self._handover.close()
            self._leave_embedded()
            raise
        self._connections.start()
        self._acceptor.start()
        if self._stream is not None and not self._stream.succeeds:
            self._stream.begin()
        if self._handover is not None:
            self._handover.serving(self._estate(), self._hand_over)

    def _listen(self) -> socket.socket:
        options = self.options
        sock = None if self._handover is None else self._handover.sock
        if sock is not None:
            return adopt(sock, options.backlog, options.send_buffer)
        return listen(*options.address, options.backlog, options.send_buffer)

    def _listen_for_admin(self) -> None:
        address = self.options.admin_address
        if address is None:
            return
        from freeim.node.metrics import Metrics  # it brings much along that nobody else needs

        sock = None if self._handover is None else self._handover.admin_socket(address)
        try:
            sock = sock or listen(*address, ADMIN_BACKLOG, 0)
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
        self._bus.router.set_tracking(self._session.tracking)
        dead = None if self._handover is None else await self._handover.take()
        if dead is None:
            dead = await self._presence.take()
            self._bus.router.open = True
            await self._presence.look_for_gone()  # of one that drains, since the name was taken
        early, self._early_receipts = self._early_receipts, []
        for receipt in early:
            self._send_receipt(*receipt)
        await self._burier.begin(dead)
        await self._redis_watch.connected()
        if self._stream is not None and not self._stream.succeeds:
            await self._stream.start()

    async def stop(self) -> None:
        """Stop: let nobody in, close every connection with 1012, take everything out of Redis.

        Takes at most the drain time, the close time-out and `RELEASE_TIMEOUT`. Until the last connection is gone,
        ``/health`` and ``/ready`` are answered and new terminals are refused with 503.
        """
        if self._sock is None:
            return
        sock, self._sock = self._sock, None
        try:
            if self._stream is not None:
                self._stream.leave(handed_over=self.handed_over)
            await self._connections.drain(self._acceptor.settled)
            self._acceptor.stop()
            sock.close()
            await self._connections.stop()
            if self._session.up:
                with contextlib.suppress(OSError, TimeoutError, hiredis.HiredisError):
                    async with asyncio.timeout(RELEASE_TIMEOUT):
                        if self._stream is not None:
                            await self._stream.release()
                        await self._presence.give_up_all()
                        await self._presence.release()
            if self.handed_over:
                assert self._handover is not None
                if self._admin is not None:
                    await self._admin.settled()
                await self._handover.finish()
        finally:  # also where the stop is cancelled
            self._acceptor.close()
            sock.close()
            if self._handover is not None:
                self._handover.close()
            if self._admin is not None:
                self._admin.close()
            if self._stream is not None:
                self._stream.stop()
            await asyncio.gather(self._master_watch.stop(), self._burier.stop(), return_exceptions=True)
            for task in self._tasks:
                task.cancel()
            try:
                await asyncio.gather(self._session.stop(), *self._tasks, return_exceptions=True)
            finally:
                self._leave_embedded()

    def reload(self, options: Options | None = None) -> Change:
        """Take new options while the node serves, and read the files that they name again. No connection is closed.

        What can change is marked in docs/options.md, and docs/deployment.md says what new values mean for connections
        that stand. What the process has for all, the level and the form of the log, is left to the caller.

        Args:
            options: As for the constructor. Left out, they are as before, and only the certificate, its key and the
                password of Redis are read again.

        Returns:
            The options in force, those that have changed or whose files have, and those that take a restart.

        Raises:
            ConfigError: They, or a file, cannot be used. Nothing has changed.
            RuntimeError: The node does not serve.
        """
        if self._sock is None:
            raise RuntimeError("only a node that serves can take new options")
        try:
            change, files = change_to(self._given, self._given if options is None else options)
            options = take(self.options, change.options, change.changed)
        except ConfigError:
            self.reloads["error"] += 1
            raise
        renewed = changed_files(self._files, files)
        self._given, self.options, self._files, self._redis_url = change.options, options, files, files.redis_url
        self._connections.reload(options)
        self._bus.reload(options)
        self._acceptor.reload(options, files.context)
        if "max_connections" in change.changed:
            self._acceptor.check_capacity(options.max_connections)
        self.reloads["ok"] += 1
        return Change(options, tuple(name for name in OPTIONS if name in renewed.union(change.changed)), change.kept)

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
        """Wait until the node ends by itself: it was handed over (see `handed_over`), and `stop` is still to be called.

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

    # ---- a hand-over

    @property
    def handed_over(self) -> bool:
        """Whether a successor serves in this node's place; see the option ``handover``."""
        return self._connections.handed_over

    def _estate(self) -> Estate:
        from freeim.node.successor import Estate

        assert self._sock is not None
        options = self.options
        return Estate(
            epoch=self._presence.epoch,
            node=self.name,
            bind=options.bind,
            prefix=self._names.prefix,
            path=options.path,
            ids=options.ids,
            nodes=self.nodes,
            sock=self._sock,
            admin=None if self._admin is None else (self._admin.sock, options.admin_bind),
            router=self._bus.router,
            stream=self._stream,
        )

    def _hand_over(self) -> None:
        """A successor serves: accept nobody any more. Whoever waits in `finished` is to call `stop`."""
        assert self._end is not None
        self._acceptor.stop()
        if self._sock is not None:
            self._sock.close()
        if self._admin is not None:
            self._admin.retire()
        if not self._end.done():
            self._end.set_result(None)

    def _on_handover(self, epoch: str) -> None:
        if self._handover is not None:
            self._handover.passed(epoch)

    def _on_gone(self, epoch: str, clients: list[str]) -> None:
        if epoch == self._presence.epoch:
            self._presence.await_return(clients)

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
                f"  bus          {options.bus}",
                f"  metrics      {self.metrics_url or 'off'}",
                f"  connections  up to {capacity:,} ({self._acceptor.limit:,} descriptors)",
            ]
        )

    def _count_lost(self) -> int:
        """Return how many messages did not get through this node: dropped, or trimmed before it read them."""
        return self._bus.count_lost() + (0 if self._stream is None else self._stream.count_lost())

    # ---- what the session asks

    def on_gap(self) -> None:
        self._bus.hold()
        if self._stream is not None:
            self._stream.lose()  # what comes meanwhile is read afterwards
        else:
            self._connections.resume.gap()

    def on_dropped(self) -> None:
        if self._stream is not None:
            self._stream.on_dropped()

    async def recover(self) -> None:
        """After a reconnect: renew the lease, compare presence, read memberships again."""
        compared = -1
        while compared != self._forgotten:  # Redis dropped its keys meanwhile: what was just put back is gone again
            compared = self._forgotten
            await self._master_watch.connected()
            await self._renew()
            if not self._session.refused:
                await self._presence.reconcile(self._connections.living)
                if self._presence.lapsed and self._end is not None and not self._end.done():
                    # To read the channels of who is not back yet would be to forget them: all is done once more.
                    raise LinkLost("the lease ran out while connections were put back")
            if compared == self._forgotten:
                self._bus.reread_all(self._session.tracking)
                if self._handover is not None:
                    self._handover.recovered()
                self._connections.retry_fenced()
                await self._redis_watch.connected()
        if self._stream is not None:
            await self._stream.catch_up()

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
        if self._presence.stance == Stance.BACK:
            self._bus.router.unmute_receipts(self._bus.unrouted)
        if session.refused:
            session.refused = ""
            log.info("Redis writes again")
            return True
        return revived or not self._presence.complete

    # ---- what the bus asks

    def _send_receipt(self, message: Message, receiver: bytes, delivered: bool) -> None:
        if not self.nodes:
            # In a hand-over the place from which on receipts are ours may be heard on the one connection before the
            # other brings the list of nodes.
            self._early_receipts.append((message, receiver, delivered))
            return
        ids = self.options.ids
        sender = parse_client_id(message.sender.decode(), ids)
        source = parse_client_id(receiver.decode(), ids)
        if sender is None or source is None:
            return
        text = receipt_text(message.text.decode(), delivered)
        payload = direct(source, [sender], direct_tail(text, receipt=False))
        owner = owners(sender, self.nodes)[0]
        self._session.send(_forget, *publish_head(self._names, owner, self.options.kept_messages), payload)

    def _on_forgotten(self) -> None:
        """Redis dropped its keys (FLUSHALL): everything is compared and read again, on the connections that stand."""
        self._forgotten += 1
        self._bus.hold()
        if self._stream is not None:
            self._stream.forget()
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
