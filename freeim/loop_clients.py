"""One asyncio client for each event loop: the connections of a loop die with it, and nobody hears of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any, Final

from freeim.errors import RedisUnavailable

if TYPE_CHECKING:
    import redis.asyncio

CONCURRENT_CALLS: Final = 32
"""How many calls of one loop are with Redis at a time, each on its own connection; more wait their turn."""


class Gate:
    """The clients of one loop, `CONCURRENT_CALLS` at most. When Redis fails those, the calls that wait fail at once.

    Otherwise ten thousand calls that begin together would open ten thousand connections; and with Redis paused, the
    last of them would raise after minutes. Each client has one connection: a pool of redis-py 6 or 7 opens its
    connections one after the other, so with Redis paused each would wait for all timeouts before its own.

    Args:
        make: Makes a client.
    """

    def __init__(self, make: Callable[[], redis.asyncio.Redis]) -> None:
        self.clients: list[Any] = []
        self._make = make
        self._idle: list[Any] = []
        self._slots = asyncio.Semaphore(CONCURRENT_CALLS)
        self._broken_at = -1.0

    async def enter(self) -> Any:
        """Wait for a turn, and return a client to be given back by `leave`.

        Raises:
            RedisUnavailable: A call that was let in before failed while this one waited.
        """
        if not self._slots.locked():
            await self._slots.acquire()
        else:
            since = time.monotonic()
            await self._slots.acquire()
            if self._broken_at > since:
                self._slots.release()
                raise RedisUnavailable("Redis did not answer the calls before this one", maybe_sent=False)
        if self._idle:
            return self._idle.pop()
        client = self._make()
        self.clients.append(client)
        return client

    def leave(self, client: Any, broken: bool) -> None:
        """Give a client back.

        Args:
            client: What `enter` returned.
            broken: Whether Redis failed.
        """
        if broken:
            self._broken_at = time.monotonic()
        self._idle.append(client)
        self._slots.release()


class OpenGate:
    """The same for a caller's client, whose own pool and policy decide.

    Args:
        client: The caller's client.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self.clients: list[Any] = [client]

    async def enter(self) -> Any:
        """Return the client."""
        return self.clients[0]

    def leave(self, client: Any, broken: bool) -> None:
        """Do nothing."""


class LoopClient:
    """What belongs to one loop: its clients, and the generator that hangs in it."""

    def __init__(self, gate: Gate | OpenGate) -> None:
        self.gate = gate
        self.guard: AsyncGenerator[None, None] | None = None

    async def close(self) -> None:
        """Close the connections of our own clients."""
        if isinstance(self.gate, Gate):
            for client in self.gate.clients:
                with contextlib.suppress(Exception):
                    await client.connection_pool.disconnect()

    def abandon(self) -> None:
        """Forget all connections; their loop is closed."""
        for client in self.gate.clients:
            abandon(client)


class LoopClients:
    """Hands out the client of the running loop.

    Args:
        make: Makes a client; None where the caller gave one.
        given: The caller's client.
    """

    def __init__(self, make: Callable[[], redis.asyncio.Redis] | None, given: redis.asyncio.Redis | None) -> None:
        self._make = make
        self._given = given
        self._clients: dict[asyncio.AbstractEventLoop, LoopClient] = {}

    async def get(self) -> LoopClient:
        """Return the client of the running loop."""
        found = self._clients.get(asyncio.get_running_loop())
        return found if found is not None else await self._enter()

    async def _enter(self) -> LoopClient:
        loop = asyncio.get_running_loop()
        self._drop_dead()
        if self._make is None:
            assert self._given is not None
            entry = LoopClient(OpenGate(self._given))
        else:
            entry = LoopClient(Gate(self._make))
        self._clients[loop] = entry
        # asyncio.run, async_to_sync and their like end all async generators before they close a loop. So a generator
        # that hangs in a loop is told in time to close the connections, by a loop that can still do it.
        entry.guard = self._hang_in(loop, entry)
        await anext(entry.guard)
        return entry

    def _drop_dead(self) -> None:
        for loop in [loop for loop in list(self._clients) if loop.is_closed()]:
            entry = self._clients.pop(loop, None)
            if entry is not None:
                entry.abandon()

    async def _hang_in(self, loop: asyncio.AbstractEventLoop, entry: LoopClient) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            if self._clients.get(loop) is entry:
                del self._clients[loop]
            await entry.close()

    async def aclose(self) -> None:
        """Close the connections of the running loop, and drop those of loops that are gone."""
        running = asyncio.get_running_loop()
        self._drop_dead()
        entry = self._clients.get(running)
        if entry is not None and entry.guard is not None:
            await entry.guard.aclose()


def abandon(client: Any) -> None:
    """Forget the connections of a client whose loop is closed: their transports cannot be closed in any ordinary way.

    This reaches into redis-py and asyncio, and does less where they change: then the collector closes the sockets, with
    a ResourceWarning for those who look at them.
    """
    pool = client.connection_pool
    connections = [*getattr(pool, "_available_connections", ()), *getattr(pool, "_in_use_connections", ())]
    for connection in connections:
        with contextlib.suppress(Exception):
            writer = connection._writer
            connection._reader = connection._writer = None
            if writer is not None:
                _abandon_transport(writer.transport)
    with contextlib.suppress(Exception):
        pool.reset()


def _abandon_transport(transport: Any) -> None:
    tls = getattr(transport, "_ssl_protocol", None)
    if tls is not None:
        transport._closed = True
        transport = tls._transport
    socket = getattr(transport, "_sock", None)  # uvloop has none: it closes all sockets with the loop
    if socket is not None:
        transport._closing = True
        transport._sock = None
        socket.close()
