"""What in Redis can hurt a node: keys that are evicted, and a tracking table too small for all clients."""

from __future__ import annotations

import logging
import re
from typing import Final

import hiredis

from freeim.node.bus import Bus
from freeim.node.session import Session

log = logging.getLogger("freeim")

IDLE_REREADS: Final = 1000
"""Re-reads between two beats that found nothing new; with more, the tracking table may be full."""

CROWDED: Final = 0.7
FULL: Final = 0.9
"""Shares of the tracking table that are in use."""

DEFAULT_OUTPUT_LIMIT: Final = 32 * 2**20
"""Bytes that Redis keeps for a subscriber by default before it cuts it (client-output-buffer-limit in redis.conf)."""


class RedisWatch:
    """Reads the settings of Redis and says what is wrong with them. A Redis may refuse to tell; then nothing is said.

    Args:
        session: The node's connections to Redis.
        bus: The node's bus, which falls back to membership by channel where Redis cannot track all clients.
    """

    def __init__(self, session: Session, bus: Bus) -> None:
        self._session = session
        self._bus = bus
        self._limit = 0
        """Of the tracking table, in keys; 0 where there is none."""
        self._told_crowded = False

    async def connected(self) -> None:
        """Look at a Redis that the node has just connected to: it may be another one than before."""
        policy = await self._setting("maxmemory-policy")
        if policy not in (None, "noeviction"):
            log.warning("Redis may evict presence and memberships: set maxmemory-policy noeviction, not %s", policy)
        await self._check_output_limit()
        self._limit = int(await self._setting("tracking-table-max-keys") or 0)
        self._told_crowded = False
        await self.beat()

    async def beat(self) -> None:
        """Look whether the tracking table has room.

        A full one invalidates at random, and the node would read for ever: then it gives tracking up.
        """
        idle, self._bus.idle_rereads = self._bus.idle_rereads, 0
        if not self._session.tracking or not self._limit:
            return
        tracked = await self._tracked_keys()
        if tracked >= FULL * self._limit and idle >= max(IDLE_REREADS, len(self._bus.router.clients)):
            reason = f"more clients than tracking-table-max-keys ({self._limit}) in this Redis"
            log.error("%s: from now on each channel message costs a look-up of its channel's members", reason)
            self._session.stop_tracking(reason, self._bus.fall_back)
        elif tracked > CROWDED * self._limit and not self._told_crowded:
            self._told_crowded = True
            log.warning(
                "Redis tracks %d keys and has room for %d: set tracking-table-max-keys higher (0 is no limit)",
                tracked,
                self._limit,
            )

    async def _check_output_limit(self) -> None:
        limits = re.search(r"pubsub (\d+)", await self._setting("client-output-buffer-limit") or "")
        if limits and 0 < int(limits[1]) < DEFAULT_OUTPUT_LIMIT:
            log.warning(
                "Redis cuts a node off for which more than %s bytes wait, and what waits is lost: set "
                "client-output-buffer-limit pubsub to 256mb 128mb 30",
                limits[1],
            )

    async def _tracked_keys(self) -> int:
        try:
            stats = await self._session.call("INFO", "stats")
        except hiredis.ReplyError:
            return 0
        match = re.search(rb"tracking_total_keys:(\d+)", stats)
        return int(match[1]) if match else 0

    async def _setting(self, name: str) -> str | None:
        try:
            reply = await self._session.call("CONFIG", "GET", name)
        except hiredis.ReplyError:
            return None
        pairs = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
        value = pairs.get(name.encode())
        return None if value is None else value.decode()
