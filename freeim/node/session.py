"""The node's two connections to Redis, as one: the reader hears the bus, the writer does everything else.

Where either is lost both are: memberships may have changed unheard, so after a gap everything is compared and read
again. A session is *up* once that has been done.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import hiredis

from freeim.clock import boot_time
from freeim.envelope import FORCE_OFFLINE_HEAD, GONE_HEAD, HANDOVER_HEAD, PROBE_HEAD
from freeim.errors import FreeImError, RedisUnavailable
from freeim.node.histogram import Histogram
from freeim.node.link import Callback, LinkLost, RedisLink
from freeim.redis_url import RedisAddress
from freeim.scripts import Script

log = logging.getLogger("freeim")

BEAT_INTERVAL: Final = 5.0
"""Seconds between two renewals of the node's lease, which lasts three of them."""
SILENCE_LIMIT: Final = 10.0
"""Seconds without the answer to a beat, or without the node's own probe, after which the session counts as lost."""
RECOVERY_LIMIT: Final = 30.0
"""Seconds for connecting and comparing everything with Redis; then it is tried again from the start."""
MAX_BACKOFF: Final = 5.0
"""Seconds between two attempts to connect, at most: a lease is not to run out because of our own patience."""

_VITAL: Final = tuple(head.encode() for head in (PROBE_HEAD, HANDOVER_HEAD, GONE_HEAD, FORCE_OFFLINE_HEAD))
"""What a node, or instances of one node, tell themselves is never dropped in a flood."""

_ERROR_CODE: Final = re.compile(r"[A-Z]{2,20}\b")


class SessionUser(Protocol):
    """What a session asks of the node."""

    def on_message(self, payload: bytes) -> Callable[[], Any] | None:
        """A payload was published on the node's channel; see `Router.take`."""

    def on_invalidate(self, keys: list[bytes] | None) -> None:
        """Redis says that keys were changed; None: any of them may have been."""

    def on_received(self, complete: bool) -> None:
        """What was read has been handled; where it is not complete the rest follows soon."""

    def on_hurry(self, hurry: int) -> None:
        """More comes than is handled: slices are to be so many times shorter than usual, or as usual (1)."""

    def on_dropped(self) -> None:
        """Messages that were published on the node's channel have been dropped, since more came than may wait."""

    def on_gap(self) -> None:
        """The session is lost; what was under way has failed."""

    async def recover(self) -> None:
        """Connected again: bring Redis and this node to the same state."""

    async def beat(self) -> None:
        """Renew the lease and send the probe."""


