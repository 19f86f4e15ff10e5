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

CONCURRENT_CALLS: Final = 64
"""How many calls of one loop are with Redis at a time, each on its own connection; more wait their turn."""


class Gate:
    """Lets `CONCURRENT_CALLS` in at a time. When Redis fails those, the ones who waited behind them fail at once.

    Otherwise ten thousand calls that begin together would open ten thousand connections; and with Redis paused, the
    last of them would raise after minutes.
    """

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(CONCURRENT_CALLS)
        self._broken_at = -1.0

    async def enter(self) -> None:
        """Wait for a slot.

        Raises:
            RedisUnavailable: A call that was let in before failed while this one waited.
        """
        if not self._slots.locked():
            await self._slots.acquire()
            return
        since = time.monotonic()
        await self._slots.acquire()
        if self._broken_at > since:
            self._slots.release()
            raise RedisUnavailable("Redis did not answer the calls before this one", maybe_sent=False)

    def leave(self, broken: bool) -> None:
        """Free the slot.

        Args:
            broken: Whether Redis failed.
        """
        if broken:
            self._broken_at = time.monotonic()
        self._slots.release()


class LoopClient:
    """The client of one loop, and the gate before it (None for a caller's client, whose own pool decides)."""

    def __init__(self, client: redis.asyncio.Redis, gate: Gate | None) -> None:
        self.client: Any = client  # the methods of redis-py's clients are typed in part only
        self.gate = gate
        self.guard: AsyncGenerator[None, None] | None = None


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
        for other in [other for other in list(self._clients) if other.is_closed()]:
            dead = self._clients.pop(other, None)
            if dead is not None:
                abandon(dead.client)
        if self._make is None:
            assert self._given is not None
            entry = LoopClient(self._given, None)
        else:
            entry = LoopClient(self._make(), Gate())
        self._clients[loop] = entry
        # asyncio.run, async_to_sync and their like end all async generators before they close a loop. So a generator
        # that hangs in a loop is told in time to close the connections, by a loop that can still do it.
        entry.guard = self._hang_in(loop)
        await anext(entry.guard)
        return entry

    async def _hang_in(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            entry = self._clients.pop(loop, None)
            if entry is not None and self._make is not None:
                with contextlib.suppress(Exception):
                    await close(entry.client)

    async def aclose(self) -> None:
        """Close the connections of the running loop, and drop those of loops that are gone."""
        running = asyncio.get_running_loop()
        for loop in list(self._clients):
            if loop is running or loop.is_closed():
                entry = self._clients.pop(loop, None)
                if entry is None:
                    continue
                if loop.is_closed():
                    abandon(entry.client)
                elif self._make is not None:
                    await close(entry.client)
                if entry.guard is not None and loop is running:
                    await entry.guard.aclose()


async def close(client: Any) -> None:
    """Close a client of our own, and its pool."""
    await client.connection_pool.disconnect()


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
