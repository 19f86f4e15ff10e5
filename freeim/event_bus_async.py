"""Clients that come and go: the bus for asyncio programs."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from freeim.clock import boot_time
from freeim.event_bus import EVENTS_PER_LOOK, PONG_SECONDS, Event, EventDecoder, Pulse, pause_before
from freeim.event_group import GroupMember, beat_pause
from freeim.names import IdKind, Names

if TYPE_CHECKING:
    import redis.asyncio

logger: Final = logging.getLogger("freeim")

LOOK_SECONDS: Final = 1.0
"""How often a silent subscription looks whether it is time to ask for a sign of life."""
QUEUED_EVENTS: Final = 10_000
"""How many events wait for a slow ``async for``; beyond that they are dropped, and `resync` is called."""
LEAVE_SECONDS: Final = 1.0
"""How long a bus that stops tries to give the lease of its group back, twice at most."""


class AsyncEventBus:
    """Tells an asyncio program about clients that come and go.

    A task calls the callbacks, one at a time; they may be coroutine functions. Instead of them, or beside them, the bus
    can be iterated. It reconnects for ever, and notices a connection that is only half there. After any time in which
    events may have been missed it calls `resync`. A callback that raises is logged. With a group, only one of the
    processes that ask for it is told of events; there the bus has callbacks or is iterated, by one ``async for``. Made
    by `AsyncImHelper.event_bus`::

        async with helper.event_bus(resync=read_again) as bus:
            async for event in bus:
                print(event.kind, event.client_id)
    """

    def __init__(
        self,
        connect: Callable[[], redis.asyncio.Redis],
        names: Names,
        ids: IdKind,
        online: Callable[[Event], object] | None,
        offline: Callable[[Event], object] | None,
        resync: Callable[[], object] | None,
        group: str | None,
    ) -> None:
        for name, function in (("online", online), ("offline", offline), ("resync", resync)):
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be callable, not {type(function).__name__}")
        self._connect = connect
        self._decoder = EventDecoder(names, ids)
        self._callbacks = {"online": online, "offline": offline}
        self._resync = resync
        # Without callbacks the events can only be meant for an `async for`, which may begin a moment later.
        self._iterated = online is None and offline is None
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._overflown = False
        self._member = None if group is None else GroupMember(names, group)
        self._wake = asyncio.Event()  # take a turn at once
        self._news = asyncio.Event()  # there may be an event for the `async for`
        self._ended = False
        self._subscribed = asyncio.Event()
        self._tried = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self._task = self.loop.create_task(self._run(), name="freeim-event-bus")

    @property
    def alive(self) -> bool:
        """Whether the bus is running: from its start until `stop`, through every reconnect."""
        return not self._task.done()

    @property
    def subscribed(self) -> bool:
        """Whether it is connected to Redis and subscribed at this moment."""
        return self._subscribed.is_set() and self.alive

    @property
    def leading(self) -> bool:
        """Whether this process is the one of its group that handles events now; without a group, whether it runs."""
        return self.alive and (self._member is None or self._member.leads(boot_time()))

    async def wait_subscribed(self, timeout: float | None = None) -> bool:
        """Wait until the bus is subscribed.

        Args:
            timeout: How long to wait at most, in seconds.

        Returns:
            Whether it is.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._subscribed.wait(), timeout)
        return self._subscribed.is_set()

    async def stop(self, timeout: float | None = 5.0) -> None:
        """Stop listening; a callback that is running is cancelled, and an ``async for`` ends.

        In a group another process takes over at once, and is told again of the event whose callback was cancelled.

        Args:
            timeout: How long to wait for the task, in seconds; None for as long as it takes.
        """
        if self._task is asyncio.current_task():
            raise RuntimeError("a callback cannot wait for the end of the bus that calls it; stop it from another task")
        self._task.cancel()
        await asyncio.wait([self._task], timeout=timeout)

    async def __aenter__(self) -> Self:
        await self._tried.wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if kind is None and self._member is not None:
            self._member.done()  # the event with which an `async for` was left
        await self.stop()

    def __aiter__(self) -> AsyncIterator[Event]:
        if self._member is not None and not self._iterated:
            raise TypeError("a bus with a group hands each event to its callbacks or to one `async for`, not to both")
        self._iterated = True
        return self

    async def __anext__(self) -> Event:
        if self._member is not None:
            return await self._next_kept(self._member)
        if not self.alive and self._queue.empty():
            raise StopAsyncIteration
        event = await self._queue.get()
        if event is None:
            self._queue.put_nowait(None)  # whoever else iterates ends too
            raise StopAsyncIteration
        return event

    # -- the task -----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        failed, gap = 0, False
        beat = None if self._member is None else asyncio.create_task(self._beat(self._member))
        try:
            while True:
                try:
                    client = self._connect()
                    async with contextlib.AsyncExitStack() as stack:
                        stack.push_async_callback(client.connection_pool.disconnect)
                        pubsub = await stack.enter_async_context(client.pubsub())
                        await self._subscribe(pubsub)
                        failed = 0
                        if self._member is not None:
                            self._member.subscribed()
                            self._wake.set()
                        self._subscribed.set()
                        self._tried.set()
                        if gap and self._member is None:
                            await self._call(self._resync)
                        await self._listen(pubsub)
                except Exception as error:
                    self._subscribed.clear()
                    self._tried.set()
                    gap = True
                    if self._member is not None:
                        self._member.unsubscribed()
                        self._wake.set()
                    failed += 1
                    if failed == 1:
                        logger.warning("the event bus lost Redis (%s); it keeps trying", error)
                    await asyncio.sleep(pause_before(failed))
        finally:
            self._subscribed.clear()
            self._tried.set()
            self._queue.put_nowait(None)
            self._ended = True
            self._news.set()
            if beat is not None:
                self._wake.set()
                # Not cancelled at once: it gives the lease back.
                if not (await asyncio.wait([beat], timeout=LEAVE_SECONDS))[0]:
                    beat.cancel()
                    await asyncio.wait([beat])

    async def _subscribe(self, pubsub: Any) -> None:
        """Subscribe and wait for all confirmations: from then on nothing is missed."""
        channels = self._decoder.channels if self._member is None else (*self._decoder.channels, self._member.channel)
        await pubsub.subscribe(*channels)
        deadline = time.monotonic() + PONG_SECONDS
        confirmed = 0
        while confirmed < len(channels):
            message = await pubsub.get_message(timeout=LOOK_SECONDS)
            if message is not None and message["type"] == "subscribe":
                confirmed += 1
            elif message is not None:
                await self._handle(message)
            if time.monotonic() > deadline:
                raise TimeoutError("the subscription was not confirmed")

    async def _listen(self, pubsub: Any) -> None:
        pulse = Pulse(time.monotonic())
        while True:
            more = self._member is not None and await self._handle_kept(self._member)
            message = await pubsub.get_message(timeout=0.001 if more else LOOK_SECONDS)
            if message is not None:
                pulse.heard(time.monotonic())
                await self._handle(message)
            if self._overflown and self._queue.qsize() < QUEUED_EVENTS:
                self._overflown = False
                await self._call(self._resync)
            if message is not None:
                continue
            state = pulse.check(time.monotonic())
            if state == "ask":
                await pubsub.ping()
            elif state == "dead":
                raise TimeoutError("no answer to a ping")

    async def _handle(self, message: dict[str, Any]) -> None:
        if message["type"] == "subscribe":
            # redis-py subscribes again by itself when it reconnects; what came between is lost, so it is a gap.
            raise ConnectionError("the connection was replaced")
        if message["type"] != "message":
            return
        channel, payload = message["channel"], message["data"]
        if self._member is not None:
            if self._member.heard(channel, payload):
                self._wake.set()
            return
        event = self._decoder.decode(channel, payload)
        if event is None:
            return
        if self._iterated:
            if self._queue.qsize() < QUEUED_EVENTS:
                self._queue.put_nowait(event)
            elif not self._overflown:
                self._overflown = True
                logger.warning("%d events wait for an `async for`; more are dropped", QUEUED_EVENTS)
        await self._call(self._callbacks[event.kind], event)

    async def _call(self, function: Callable[..., object] | None, *args: object) -> None:
        if function is None:
            return
        try:
            result = function(*args)
            if inspect.isawaitable(result):
                await result
        except Exception:
            logger.exception("the event bus's callback %r raised", function)

    # -- a member of a group ------------------------------------------------------------------------------------

    async def _beat(self, member: GroupMember) -> None:
        """Keep the lease, on a connection of its own; at the end, give it back."""
        client: Any = self._connect()
        failed = False
        try:
            while not self._ended:
                try:
                    await self._take_turn(client, member)
                    failed = False
                except Exception as error:
                    if not failed:
                        logger.warning("event group %r cannot renew its lease: %s", member.group, error)
                    failed = True
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), beat_pause())
                self._wake.clear()
        finally:
            member.unsubscribed()
            with contextlib.suppress(Exception):
                await client.connection_pool.disconnect()  # a turn may have been cut short: its answer is to come
                await asyncio.wait_for(self._take_turn(client, member), LEAVE_SECONDS)
            await client.connection_pool.disconnect()

    async def _take_turn(self, client: Any, member: GroupMember) -> None:
        turn = member.turn(boot_time())
        if turn is not None:
            member.answered(turn, await client.execute_command(*turn.command))

    async def _handle_kept(self, member: GroupMember) -> bool:
        """Handle what waits while this process leads; return whether there is more."""
        for _ in range(EVENTS_PER_LOOK):
            # Asked before each event: this process may have stood still for longer than its lease.
            now = boot_time()
            if member.take_gap(now):
                await self._call(self._resync)
                member.resynced()
            elif self._iterated:
                self._news.set()
                return False
            elif (item := member.next(now)) is not None:
                event = self._decoder.decode(*item, member.fence)
                if event is not None:
                    await self._call(self._callbacks[event.kind], event)
                member.done()
            else:
                return False
        return True

    async def _next_kept(self, member: GroupMember) -> Event:
        """Return the next event for an ``async for``, which has handled the one before."""
        member.done()
        while not self._ended:
            item = member.next(boot_time())
            if item is None:
                self._news.clear()
                await self._news.wait()
            elif (event := self._decoder.decode(*item, member.fence)) is None:
                member.done()
            else:
                return event
        raise StopAsyncIteration