class Session:
    """Keeps the two connections, and connects them again for as long as the node runs.

    Args:
        locate: Tells where Redis is, before each attempt to connect.
        channel: The node's pub/sub channel.
        user: The node.
        queue_limit: Bytes of memory of what may have been read and not handled yet; see `RespStream`.
        stored: Beginnings of the payloads of messages that can be read again; see `RespStream`.
    """

    def __init__(
        self,
        locate: Callable[[], Awaitable[RedisAddress]],
        channel: str,
        user: SessionUser,
        queue_limit: int = sys.maxsize,
        stored: tuple[bytes, ...] = (),
    ) -> None:
        self.up = False
        self.tracking = False
        self.tracking_refused = ""
        self.problem = "not connected yet"
        self.refused = ""
        """Why Redis refuses to write, where it does; what is published is heard nevertheless."""
        self.gaps = 0
        self.errors = Counter({"connection": 0})
        """Error replies of Redis by code; and connections lost, or attempts to connect that failed."""
        self.dropped = 0
        """Messages that were dropped, since more came than was handled and than may wait."""
        self.queue_limit = queue_limit
        self.round_trip = Histogram()
        """From the sending of a probe to its arrival."""
        self.place = "a place that is not known yet"
        """Where Redis is, without user or password."""
        self._locate = locate
        self._channel = channel
        self._user = user
        self._stored = stored
        self._reader: RedisLink | None = None
        self._writer: RedisLink | None = None
        self._lost: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._held = False
        self._last_beat = 0.0
        self._last_probe = 0.0
        self._probes: dict[bytes, float] = {}
        """Probes under way, and when they were sent."""
        self._beat_asked = asyncio.Event()

    @property
    def resp3(self) -> bool:
        """Whether commands can be sent on the connection that is subscribed."""
        return self._reader is not None and self._reader.resp3

    @property
    def queued(self) -> int:
        """Bytes of memory of what has been read and is not handled yet."""
        return 0 if self._reader is None else self._reader.queued

    def set_queue_limit(self, limit: int) -> None:
        """Change the limit of what may have been read and not handled yet."""
        self.queue_limit = limit
        if self._reader is not None:
            self._reader.set_queue_limit(limit)

    # ---- commands

    def send(self, callback: Callback, *args: str | bytes | int) -> None:
        """Send a command over the writer; see `RedisLink.send`."""
        if self._writer is None:
            callback(LinkLost("no connection to Redis"))
        else:
            self._writer.send(callback, *args)

    async def call(self, *args: str | bytes | int) -> Any:
        """Send a command over the writer and return its reply; see `RedisLink.call`."""
        if self._writer is None:
            raise LinkLost("no connection to Redis")
        return await self._writer.call(*args)

    def read(self, callback: Callback, *args: str | bytes | int) -> None:
        """Send a command over the reader, whose replies keep their place in the stream of messages."""
        if self._reader is None:
            callback(LinkLost("no connection to Redis"))
        else:
            self._reader.send(callback, *args)

    async def call_reader(self, *args: str | bytes | int) -> Any:
        """Send a command over the reader and return its reply; see `RedisLink.call`."""
        if self._reader is None:
            raise LinkLost("no connection to Redis")
        return await self._reader.call(*args)

    def run(self, callback: Callback, script: Script, keys: list[str | bytes], *args: str | bytes | int) -> None:
        """Run a script over the writer; sends its text where Redis has forgotten it."""

        def on_reply(reply: Any) -> None:
            if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
                self.send(callback, "EVAL", script.text, len(keys), *keys, *args)
            else:
                callback(reply)

        self.send(on_reply, "EVALSHA", script.sha, len(keys), *keys, *args)

    async def run_and_wait(self, script: Script, keys: list[str | bytes], *args: str | bytes | int) -> Any:
        """Run a script over the writer and return its reply.

        Raises:
            hiredis.ReplyError: Redis answered with an error.
            LinkLost: The connection ended first.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def on_reply(reply: Any) -> None:
            if future.done():
                return
            if isinstance(reply, Exception):
                future.set_exception(reply)
            else:
                future.set_result(reply)

        self.run(on_reply, script, keys, *args)
        return await future

    # ---- life

    async def start(self, first: Callable[[], Awaitable[None]]) -> None:
        """Connect for the first time, run `first`, and keep the session from then on.

        Raises:
            RedisUnavailable: Redis cannot be reached or refuses us.
            ConfigError: Raised by `first`.
        """
        try:
            async with asyncio.timeout(RECOVERY_LIMIT):
                await self._connect()
                await first()
        except (OSError, TimeoutError, hiredis.HiredisError) as error:
            self._drop()
            raise RedisUnavailable(f"Redis at {self.place}: {_explain(error)}", maybe_sent=False) from error
        except BaseException:
            self._drop()
            raise
        self._beaten()
        assert self._lost is not None
        self.up = not self._lost.done()
        self._task = asyncio.create_task(self._keep(), name="freeim session")

    async def stop(self) -> None:
        """End both connections."""
        self.up = False
        self.problem = "the node stops"
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._drop()

    def lose(self, reason: Exception) -> None:
        """Count the session as lost; it connects again by itself."""
        if self._lost is None or self._lost.done():
            return
        self._lost.set_result(None)
        was_up, self.up = self.up, False
        self.problem = str(reason)
        self._held = False
        self._drop()
        self.errors["connection"] += 1
        if was_up:
            self.gaps += 1
            log.warning("Redis lost (%s); the connections stay, and are served again once it is back", reason)
        self._user.on_gap()

    def stop_tracking(self, reason: str, then: Callable[[], None]) -> None:
        """Tell Redis to track no more for this node.

        Args:
            reason: Why.
            then: Called at that place in the stream behind which Redis tells of no change any more.
        """

        def stopped(reply: Any) -> None:
            if isinstance(reply, ConnectionError):
                return  # whatever Redis it connects to next is asked to track
            self.tracking = False
            self.tracking_refused = reason
            then()

        self.read(stopped, "CLIENT", "TRACKING", "OFF")

    def beat_now(self) -> None:
        """Beat without waiting for the next turn."""
        self._beat_asked.set()

    def probe_sent(self, number: int) -> None:
        """The node is about to publish a probe."""
        self._probes[b"%d" % number] = boot_time()

    def probe_seen(self, number: bytes) -> None:
        """A probe was heard; where it is this node's own, the bus is alive.

        Another instance of the same name sends probes on the same channel (see `freeim.node.handover`).
        """
        sent = self._probes.pop(number, None)
        if sent is not None:
            self._last_probe = now = boot_time()
            self.round_trip.observe(now - sent)

    def _count_error(self, error: Exception) -> None:
        code = _ERROR_CODE.match(str(error))
        if code is None or code[0] != "NOSCRIPT":  # that one is no failure: the script is sent
            self.errors[code[0] if code else "ERR"] += 1

    def _count_dropped(self, messages: int) -> None:
        self.dropped += messages
        self._user.on_dropped()

    def _drop(self) -> None:
        self._probes.clear()
        reader, self._reader = self._reader, None
        writer, self._writer = self._writer, None
        for link in (reader, writer):
            if link is not None:
                link.close()

    async def _connect(self) -> None:
        self._lost = asyncio.get_running_loop().create_future()
        address = await self._locate()
        self.place = address.place
        reader = self._reader = RedisLink(
            on_message=self._user.on_message,
            on_invalidate=self._user.on_invalidate,
            on_received=self._user.on_received,
            on_hurry=self._user.on_hurry,
            on_error=self._count_error,
            on_lost=self.lose,
            gate=self._admit,
            queue_limit=self.queue_limit,
            on_dropped=self._count_dropped,
            vital=_VITAL,
            stored=self._stored,
        )
        writer = self._writer = RedisLink(on_error=self._count_error, on_lost=self.lose)
        await reader.connect(address)
        await writer.connect(address)
        if self._lost.done():
            # The reader was lost while the writer connected; nobody else knows of the writer any more.
            writer.close()
            raise LinkLost(self.problem)
        await self._track(reader)
        self._beaten()
        await reader.subscribe(self._channel)

    async def _track(self, reader: RedisLink) -> None:
        self.tracking = False
        if not reader.resp3:
            self.tracking_refused = "this Redis has no RESP3"
            return
        try:
            await reader.call("CLIENT", "TRACKING", "ON")
        except hiredis.ReplyError as error:
            self.tracking_refused = f"CLIENT TRACKING was refused: {error}"
        else:
            self.tracking = True
            self.tracking_refused = ""

    async def _keep(self) -> None:
        while True:
            beats = asyncio.create_task(self._beats(), name="freeim beats")
            assert self._lost is not None
            try:
                await asyncio.shield(self._lost)
            finally:
                beats.cancel()
                await asyncio.gather(beats, return_exceptions=True)
            await self._reconnect()

    async def _reconnect(self) -> None:
        delay = 0.05
        while True:
            # Full jitter: nodes that lost Redis together do not come back together.
            await asyncio.sleep(random.uniform(0, delay))
            delay = min(MAX_BACKOFF, delay * 2)
            recovering = False
            try:
                async with asyncio.timeout(RECOVERY_LIMIT):
                    await self._connect()
                    recovering = True
                    await self._user.recover()
            except (OSError, TimeoutError, hiredis.HiredisError, FreeImError) as error:
                self.problem = f"Redis at {self.place}: {_explain(error)}"
                lost = self._lost is not None and self._lost.done()  # then `lose` has done the rest
                if not lost:
                    self.errors["connection"] += 1
                self._drop()
                if recovering and not lost:
                    self._user.on_gap()  # what was read again was read on connections that are gone
                continue
            if self._lost is None or self._lost.done():
                continue
            self._beaten()
            self.up = True
            log.info("Redis is back%s", "" if self.refused else "; presence and memberships have been compared")
            return

    # ---- beats

    def _beaten(self) -> None:
        self._last_beat = self._last_probe = boot_time()

    async def _beats(self) -> None:
        sent = boot_time()
        while True:
            try:
                # From one to the next, however long the answer took: a lease has no time for both.
                async with asyncio.timeout(sent + BEAT_INTERVAL - boot_time()):
                    await self._beat_asked.wait()
            except TimeoutError:
                pass
            self._beat_asked.clear()
            sent = boot_time()
            try:
                async with asyncio.timeout(SILENCE_LIMIT):
                    await self._user.beat()
            except TimeoutError:
                self.lose(LinkLost(f"no answer for {SILENCE_LIMIT:.0f} s"))
                return
            except (OSError, hiredis.HiredisError) as error:
                self.lose(LinkLost(f"the lease could not be renewed: {error}"))
                return
            self._last_beat = sent
            self._release()
            # As long as not all is handled that was heard, the probe may be in it.
            behind = self._reader is not None and self._reader.behind
            if not behind and sent - self._last_probe > SILENCE_LIMIT + BEAT_INTERVAL:
                self.lose(LinkLost("the node does not hear its own channel any more"))
                return

    def _admit(self) -> bool:
        """Whether what was read may be handled now.

        Where this process slept past its lease, others may have buried it: the leaves of the burial must not be
        believed before the next beat has told, and the reconciliation mended it.
        """
        if not self._held and self.up and boot_time() - self._last_beat > SILENCE_LIMIT:
            self._held = True
            self.beat_now()
        return not self._held

    def _release(self) -> None:
        held, self._held = self._held, False
        if held and self._reader is not None:
            self._reader.go_on()


def _explain(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
