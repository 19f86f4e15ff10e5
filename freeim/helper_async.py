"""The helper for asyncio programs."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from freeim.batch import Batch, lay_out
from freeim.bus_mode import BusMode
from freeim.commands import AnyId, Call, Command, Published, SendEvent
from freeim.event_bus import Event
from freeim.event_bus_async import AsyncEventBus
from freeim.helper_options import HelperCore
from freeim.loop_clients import LoopClients
from freeim.names import ClientId, IdKind
from freeim.node_list import NodeView

if TYPE_CHECKING:
    import redis.asyncio

T = TypeVar("T")


class AsyncImHelper:
    """`ImHelper` for asyncio: the same arguments, methods, results and errors, awaited.

    It may be used from any event loop, also from several in turn (``asyncio.run`` twice, Django's ``async_to_sync``):
    each loop gets connections of its own, which end with it. 32 calls of a loop are with Redis at a time.

    Args:
        redis: As `ImHelper`'s, but a ``redis.asyncio.Redis`` where a client is given.
        nodes: See `ImHelper`, as for all that follow.
        ids: The kind of client id.
        path: The path of the WebSocket endpoint.
        prefix: What all names in Redis begin with.
        token_ttl: How long a URL of `prev_connect_server` can be used, in seconds.
        timeout: How long to wait for a reply of Redis, in seconds.
        node_list_ttl: How long the list of nodes is remembered, in seconds.
        json_dumps: Turns messages into JSON text.
        on_send: A plain function, called with a `SendEvent` after each message was published.
        bus: See `ImHelper`.

    Raises:
        TypeError: An argument is of the wrong type; so is a synchronous client or a RedisCluster.
        ValueError: An argument has an impossible value, or the URL is none.
    """

    def __init__(
        self,
        redis: str | redis.asyncio.Redis | None = None,
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
        timeout = self._core.timeout
        if redis is None or isinstance(redis, str):
            url = redis_client.redis_url(redis)
            # A malformed URL is an error here rather than at the first call.
            self._options = redis_client.reply_options(redis_client.open_async(url, timeout))
            self._clients = LoopClients(lambda: redis_client.open_async(url, timeout), None)
            self._open_bus = lambda: redis_client.open_bus_async(redis_client.open_async(url, timeout), timeout)
        else:
            given = redis_client.check_async(redis)
            self._options = redis_client.reply_options(given)
            self._clients = LoopClients(None, given)
            self._open_bus = lambda: redis_client.open_bus_async(given, timeout)
        self._commands = self._core.commands
        self._buses: weakref.WeakSet[AsyncEventBus] = weakref.WeakSet()

    # -- connecting ---------------------------------------------------------------------------------------------

    async def prev_connect_server(self, client_id: AnyId, metadata: str | None = "") -> str:
        """Authorise one connection; return its URL."""
        return await self._run(self._commands.prev_connect_server(client_id, metadata))

    # -- sending ------------------------------------------------------------------------------------------------

    async def send_message(
        self,
        sender: AnyId | None,
        receivers: AnyId | Iterable[AnyId],
        message: Any,
        *,
        receipt: bool = False,
        report_offline: bool = False,
    ) -> Published:
        """Send a message to clients; each gets it on all its connections."""
        return await self._run(self._commands.send_message(sender, receivers, message, receipt, report_offline))

    async def send_chan_message(self, sender: AnyId | None, channel: str, message: Any) -> Published:
        """Send a message to the members of a channel."""
        return await self._run(self._commands.send_chan_message(sender, channel, message))

    async def send_broadcast_message(self, message: Any) -> Published:
        """Send a message to every client that is connected."""
        return await self._run(self._commands.send_broadcast_message(message))

    async def force_offline(self, client_id: AnyId) -> Published:
        """Close all connections of a client (close code 1001, reason ``disconnect``)."""
        return await self._run(self._commands.force_offline(client_id))

    # -- presence -----------------------------------------------------------------------------------------------

    async def get_client_list_by_online(self) -> list[ClientId]:
        """Return the clients that have a connection."""
        return await self._run(self._commands.get_client_list_by_online())

    async def has_online(self, client_id: AnyId) -> bool:
        """Tell whether a client has a connection."""
        return await self._run(self._commands.has_online(client_id))

    async def has_online_many(self, client_ids: Iterable[AnyId]) -> list[bool]:
        """Tell of each client whether it has a connection, in the order given."""
        return await self._run(self._commands.has_online_many(client_ids))

    # -- channels -----------------------------------------------------------------------------------------------

    async def join_chan(self, client_id: AnyId, *channels: str) -> None:
        """Make a client a member of channels, all in one step; it may do so before it connects."""
        await self._run(self._commands.join_chan(client_id, channels))

    async def leave_chan(self, client_id: AnyId, *channels: str) -> None:
        """End a client's membership in channels, all in one step; the close of its last connection ends them too."""
        await self._run(self._commands.leave_chan(client_id, channels))

    async def leave_chan_clients(self, channel: str, *client_ids: AnyId) -> None:
        """End the membership of clients in a channel, all in one step."""
        await self._run(self._commands.leave_chan_clients(channel, client_ids))

    async def clear_chan_client(self, channel: str) -> None:
        """Remove the members of a channel that have no connection, and only those."""
        await self._run(self._commands.clear_chan_client(channel))

    async def get_chan_client_list(self, channel: str) -> list[ClientId]:
        """Return the members of a channel, connected or not."""
        return await self._run(self._commands.get_chan_client_list(channel))

    async def get_chan_list(self) -> dict[str, int]:
        """Return all channels that have members, with the number of those."""
        return await self._run(self._commands.get_chan_list())

    async def get_chan_list_by_client_id(self, client_id: AnyId) -> list[str]:
        """Return the channels of a client."""
        return await self._run(self._commands.get_chan_list_by_client_id(client_id))

    async def get_chan_online(self, channel: str) -> int:
        """Return the number of a channel's members."""
        return await self._run(self._commands.get_chan_online(channel))

    # -- more ---------------------------------------------------------------------------------------------------

    def event_bus(
        self,
        online: Callable[[Event], object] | None = None,
        offline: Callable[[Event], object] | None = None,
        *,
        resync: Callable[[], object] | None = None,
        group: str | None = None,
    ) -> AsyncEventBus:
        """Listen to clients that come and go, in a task of the running loop; ``async with`` waits for its beginning.

        Args:
            online: Called, and awaited if need be, for each connection that opens.
            offline: Called, and awaited if need be, for each connection that closes.
            resync: Called, and awaited if need be, after any gap in which events may have been missed.
            group: Of all processes that give this name, one at a time is told of events; see `ImHelper.event_bus`.

        Returns:
            The bus, which can also be iterated; see `AsyncEventBus`.

        Raises:
            RuntimeError: No event loop is running.
        """
        bus = AsyncEventBus(self._open_bus, self._core.names, self._core.ids, online, offline, resync, group)
        self._buses.add(bus)
        return bus

    def batch(self) -> AsyncBatch:
        """Send many calls in one round trip.

        The asynchronous context manager has this helper's methods. They queue, and are not awaited; leaving the block
        sends::

            async with helper.batch() as batch:
                batch.join_chan(7, "room")
                batch.send_chan_message(0, "room", "7 is here")
            joined, published = batch.results
        """
        return AsyncBatch(self)

    async def aclose(self) -> None:
        """Stop this helper's event buses and close its connections; a client that was given to it stays open."""
        running = asyncio.get_running_loop()
        for bus in list(self._buses):
            if bus.loop is running:
                await bus.stop()
        await self._clients.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    # -- carrying out -------------------------------------------------------------------------------------------

    async def _run(self, call: Call[T]) -> T:
        core = self._core
        view = core.fresh_view()
        if view is None and call.needs_nodes:
            view = await self._read_view()
        commands = call.commands(view)
        if commands and core.unchecked:
            await self._read_view()
        result = call.read(await self._execute(commands) if commands else ())
        if core.on_send is not None:
            core.tell(call, result)
        return result

    async def _run_batch(self, batch: Batch) -> None:
        calls, needs_nodes = batch.take()
        view = self._core.fresh_view()
        if view is None and needs_nodes:
            view = await self._read_view()
        commands, slices = lay_out(calls, view)
        if commands and self._core.unchecked:
            await self._read_view()
        results = batch.resolve(slices, await self._execute(commands) if commands else [])
        for call, result in zip(calls, results, strict=True):
            self._core.tell(call, result)

    async def _read_view(self) -> NodeView:
        return self._core.read_view(await self._execute(self._core.view_commands()))

    async def _execute(self, commands: list[Command]) -> list[Any]:
        gate = (await self._clients.get()).gate
        client = await gate.enter()
        broken = False
        try:
            if len(commands) == 1:
                return [await client.execute_command(*commands[0], **self._options)]
            pipeline = client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command, **self._options)
            replies = await pipeline.execute(raise_on_error=False)
        except self._redis_client.RedisError as error:
            broken = not isinstance(error, self._redis_client.ResponseError)
            raise self._redis_client.unavailable(error) from error
        finally:
            gate.leave(client, broken)
        return self._redis_client.checked_replies(replies, commands)


class AsyncBatch(Batch):
    """What `AsyncImHelper.batch` returns."""

    def __init__(self, helper: AsyncImHelper) -> None:
        super().__init__(helper._commands)
        self._helper = helper

    async def __aenter__(self) -> Self:
        self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if kind is None:
            await self._helper._run_batch(self)
        else:
            self.drop()
