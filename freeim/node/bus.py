"""What the reader brings: messages to the router, invalidations to re-reads; without tracking, FreeIM's way."""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import hiredis

from freeim._core import Client, Message, Router
from freeim.config import Options
from freeim.envelope import GONE_HEAD, HANDOVER_HEAD, PROBE_HEAD
from freeim.names import Names
from freeim.node.connections import Connections
from freeim.node.decode import BadPayload, decode_tolerantly
from freeim.node.session import Session
from freeim.node.sparse_log import SparseLog

log = logging.getLogger("freeim")

_PROBE: Final = PROBE_HEAD.encode()
_HANDOVER: Final = HANDOVER_HEAD.encode()
_GONE: Final = GONE_HEAD.encode()

REREADS_PER_CHUNK: Final = 500
"""Clients of one chunk of a full re-read: Redis answers others in between."""

BAD_PAYLOADS_PER_MINUTE: Final = 20
"""Log lines about payloads that are no message; the rest of the minute is counted."""

KIND_CHANNEL: Final = 2
KIND_FORCE_OFFLINE: Final = 4

MESSAGE_WEIGHT: Final = 200
"""Bytes of memory that a message takes beside its payload, as the router counts it."""


class Bus:
    """Hands on what the reader hears, and reads memberships again.

    Args:
        options: The node's options.
        names: The deployment's keys.
        session: The node's connections to Redis.
        connections: The node's connections to terminals.
        on_forgotten: Called when Redis says that it dropped all keys.
        on_handover: Gets the epoch to which the node's name has passed at this place in the stream.
        on_gone: Gets the epoch that has the name, and the clients whose last connection has closed at the other one.
        barrier: See `Router`.
    """

    def __init__(
        self,
        options: Options,
        names: Names,
        session: Session,
        connections: Connections,
        on_receipt: Callable[[Message, bytes, bool], None],
        on_forgotten: Callable[[], None],
        *,
        on_handover: Callable[[str], None],
        on_gone: Callable[[str, list[str]], None],
        barrier: bool = True,
    ) -> None:
        self.router = Router(
            str(connections.system).encode(),
            on_receipt,
            self._reread,
            connections.force_offline,
            window_limit=options.bus_queue_limit,
            guid=options.ids == "guid",
            on_other=self._take_other,
            barrier=barrier,
        )
        # What the session asks of a node for each message goes to the core at once.
        self.on_message = self.router.take
        self.bad_payloads = 0
        self.idle_rereads = 0
        """Re-reads after an invalidation that found nothing new."""
        self._options = options
        self._session = session
        self._connections = connections
        self._on_forgotten = on_forgotten
        self._on_handover = on_handover
        self._on_gone = on_gone
        self._client_key = names.client("").encode()
        self._chan_key = names.chan("").encode()
        self._unread: list[Client] = []
        self._to_route_again: list[Message] = []
        """With a stream and without tracking: what a gap has kept from being routed."""
        self._generation = 0
        """Counts the gaps."""
        self._bad_log = SparseLog(
            logging.WARNING,
            BAD_PAYLOADS_PER_MINUTE,
            "dropped %d more payloads from the node's channel that are no messages",
        )
        self._told = (0, 0)
        """How many messages were said to be lost: for clients whose membership was read, and for everybody."""
        self._unrouted_limit = options.bus_queue_limit
        # Without tracking: batches of one read each, in order; a batch waits for the members of its channels.
        self._batch: list[Message] = []
        self._batches: deque[_Batch] = deque()
        self._batch_size = 0
        self._unrouted = 0
        """What all these messages weigh."""
        self._unrouted_dropped = 0

    def reload(self, options: Options) -> None:
        """Take new options."""
        self.router.window_limit = self._unrouted_limit = options.bus_queue_limit
        self._session.set_queue_limit(options.bus_queue_limit)

    # ---- what the reader hears

    def _take_other(self, payload: bytes, message: Message | None) -> Callable[[], Any] | None:
        """What the router does not decode, or cannot route for want of tracking; see `Router.take`."""
        if message is None:
            if payload.startswith(_PROBE):
                self._session.probe_seen(payload.removeprefix(_PROBE))
                return None
            if payload.startswith((_HANDOVER, _GONE)):
                self._take_notice(payload)
                return None
            try:
                message = decode_tolerantly(payload, self._options.ids)
            except BadPayload as error:
                self._tell_bad(payload, error)
                return None
        if self.router.tracking:
            return self.router.route(message)
        weight = MESSAGE_WEIGHT + len(payload)
        too_much = self._unrouted and self._unrouted + weight > self._unrouted_limit
        if too_much and message.kind != KIND_FORCE_OFFLINE:
            self._unrouted_dropped += 1
            return None
        self._batch.append(message)
        self._batch_size += weight
        self._unrouted += weight
        return None

    def _take_notice(self, payload: bytes) -> None:
        """What instances of one name tell each other."""
        text = payload.decode(errors="replace")
        if payload.startswith(_HANDOVER):
            self._on_handover(text.removeprefix(HANDOVER_HEAD))
        else:
            epoch, *clients = text.removeprefix(GONE_HEAD).split(" ")
            self._on_gone(epoch, clients)

    @property
    def unrouted(self) -> int:
        """Messages that have come, and are to be routed yet: those that wait for the members of their channels."""
        return len(self._batch) + sum(len(batch.messages) for batch in self._batches)

    def on_invalidate(self, keys: list[bytes] | None) -> None:
        """Redis says that keys have changed."""
        if keys is None:
            self._on_forgotten()
            return
        for key in keys:
            if key.startswith(self._client_key):
                self.router.invalidate(key[len(self._client_key) :])

    def on_received(self, complete: bool) -> None:
        """Where all of one read has been handled, send it out; else wait for the rest, which may be for the same."""
        self._connections.fanout.midread = not complete
        if not complete:
            return
        if self._batch:
            batch = _Batch(self._batch, self._batch_size)
            self._batch, self._batch_size = [], 0
            self._route_with_members(batch)
        self._connections.fanout.flush()

    def on_hurry(self, hurry: int) -> None:
        """More comes than is handled, or no more: sending has to leave time for reading; see `RedisLink`."""
        self._connections.fanout.hurry = hurry

    def _tell_bad(self, payload: bytes, error: BadPayload) -> None:
        self.bad_payloads += 1
        # The content is not shown: it is somebody's message.
        self._bad_log.tell("dropped a payload of %d bytes from the node's channel: %s", len(payload), error)

    @property
    def waiting_for_membership(self) -> int:
        """Bytes of memory of the messages that wait until somebody's membership has been read."""
        return self.router.window_bytes + self._unrouted

    @property
    def dropped_for_membership(self) -> int:
        """Messages that were lost for those whose membership was being read, since too much waited."""
        return self.router.dropped + self._unrouted_dropped

    def count_lost(self) -> int:
        """Return how many messages were dropped here, for everybody or for some client, since too much waited."""
        return self.dropped_for_membership + self._session.dropped

    def tell_losses(self) -> None:
        """Say what was lost since the last call; to be called now and then."""
        now = (self.dropped_for_membership, self._session.dropped)
        for_membership, for_all = (after - before for after, before in zip(now, self._told, strict=True))
        self._told = now
        if for_membership:
            log.warning(
                "%d messages could not be kept for clients whose membership was being read, and are lost for them: "
                "more than --bus-queue-limit (%d bytes) came meanwhile",
                for_membership,
                self.router.window_limit,
            )
        if for_all:
            log.warning(
                "%d messages are lost: they came faster than this node handles them, and more than --bus-queue-limit "
                "(%d bytes) waited; send less, or to more nodes",
                for_all,
                self._session.queue_limit,
            )
        self._bad_log.tell_rest()

    # ---- memberships by client

    def _reread(self, client: Client) -> None:
        self._session.read(partial(self._answered, client, self._generation), "HKEYS", self._client_key + client.id)

    def _answered(self, client: Client, generation: int, reply: Any) -> None:
        if generation != self._generation:
            return  # sent before a gap: what it read may be what Redis had lost, and it will be read again
        if isinstance(reply, ConnectionError):
            return  # the gap begins at this moment, and `hold` takes this client along
        if isinstance(reply, hiredis.ReplyError):
            log.warning("the channels of client %s could not be read: %s", client.id.decode(), reply)
            reply = None
        initial = not client.tracked
        changed = self._connections.membership_read(client, reply)
        if not changed and not initial:
            self.idle_rereads += 1

    def hold(self) -> None:
        """The stream has a gap: every client waits until its membership has been read again."""
        self._generation += 1
        if self._options.bus == "stream":  # they count as handled, and are not read again
            # Behind what an earlier gap has left, where nothing was routed between the two.
            self._to_route_again += [message for batch in self._batches for message in batch.messages]
            self._to_route_again += self._batch
        self._batch = []
        self._batches.clear()
        self._batch_size = self._unrouted = 0
        if self.router.tracking:
            self._unread = self.router.hold_all()
        else:  # just after a fall-back some still wait for their last answer, which is lost with all others
            self._unread = [client for client in self.router.clients.values() if client.reading]

    def reread_all(self, tracking: bool) -> None:
        """Read again what `hold` made uncertain, in chunks.

        Args:
            tracking: Whether Redis tracks this connection now.
        """
        unread, self._unread = self._unread, []
        if not tracking:
            self._release(unread)
            self.router.set_tracking(False)
            self._route_again()
            return
        if not self.router.tracking:
            # Everybody's membership is unknown, since it was not kept.
            self.router.set_tracking(True)
            unread = self.router.hold_all()
        self._route_again()
        self._reread_chunk(unread, self._generation)

    def _route_again(self) -> None:
        again, self._to_route_again = self._to_route_again, []
        for message in again:
            self._take_other(b"", message)
        self.router.finish()

    def fall_back(self) -> None:
        """From now on read the members of a channel for each message to it, as FreeIM does.

        Those whose membership is being read go on waiting for the answer: it decides over the messages until now.
        """
        self.router.set_tracking(False)

    def _release(self, clients: list[Client]) -> None:
        for client in clients:
            self._connections.membership_read(client, None)

    def _reread_chunk(self, clients: list[Client], generation: int) -> None:
        if generation != self._generation:
            return
        chunk, rest = clients[:REREADS_PER_CHUNK], clients[REREADS_PER_CHUNK:]
        for client in chunk:
            if client.attached:
                self._reread(client)
            else:
                self._connections.membership_read(client, None)
        if rest:
            # Behind this chunk's answers, with some jitter: many nodes do this at the same time.
            self._session.read(partial(self._next_chunk, rest, generation), "PING")

    def _next_chunk(self, rest: list[Client], generation: int, _reply: Any) -> None:
        self._connections.later(random.uniform(0, 0.01), partial(self._reread_chunk, rest, generation))

    # ---- memberships by channel: FreeIM's way

    def _route_with_members(self, batch: _Batch) -> None:
        channels = {message.channel for message in batch.messages if message.kind == KIND_CHANNEL}
        batch.missing = len(channels)
        self._batches.append(batch)
        for channel in channels:
            self._session.send(partial(self._members_read, batch, channel), "HKEYS", self._chan_key + channel)
        self._route_ready_batches()

    def _members_read(self, batch: _Batch, channel: bytes, reply: Any) -> None:
        if isinstance(reply, ConnectionError):
            return
        if isinstance(reply, Exception):
            log.warning("the members of a channel could not be read: %s", reply)
            reply = ()
        batch.members[channel] = frozenset(reply)
        batch.missing -= 1
        self._route_ready_batches()
        self._connections.fanout.flush()

    def _route_ready_batches(self) -> None:
        while self._batches and not self._batches[0].missing:
            batch = self._batches.popleft()
            self._unrouted -= batch.size
            for message in batch.messages:
                if message.kind == KIND_CHANNEL:
                    message.members = batch.members[message.channel]
                self.router.route(message)
        self.router.finish()


class _Batch:
    """The messages of one read, what they weigh, and how many of their channels' members are not known yet."""

    __slots__ = ("members", "messages", "missing", "size")

    def __init__(self, messages: list[Message], size: int) -> None:
        self.messages = messages
        self.size = size
        self.missing = 0
        self.members: dict[bytes, frozenset[bytes]] = {}
