"""Takes out what dead nodes left behind, and takes care that no living one is taken for dead.

A node is dead whose `Alive` key has expired. But all of them expire where Redis pauses, also those of healthy nodes,
which cannot renew them meanwhile. So a node trusts what it sees only while its own life goes on without a break: for
one whole lease its beats must have been answered one after the other, none of them late. Then it looks twice, a beat
apart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Final

import hiredis

from freeim.names import Names
from freeim.node.presence import LEASE_MS
from freeim.node.session import BEAT_INTERVAL, Session

log = logging.getLogger("freeim")

LATE: Final = 1.5 * BEAT_INTERVAL
"""Seconds between two answered beats from which on a life counts as broken. A pause of Redis that is shorter leaves the
lease of a node that beats every `BEAT_INTERVAL` unharmed: it is 3 intervals long, and at most 2.5 pass."""


class Burier:
    """Looks with each beat for dead nodes.

    Args:
        session: The node's connections to Redis.
        names: The deployment's keys.
        epoch: The node's own.
        bury: Takes out what an epoch left behind.
    """

    def __init__(self, session: Session, names: Names, epoch: str, bury: Callable[[str], Awaitable[int]]) -> None:
        self._session = session
        self._names = names
        self._epoch = epoch
        self._bury = bury
        self._answered = float("-inf")
        self._unbroken_since = 0.0
        self._suspects: set[str] = set()
        self._burial: asyncio.Task[None] | None = None

    async def beat(self, now: float, *, broken: bool) -> None:
        """A beat of this node was answered: look for dead ones, where our own life permits.

        Args:
            now: When the answer came, on a clock that goes on while the machine sleeps.
            broken: Whether the node's life had ended, or could not be renewed.

        Raises:
            hiredis.HiredisError, OSError: Redis failed.
        """
        if broken or now - self._answered > LATE:
            self._unbroken_since = now
            self._suspects.clear()
        self._answered = now
        if now - self._unbroken_since < LEASE_MS / 1000 or self._busy:
            return
        dead = await self._dead()
        certain = dead & self._suspects
        self._suspects = dead
        if certain:
            # Not a part of the beat: thousands of connections take longer than a lease may wait.
            self._burial = asyncio.create_task(self._bury_all(certain), name="freeim burial")

    async def begin(self, epochs: list[str]) -> None:
        """Bury the predecessors of this node; what takes longer than a beat goes on while it serves.

        Args:
            epochs: Those that are dead for certain.
        """
        if not epochs:
            return
        self._burial = asyncio.create_task(self._bury_all(epochs), name="freeim burial")
        try:
            await asyncio.wait([self._burial], timeout=BEAT_INTERVAL)
        except asyncio.CancelledError:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End a burial that is under way; another node will go on with it."""
        if self._burial is not None:
            self._burial.cancel()
            await asyncio.gather(self._burial, return_exceptions=True)

    @property
    def _busy(self) -> bool:
        return self._burial is not None and not self._burial.done()

    async def _dead(self) -> set[str]:
        epochs = {epoch.decode() for epoch in await self._session.call("HKEYS", self._names.shares)} - {self._epoch}
        living = await asyncio.gather(*(self._session.call("EXISTS", self._names.alive(epoch)) for epoch in epochs))
        return {epoch for epoch, lives in zip(epochs, living, strict=True) if not lives}

    async def _bury_all(self, epochs: Collection[str]) -> None:
        try:
            for epoch in sorted(epochs):
                await self._bury(epoch)
        except (OSError, hiredis.HiredisError) as error:
            log.warning("a dead node could not be taken out completely (%s); this is tried again", error)
