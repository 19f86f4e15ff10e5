"""The helper for synchronous programs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from freeim.batch import Batch, lay_out
from freeim.bus_mode import BusMode
from freeim.commands import AnyId, Call, Command, Published, SendEvent
from freeim.event_bus import Event, EventBus
from freeim.helper_options import HelperCore
from freeim.names import ClientId, IdKind
from freeim.node_list import NodeView

if TYPE_CHECKING:
    import redis as redis_py

T = TypeVar("T")


class ImHelper:
    """Authorises connections, sends messages, and reads who is where: everything that a business app asks of freeim.

    It writes to Redis and is done; it never talks to a node. Making one does no I/O. Threads may share it, and it goes
    on working in a forked child.

    Client ids are ints (int64, not 0) or, with ``ids="guid"``, GUIDs (text or ``uuid.UUID``; returned as lower-case
    text with hyphens). Every method raises TypeError or ValueError for wrong arguments before any I/O, and
    `RedisUnavailable` when Redis cannot be reached or does not answer.

    Args:
        redis: A URL (``redis://``, ``rediss://``, ``unix://``, ``redis+sentinel://``); or a ``redis.Redis``, which
            keeps its own policy for timeouts and retries and is never closed. By default the variable
            ``FREEIM_REDIS_URL``, else the embedded Redis that a node of the same user runs with.
        nodes: The names of all nodes, in the order that the nodes have them. By default the list that the nodes
            registered in Redis.
        ids: The kind of client id: ``"int"`` (FreeIM 2.x) or ``"guid"`` (FreeIM 1.x).
        path: The path of the WebSocket endpoint, as the nodes have it.
        prefix: What all names in Redis begin with. By default FreeIM's, made of `ids` and `path`.
        token_ttl: How long a URL of `prev_connect_server` can be used, in seconds.
        timeout: How long to wait for a reply of Redis, in seconds; a connection has one second more. For a client of
            your own, the waits are the client's.
        node_list_ttl: How long the registered list and the nodes' public URLs are remembered, in seconds.
        json_dumps: Turns messages into JSON text (str, or bytes in UTF-8). It must refuse NaN and infinite numbers
            itself, as ``json.dumps(..., allow_nan=False)`` does.
        on_send: Called with a `SendEvent` after each message was published. What it raises is logged.
        bus: How messages reach the nodes, ``"pubsub"`` or ``"stream"``, as they have it. By default what the nodes
            registered in Redis. One that differs from it raises `ConfigError` with the first call that needs the nodes.

    Raises:
        TypeError: An argument is of the wrong type; so is an asyncio client or a RedisCluster.
        ValueError: An argument has an impossible value, or the URL is none.
    """

    def __init__(
        self,
        redis: str | redis_py.Redis | None = None,
        *,
        nodes: Sequence[str] | None = None,
        ids: IdKind = "int",
        path: str = "/ws",
        prefix: str | None = None,
        token_ttl: float = 10.0,
        timeout: float = 2.0,
        node_list_ttl: float = 5.0,
        json_dumps: Callable[[Any], str | bytes] | None = None,
        on_send: Callable[[SendEvent], None] | None = None,
        bus: BusMode | None = None,
    ) -> None:
        # Not at the top: the package must load without redis-py's weight, and without the hiredis that it takes along.
        from freeim import redis_client

        self._core = HelperCore(nodes, ids, path, prefix, token_ttl, timeout, node_list_ttl, json_dumps, on_send, bus)
        self._redis_client = redis_client
        self._owned = redis is None or isinstance(redis, str)
        self._client: Any  # the methods of redis-py's clients are typed in part only
        if redis is None or isinstance(redis, str):
            self._client = redis_client.open_sync(redis_client.redis_url(redis), self._core.timeout)
        else:
            self._client = redis_client.check_sync(redis)
        self._lone = not redis_client.caches(self._client)
        self._options = redis_client.reply_options(self._client)
        self._commands = self._core.commands
        self._buses: weakref.WeakSet[EventBus] = weakref.WeakSet()

    # -- connecting ---------------------------------------------------------------------------------------------

    def prev_connect_server(self, client_id: AnyId, metadata: str | None = "") -> str:
        """Authorise one connection; return its URL.

        Args:
            client_id: Who will connect.
            metadata: Text that the Online and Offline events of this connection carry.

        Returns:
            The ``ws://`` or ``wss://`` URL. It works once, within `token_ttl` seconds.

        Raises:
            NodesMismatch: The nodes registered another list than this helper was given.
            NoNodes: No node has registered, and this helper was given no list.
        """
        return self._run(self._commands.prev_connect_server(client_id, metadata))

    # -- sending ------------------------------------------------------------------------------------------------

    def send_message(
        self,
        sender: AnyId | None,
        receivers: AnyId | Iterable[AnyId],
        message: Any,
        *,
        receipt: bool = False,
        report_offline: bool = False,
    ) -> Published:
        """Send a message to clients; each gets it on all its connections.

        Args:
            sender: Who sends it, which terminals are not told; 0, the empty GUID or None for the system. A sender who
                is among the receivers gets the message only while having more than one connection.
            receivers: One client id or many; duplicates get one message.
            message: Anything that JSON can carry, or a `Raw`.
            receipt: Send the sender a receipt for each receiver.
            report_offline: Fill `Published.offline` with the receivers that have no connection.

        Raises:
            NotSerializable: The message cannot be turned into JSON, or holds a NaN or an infinite number.
            NodesMismatch: The nodes registered another list than this helper was given.
            NoNodes: No node has registered, and this helper was given no list.
        """
        return self._run(self._commands.send_message(sender, receivers, message, receipt, report_offline))

    def send_chan_message(self, sender: AnyId | None, channel: str, message: Any) -> Published:
        """Send a message to the members of a channel.

        Args:
            sender: Who sends it; see `send_message`.
            channel: The channel; not empty.
            message: Anything that JSON can carry, or a `Raw`.

        Raises:
            NotSerializable, NodesMismatch, NoNodes: See `send_message`.
        """
        return self._run(self._commands.send_chan_message(sender, channel, message))

    def send_broadcast_message(self, message: Any) -> Published:
        """Send a message to every client that is connected.

        Args:
            message: Anything that JSON can carry, or a `Raw`.

        Raises:
            NotSerializable, NodesMismatch, NoNodes: See `send_message`.
        """
        return self._run(self._commands.send_broadcast_message(message))

    def force_offline(self, client_id: AnyId) -> Published:
        """Close all connections of a client (close code 1001, reason ``disconnect``).

        Raises:
            NodesMismatch, NoNodes: See `send_message`.
        """
        return self._run(self._commands.force_offline(client_id))

    # -- presence -----------------------------------------------------------------------------------------------

    def get_client_list_by_online(self) -> list[ClientId]:
        """Return the clients that have a connection."""
        return self._run(self._commands.get_client_list_by_online())

    def has_online(self, client_id: AnyId) -> bool:
        """Tell whether a client has a connection."""
        return self._run(self._commands.has_online(client_id))

    def has_online_many(self, client_ids: Iterable[AnyId]) -> list[bool]:
        """Tell of each client whether it has a connection, in the order given."""
        return self._run(self._commands.has_online_many(client_ids))

    # -- channels -----------------------------------------------------------------------------------------------

    def join_chan(self, client_id: AnyId, *channels: str) -> None:
        """Make a client a member of channels, all in one step; it may do so before it connects.

        A message sent to the channel after this call has returned reaches the client.
        """
        self._run(self._commands.join_chan(client_id, channels))

    def leave_chan(self, client_id: AnyId, *channels: str) -> None:
        """End a client's membership in channels, all in one step; the close of its last connection ends them too."""
        self._run(self._commands.leave_chan(client_id, channels))

    def leave_chan_clients(self, channel: str, *client_ids: AnyId) -> None:
        """End the membership of clients in a channel, all in one step."""
        self._run(self._commands.leave_chan_clients(channel, client_ids))

    def clear_chan_client(self, channel: str) -> None:
        """Remove the members of a channel that have no connection, and only those."""
        self._run(self._commands.clear_chan_client(channel))

    def get_chan_client_list(self, channel: str) -> list[ClientId]:
        """Return the members of a channel, connected or not."""
        return self._run(self._commands.get_chan_client_list(channel))

    def get_chan_list(self) -> dict[str, int]:
        """Return all channels that have members, with the number of those."""
        return self._run(self._commands.get_chan_list())

    def get_chan_list_by_client_id(self, client_id: AnyId) -> list[str]:
        """Return the channels of a client."""
        return self._run(self._commands.get_chan_list_by_client_id(client_id))

    def get_chan_online(self, channel: str) -> int:
        """Return the number of a channel's members."""
        return self._run(self._commands.get_chan_online(channel))

    # -- more ---------------------------------------------------------------------------------------------------

    def event_bus(
        self,
        online: Callable[[Event], object] | None = None,
        offline: Callable[[Event], object] | None = None,
        *,
        resync: Callable[[], object] | None = None,
        group: str | None = None,
    ) -> EventBus:
        """Listen to clients that come and go, in a thread; it has begun when this returns, if Redis is there.

        Args:
            online: Called for each connection that opens.
            offline: Called for each connection that closes.
            resync: Called after any gap in which events may have been missed, to read again who is online.
            group: Of all processes that give this name, with this or the asyncio helper, one at a time is told of
                events. When it stops, another takes over at once; when it dies, within 10 s, and goes on where it was.

        Returns:
            The running bus; see `EventBus`.
        """
        bus = EventBus(
            lambda: self._redis_client.open_bus_sync(self._client, self._core.timeout),
            self._core.names,
            self._core.ids,
            online,
            offline,
            resync,
            group,
        )
        self._buses.add(bus)
        bus.start(self._core.timeout)
        return bus

    def batch(self) -> SyncBatch:
        """Send many calls in one round trip.

        The context manager has this helper's methods. They queue; leaving the with block sends::

            with helper.batch() as batch:
                batch.join_chan(7, "room")
                batch.send_chan_message(0, "room", "7 is here")
            joined, published = batch.results
        """
        return SyncBatch(self)

    def close(self) -> None:
        """Stop this helper's event buses and close its connections; a client that was given to it stays open."""
        for bus in list(self._buses):
            bus.stop()
        if self._owned:
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # -- carrying out -------------------------------------------------------------------------------------------

    def _run(self, call: Call[T]) -> T:
        core = self._core
        view = core.fresh_view()
        if view is None and call.needs_nodes:
            view = self._read_view()
        commands = call.commands(view)
        if commands and core.unchecked:
            self._read_view()
        result = call.read(self._execute(commands) if commands else ())
        if core.on_send is not None:
            core.tell(call, result)
        return result

    def _run_batch(self, batch: Batch) -> None:
        calls, needs_nodes = batch.take()
        view = self._core.fresh_view()
        if view is None and needs_nodes:
            view = self._read_view()
        commands, slices = lay_out(calls, view)
        if commands and self._core.unchecked:
            self._read_view()
        results = batch.resolve(slices, self._execute(commands) if commands else [])
        for call, result in zip(calls, results, strict=True):
            self._core.tell(call, result)

    def _read_view(self) -> NodeView:
        return self._core.read_view(self._execute(self._core.view_commands()))

    def _execute(self, commands: list[Command]) -> list[Any]:
        try:
            if len(commands) == 1 and self._lone:
                return [self._client.execute_command(*commands[0], **self._options)]
            pipeline = self._client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command, **self._options)
            replies = pipeline.execute(raise_on_error=False)
        except self._redis_client.RedisError as error:
            raise self._redis_client.unavailable(error) from error
        return self._redis_client.checked_replies(replies, commands)


class SyncBatch(Batch):
    """What `ImHelper.batch` returns."""

    def __init__(self, helper: ImHelper) -> None:
        super().__init__(helper._commands)
        self._helper = helper

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self._helper._run_batch(self)
        else:
            self.drop()
