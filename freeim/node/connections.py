"""All connections of a node, from the first byte of the request to the last of the close."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

from freeim._core import Client, Connection, Fanout, Router
from freeim.config import Options
from freeim.errors import CloseCode
from freeim.names import Names, connect_url, owners, system_id
from freeim.node.admission import Admission
from freeim.node.clockwork import TICK, Clockwork
from freeim.node.decode import BadPayload, decode_token
from freeim.node.handshake import Handshake
from freeim.node.http import Refusal, Request, token_of, websocket_key
from freeim.node.presence import FENCED, USED, Presence
from freeim.node.resume import Resume, resume_of
from freeim.node.session import Session
from freeim.node.sparse_log import SparseLog
from freeim.node.state import tell_state
from freeim.node.terminal import Terminal, close_frame
from freeim.node.timers import Deadlines

log = logging.getLogger("freeim")

GONE: Final = "gone"
"""What came of a handshake whose peer left before it was answered."""

LOST: Final = 1006
"""The code of a connection that ended without a Close frame (RFC 6455, section 7.4.1)."""

_NAMED_CODES: Final = frozenset(range(1000, 1016))

TOO_SLOW_PER_MINUTE: Final = 20
"""Log lines about terminals that read too slowly; the rest of the minute is counted."""

CLOSES_PER_TURN: Final = 500
"""Connections that a stopping node closes before the loop looks at anything else."""


class Connections:
    """Opens, feeds, pings and closes connections.

    Args:
        options: The node's options, with its name.
        names: The deployment's keys.
        session: The node's connections to Redis.
        presence: What the node counts in Redis.
    """

    def __init__(self, options: Options, names: Names, session: Session, presence: Presence) -> None:
        self.options = options
        self.living: dict[int, Connection] = {}
        """Number to connection: all that Redis has counted, and whose socket is open or that are away."""
        self.draining = False
        self.handed_over = False
        """Another process accepts connections; those that were accepted here are served until they are sent away."""
        self._stopped = False
        self.accepted = 0
        """Sockets that are open, WebSocket or not."""
        self.handshakes = Counter({"101": 0, "401": 0, "503": 0, GONE: 0})
        """Requests by HTTP status, or `GONE`: each socket that was accepted, but for answers about our state."""
        self.closes = Counter({("node", str(int(code))): 0 for code in CloseCode if code != CloseCode.NORMAL})
        self.closes.update({("terminal", str(code)): 0 for code in (1000, 1001, LOST)})
        """WebSocket connections by who began to close them and the code. With those that are open these are all."""
        self.cut = Counter({"connection": 0, "node": 0})
        """Connections that were too slow, by whose limit they passed."""
        self.on_closed: Any = None
        """Called after each socket that is gone."""
        self.on_changed: Callable[[Client], None] | None = None
        """Called where a client got or lost a connection, while another instance of this name wants to know."""
        self._names = names
        self._session = session
        self._presence = presence
        self._loop = asyncio.get_running_loop()
        self._emptied = asyncio.Event()
        self._last_number = 0
        self._fenced: list[Connection] = []
        self._counted: dict[Client, list[Connection]] = {}
        """Connections that Redis has counted, and whose client's membership is still being read for the first time."""
        self._misdirected: set[str] = set()
        self.system = system_id(options.ids)
        self.fanout = Fanout(self._loop.call_soon, self._too_slow, options.queue_limit, options.node_queue_limit)
        self._slow_log = SparseLog(logging.INFO, TOO_SLOW_PER_MINUTE, "cut %d more connections that read too slowly")
        self.admission = Admission(options)
        self.resume = Resume(options, self._leave)
        self._attached = 0
        """Connections from the begin of their opening until their socket is gone."""
        self.router: Router | None = None
        self._handshakes: Deadlines[Handshake] = Deadlines(
            options.handshake_timeout, self._handshake_expired, self._loop.call_soon
        )
        self._lingering: Deadlines[Handshake] = Deadlines(
            options.close_timeout, Handshake.timed_out, self._loop.call_soon
        )
        self._closing: Deadlines[Terminal] = Deadlines(options.close_timeout, self._cut, self._loop.call_soon)
        self.clockwork = Clockwork(options.ping_interval, options.ping_timeout, self._look_at_clock, self._no_pong)

    def start(self) -> None:
        """Start the clock."""
        self.clockwork.start()

    def reload(self, options: Options) -> None:
        """Take new options. What is held and asked from now on is measured by them; nothing is closed for them now."""
        before, self.options = self.options, options
        self.admission.reload(options)
        self.fanout.queue_limit = options.queue_limit
        self.fanout.node_queue_limit = options.node_queue_limit
        self._handshakes.set_delay(options.handshake_timeout)
        self._lingering.set_delay(options.close_timeout)
        self._closing.set_delay(options.close_timeout)
        if (options.ping_interval, options.ping_timeout) != (before.ping_interval, before.ping_timeout):
            self.clockwork.set_times(options.ping_interval, options.ping_timeout)

    async def stop(self) -> None:
        """Stop the clock, cut what is still open, and send the last closes to Redis."""
        self.clockwork.stop()
        for terminal in self._closing.things():
            self._cut(terminal)
        for handshake in self._handshakes.things():
            if handshake.begun:
                self._refuse(handshake, _stopping())
            elif handshake.transport is not None:
                handshake.transport.abort()
        for handshake in self._lingering.things():
            if handshake.transport is not None:
                handshake.transport.close()  # behind the answer, where some of it is still to be written
        self._stopped = True
        self._emptied.clear()
        left = -1
        while self.accepted and self.accepted != left:  # they end in parts: go on while they get fewer
            left = self.accepted
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._emptied.wait()
        self._presence.flush()

    # ---- before the 101

    def handshake_begins(self, handshake: Handshake) -> None:
        """A connection was accepted."""
        self.accepted += 1
        if self._stopped:  # accepted by the system a moment before we stopped
            assert handshake.transport is not None
            handshake.transport.abort()
        self._handshakes.start(handshake, self.clockwork.patient_now)
        if not self.admission.admit(handshake):
            assert handshake.transport is not None
            handshake.transport.abort()

    def request(self, handshake: Handshake, request: Request) -> None:
        """Answer a request, or ask Redis about its token.

        Raises:
            Refusal: The request is answered with an error status.
        """
        if request.path in ("/health", "/ready"):
            tell_state(handshake, request, self._session, draining=self.draining)
            return
        if request.path != self.options.path:
            raise Refusal(404, f"nothing is served here; the WebSocket endpoint is {self.options.path}")
        handshake.key = websocket_key(request)
        self.admission.check(handshake, request)
        self._check_room()
        self._check_ready()
        handshake.token = token_of(request)
        if self.options.resume_window:
            handshake.resume = resume_of(request)
        self._session.send(lambda reply: self._token_read(handshake, reply), "GET", self._names.token(handshake.token))

    def _check_room(self) -> None:
        limit = self.options.max_connections
        if limit and self._attached >= limit:
            raise Refusal(503, f"this node is full: it may hold {limit} connections", "Retry-After: 10")

    def _check_client(self, client_id: bytes) -> None:
        """Refuse a connection too many of one client. Its token stays good, for when another has closed."""
        assert self.router is not None
        limit = self.options.max_per_client
        if limit and self.options.per_client_policy == "reject":
            client = self.router.clients.get(client_id)
            if client is not None and len(client.connections) >= limit:
                raise Refusal(429, f"a client may have {limit} connections here, and this one has them")

    def _check_ready(self) -> None:
        if self.draining:
            raise _stopping()
        if not self._session.up:
            raise Refusal(503, "no connection to Redis at the moment", "Retry-After: 1")
        if self._session.refused:
            raise Refusal(503, "Redis refuses to write at the moment", "Retry-After: 1")

    def _token_read(self, handshake: Handshake, reply: Any) -> None:
        if handshake.finished or handshake.transport is None:
            return
        try:
            if isinstance(reply, Exception):
                raise Refusal(503, "Redis did not answer", "Retry-After: 1")
            if reply is None:
                raise Refusal(401, "the token is unknown, used or expired; get a fresh one")
            token_json, client_id = decode_token(reply, self.options.ids)
            if client_id == self.system:
                raise Refusal(401, "the token is for the system's id, which cannot connect")
            self._check_ready()
            owner = owners(client_id, self._presence.nodes)[0]
            if owner == self.options.node:
                if handshake.half_closed:
                    raise Refusal(400, "the terminal ended its side of the connection before it was answered")
                self._check_room()  # again: others may have come while Redis was asked
                text = str(client_id).encode()
                self._check_client(text)
                self._open(handshake, text, token_json)
            else:
                self._misdirect(handshake, owner)
        except Refusal as refusal:
            handshake.refuse(refusal)
        except BadPayload:
            kind = self.options.ids
            handshake.refuse(Refusal(401, f"the token's content is not that of a deployment with '{kind}' ids"))

    def _misdirect(self, handshake: Handshake, owner: str) -> None:
        """Another node owns this client: say which, and leave the token good for it."""

        def refuse(url: Any) -> None:
            if handshake.finished or handshake.transport is None:
                return
            base = url.decode() if isinstance(url, bytes) else f"ws://{owner}"
            right = connect_url(owner, base, self.options.path, "...")
            if owner not in self._misdirected:
                self._misdirected.add(owner)
                log.warning(
                    "a client of the node %s came here; it must connect to %s. Does a proxy balance over nodes, or "
                    "does an application have another list of nodes? This is said once for each node",
                    owner,
                    right,
                )
            handshake.refuse(Refusal(421, f"this client belongs to the node {owner}: connect to {right}"))

        self._session.send(refuse, "HGET", self._names.urls, owner)

    def _open(self, handshake: Handshake, client_id: bytes, token_json: str) -> None:
        assert self.router is not None
        self._last_number += 1
        connection = Connection(self.fanout, self._last_number, token_json, handshake)
        handshake.connection = connection
        self._attached += 1
        # At the same moment on both connections: the reader gets the membership, the writer counts and publishes.
        client = self.router.attach(client_id, connection)
        if handshake.resume is not None:
            self.resume.opens(connection, handshake.resume)
        if self.on_changed is not None:
            self.on_changed(client)
        self._send_open(connection, handshake.token)

    def _send_open(self, connection: Connection, token: str) -> None:
        self._presence.open(connection, token, lambda reply: self._open_answered(connection, reply))

    def _open_answered(self, connection: Connection, reply: Any) -> None:
        handshake: Handshake = connection.owner
        if handshake.connection is None:
            # The terminal has gone. Its close may have overtaken the opening: one whose script Redis had forgotten is
            # sent a second time.
            self._presence.close(connection.number)
            return
        if isinstance(reply, int) and reply not in (FENCED, USED):
            assert self.router is not None
            self.living[connection.number] = connection
            self.router.confirm(connection)
            if self.options.per_client_policy == "replace-oldest":
                self._replace_oldest(connection.client)
            self._upgrade_if_ready(connection)
        elif reply == FENCED:
            # This instance's life has ended in Redis (it slept, or Redis is back empty): revive it first.
            self._fenced.append(connection)
            self._session.beat_now()
        else:
            refusal = Refusal(503, "Redis did not count the connection", "Retry-After: 1")
            if reply == USED:
                refusal = Refusal(401, "the token was used by another connection a moment ago")
            elif not isinstance(reply, ConnectionError):
                self._presence.warn(reply)
            self._refuse(handshake, refusal)

    def _replace_oldest(self, client: Client) -> None:
        """Close the connections beyond the limit of a client that has just got one, the oldest first.

        Only those that Redis has counted are looked at: an opening whose token turns out to be used must cost nobody
        anything. Without a limit, which is 0, the slice is empty.
        """
        counted = [connection for connection in client.connections if connection.number in self.living]
        counted.sort(key=lambda connection: connection.number)
        for connection in counted[: -self.options.max_per_client]:
            log.debug("closed a connection of client %s: replaced by a newer one", client.id.decode())
            self.close(connection, CloseCode.REPLACED, "replaced by a newer login")

    def retry_fenced(self) -> None:
        """The life was revived: open what had to wait for that."""
        fenced, self._fenced = self._fenced, []
        for connection in fenced:
            if connection.owner.connection is not None:
                self._send_open(connection, connection.owner.token)

    def membership_read(self, client: Client, names: list[bytes] | None) -> bool:
        """The answer to a re-read of a client's channels; None where it failed. Returns whether they have changed."""
        assert self.router is not None
        changed = self.router.members(client, names)
        if client.attached == 0:
            self._presence.forget(client.id)
        for connection in self._counted.pop(client, ()):
            self._upgrade_if_ready(connection)
        return changed

    def _upgrade_if_ready(self, connection: Connection) -> None:
        """Send the 101 once both answers are in: the count, and the first reading of the membership."""
        client = connection.client
        if client.reading and not client.tracked:
            self._counted.setdefault(client, []).append(connection)
            return
        handshake: Handshake = connection.owner
        transport = handshake.transport
        if handshake.connection is None or transport is None or transport.is_closing():
            return  # refused meanwhile; or connection_lost follows, and takes it out
        # One that has been forced offline or sent away meanwhile gets its 101 too, and its Close frame behind it.
        if self.draining and not connection.closing:
            self._refuse(handshake, _stopping())
            return
        key, rest = handshake.key, handshake.rest
        self._handshakes.finish(handshake)
        handshake.connection = None
        handshake.finished = True
        transport.resume_reading()
        terminal = Terminal(self, connection, transport)
        connection.owner = terminal
        self.admission.hand_over(handshake, terminal)
        self.resume.begins(connection)
        terminal.start(key, rest)

    def opened(self, terminal: Terminal) -> None:
        """The 101 has been written."""
        self.clockwork.add(terminal)
        self.handshakes["101"] += 1
        if terminal.connection.closing:  # forced offline while it was opening
            self._close_begins(terminal, "node", terminal.connection.close_code)

    def linger(self, handshake: Handshake) -> None:
        """A refused peer gets some time to read the answer and end its side."""
        self._handshakes.finish(handshake)
        self._lingering.start(handshake, self.clockwork.patient_now)

    def handshake_lost(self, handshake: Handshake) -> None:
        """The socket of a request is gone."""
        self._handshakes.finish(handshake)
        self._lingering.finish(handshake)
        if not handshake.finished:
            self.handshakes[GONE] += 1
        handshake.finished = True
        if handshake.connection is not None:
            self._abandon(handshake)
        self._socket_gone(handshake)

    def _refuse(self, handshake: Handshake, refusal: Refusal) -> None:
        if handshake.connection is not None:
            self._abandon(handshake)
        handshake.refuse(refusal)

    def _abandon(self, handshake: Handshake) -> None:
        """Take an opening back: whether Redis has counted it or not, its close comes after it."""
        connection, handshake.connection = handshake.connection, None
        assert connection is not None
        self._attached -= 1
        self._leave(connection)
        if connection.client.attached == 0:
            self._presence.forget(connection.client.id)

    def _handshake_expired(self, handshake: Handshake) -> None:
        if handshake.connection is not None:
            self._abandon(handshake)
        handshake.timed_out()

    # ---- after the 101

    def close(
        self,
        connection: Connection,
        code: int,
        reason: str = "",
        *,
        frame: bytes | None = None,
        by: Literal["node", "terminal"] = "node",
    ) -> None:
        """Begin to close a connection: nothing is delivered to it any more. Waits for nobody.

        Args:
            connection: Open, opening or closing already.
            code: The close code.
            reason: Goes into the Close frame.
            frame: The whole Close frame where it exists already.
            by: Who begins.
        """
        assert self.router is not None
        if connection.begin_close(frame or close_frame(code, reason), code):
            self.router.retire(connection)
            self.resume.closes(connection, by, code)
            if self.on_changed is not None:
                self.on_changed(connection.client)
            if isinstance(connection.owner, Terminal):
                self._close_begins(connection.owner, by, code)

    def _close_begins(self, terminal: Terminal, by: str, code: int) -> None:
        if terminal in self._closing:
            return  # it was cut while it got its 101
        self._closing.start(terminal, self.clockwork.patient_now)
        # A terminal may send any code: those above are an application's, and 4001 from there is not ours.
        self.closes[by, str(code) if by == "node" or code in _NAMED_CODES else "other"] += 1

    def force_offline(self, client: Client) -> None:
        """Close all connections of a client, as FreeIM does."""
        for connection in list(client.connections):
            self.close(connection, CloseCode.GOING_AWAY, "disconnect")
        self.resume.force_offline(client)

    def broken(self, connection: Connection, code: int, reason: str) -> None:
        """A terminal broke the rules."""
        log.info("closed a connection of client %s with %d: %s", connection.client.id.decode(), code, reason)

    def gone(self, terminal: Terminal) -> None:
        """The socket of a WebSocket connection is gone."""
        connection = terminal.connection
        if connection.transport is None:
            return
        if not connection.closing:
            self.closes["terminal", str(LOST)] += 1
        connection.detach_transport()
        connection.owner = None  # else the two would keep each other, and no collector looks at what is old
        self._closing.finish(terminal)
        self.clockwork.remove(terminal)
        self._attached -= 1
        if not self.resume.keeps(connection):
            self._leave(connection)
        self._socket_gone(terminal)

    def _leave(self, connection: Connection) -> None:
        """Take the presence of a connection out."""
        assert self.router is not None
        self.resume.ended(connection)
        self.living.pop(connection.number, None)
        self.router.detach(connection)
        if self.on_changed is not None:
            self.on_changed(connection.client)
        self._presence.close(connection.number)

    def _socket_gone(self, holder: Handshake | Terminal) -> None:
        self.accepted -= 1
        self.admission.leave(holder)
        if not (self.accepted if self._stopped else self.living):
            self._emptied.set()
        if self.on_closed is not None:
            self.on_closed()

    def _too_slow(self, connection: Connection, waiting: int, of_node: bool) -> None:
        options = self.options
        self.cut["node" if of_node else "connection"] += 1
        self._slow_log.tell(
            "cut a connection of client %s: it reads too slowly, %d bytes were waiting; send less, or raise %s",
            connection.client.id.decode(),
            waiting,
            f"--node-queue-limit ({options.node_queue_limit} bytes for all together)"
            if of_node
            else f"--queue-limit ({options.queue_limit} bytes)",
        )
        self.close(connection, CloseCode.TOO_SLOW, "too slow")

    def tell_rest(self) -> None:
        """Log how many were cut without a line of their own since the last call; to be called now and then."""
        self._slow_log.tell_rest()
        self.admission.log.tell_rest()

    def _cut(self, terminal: Terminal) -> None:
        transport = terminal.connection.transport
        if transport is not None:
            transport.abort()

    # ---- the clock

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call something after a while."""
        self._loop.call_later(seconds, call)

    def _look_at_clock(self, now: float) -> None:
        patient_now = self.clockwork.patient_now
        for deadlines in (self._handshakes, self._lingering, self._closing):
            deadlines.expire(patient_now)
        self.admission.look_at_clock(now)
        self.resume.look_at_clock(now)

    def _no_pong(self, connection: Connection) -> None:
        log.info("cut a connection of client %s: it did not answer a ping", connection.client.id.decode())
        self.close(connection, CloseCode.NO_PONG, "no pong")
        connection.flush_now()
        # No answer is to be expected from a peer that did not answer the ping.
        connection.transport.close()

    # ---- the end

    async def drain(self, settled: Callable[[], Awaitable[None]]) -> None:
        """Close every connection with 1012, spread over the drain time, and wait until they are gone or cut.

        Args:
            settled: Waits for those that were accepted and are no handshakes yet.
        """
        self.resume.stopping = True
        self.draining = not self.handed_over
        await self._send_away(self.options.drain)
        if self.handed_over:  # who was accepted is served
            await settled()
            for _ in range(int(self.options.handshake_timeout / TICK) + 2):
                if not self._handshakes:
                    break
                await asyncio.sleep(TICK)
            await self._send_away(0.0)
        await self._wait_until_empty(self.options.close_timeout + 2 * TICK)

    async def _send_away(self, seconds: float) -> None:
        assert self.router is not None
        connections = list(self.living.values())
        pause = seconds / len(connections) * CLOSES_PER_TURN if connections else 0.0
        batch = CLOSES_PER_TURN
        if pause > TICK:  # few connections: smaller steps, the same time in all
            batch = max(1, int(batch * TICK / pause))
            pause = seconds * batch / len(connections)
        for start in range(0, len(connections), batch):
            self.router.finish()  # who is sent away has had what came before
            for connection in connections[start : start + batch]:
                if not self.resume.end(connection):
                    self.close(connection, CloseCode.SERVICE_RESTART, "service restart")
            if self.handed_over:
                await self._wait_until_empty(pause)  # terminals also leave by themselves, and nobody comes
            else:
                await asyncio.sleep(pause)

    async def _wait_until_empty(self, seconds: float) -> None:
        """Wait until there is no connection any more, for so long at most."""
        if self.living:
            self._emptied.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._emptied.wait()


def _stopping() -> Refusal:
    return Refusal(503, "this node stops; connect again", "Retry-After: 1")
