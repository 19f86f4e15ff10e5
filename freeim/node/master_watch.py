"""Whether the Redis that the node is connected to is still the one that it should be.

After a failover both connections can stand, and be answered, on a server that nobody else uses any more: an old master
that is cut off from its Sentinels, or what a name or an address led to before it was moved. Nothing on those
connections shows it, so with each beat the way to Redis is gone once more.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

import hiredis

from freeim.node.link import LinkLost, RedisLink
from freeim.node.session import Session
from freeim.redis_url import RedisAddress

LOOK_TIMEOUT: Final = 5.0
"""Seconds for one look; one that takes longer has found nothing."""

_Call = Callable[..., Awaitable[Any]]


class MasterWatch:
    """Looks at role and run id of Redis. A Redis may refuse to tell; then nothing is concluded.

    Args:
        session: The node's connections to Redis.
        locate: Tells where Redis is now, without a side effect; None where it cannot move (the embedded one).
    """

    def __init__(self, session: Session, locate: Callable[[], Awaitable[RedisAddress]] | None) -> None:
        self._session = session
        self._locate = locate
        self._run_id: bytes | None = None
        self._look: asyncio.Task[None] | None = None

    async def connected(self) -> None:
        """Look at a Redis that the node has just connected to.

        Raises:
            LinkLost: It is a replica, or the two connections lead to two servers.
        """
        await self._check_role()
        self._run_id = await _run_id(self._session.call)
        other = await _run_id(self._session.call_reader)
        # Without RESP3 a subscribed connection may ask nothing.
        if None not in (other, self._run_id) and other != self._run_id:
            raise LinkLost("two connections to one address led to two servers")

    async def beat(self) -> None:
        """Look whether it is a master still, and begin to look whether it is still the one that its address leads to.

        Raises:
            LinkLost: It has become a replica.
        """
        await self._check_role()
        # Not a part of the beat, which must not wait for a new connection; one look at a time.
        if self._locate is not None and self._run_id is not None and (self._look is None or self._look.done()):
            self._look = asyncio.create_task(self._look_again(self._run_id), name="freeim look for the master")

    async def stop(self) -> None:
        """End a look that is under way."""
        if self._look is not None:
            self._look.cancel()
            await asyncio.gather(self._look, return_exceptions=True)

    async def _check_role(self) -> None:
        role = await _role(self._session.call)
        if role == b"sentinel":
            raise LinkLost("this is a Sentinel, whose URL is redis+sentinel://host:port/service")
        if role == b"slave":
            raise LinkLost("it is a replica, and only a master takes writes")

    async def _look_again(self, run_id: bytes) -> None:
        assert self._locate is not None
        gaps = self._session.gaps
        link = RedisLink()
        try:
            async with asyncio.timeout(LOOK_TIMEOUT):
                address = await self._locate()
                await link.connect(address)
                role = await _role(link.call)
                found = await _run_id(link.call)
        except (OSError, hiredis.HiredisError):
            return  # where Redis itself is the trouble, the beats will find it
        finally:
            link.close()
        # Another one that is a replica is no better: perhaps the failover is still going on.
        if found not in (None, run_id) and role == b"master" and self._session.gaps == gaps:
            self._session.lose(LinkLost(f"another Redis is the master now, at {address.place}"))


async def _role(call: _Call) -> bytes | None:
    """Return what a server says that it is: ``master``, ``slave`` or ``sentinel``."""
    try:
        reply = await call("ROLE")
    except hiredis.ReplyError:
        return None
    role = reply[0] if isinstance(reply, list) and reply else None
    return role if isinstance(role, bytes) else None


async def _run_id(call: _Call) -> bytes | None:
    """Return the id that a server gave itself at its start, 40 hexadecimal digits."""
    try:
        facts = await call("INFO", "server")
    except hiredis.ReplyError:
        return None
    match = re.search(rb"run_id:(\w+)", facts) if isinstance(facts, bytes) else None
    return match[1] if match else None
