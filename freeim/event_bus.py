"""Clients that come and go: the events, and the bus for synchronous programs."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from freeim.event_group import GroupMember
from freeim.event_group_thread import GroupThread
from freeim.names import ClientId, IdKind, Names, check_client_id, parse_client_id, system_id

if TYPE_CHECKING:
    import redis as redis_py

logger: Final = logging.getLogger("freeim")

PING_SECONDS: Final = 5.0
"""How long a subscription may be silent before it is asked for a sign of life."""
PONG_SECONDS: Final = 5.0
"""How long the sign of life may take before the connection counts as half-open."""
POLL_SECONDS: Final = 0.2
"""How often the thread looks whether it is to stop."""
LONGEST_PAUSE: Final = 5.0
"""The longest wait between two attempts to connect."""
EVENTS_PER_LOOK: Final = 100
"""How many kept events the leader of a group handles before it looks again at what comes."""


@dataclass(frozen=True, slots=True)
class Event:
    """A connection was opened or closed.

    Attributes:
        client_id: Whose connection.
        metadata: What `prev_connect_server` was given for it.
        connections: How many connections the client has now: 1 at ``online`` means that it has just come, 0 at
            ``offline`` that it is gone. None where the node does not tell (FreeIM's .NET node).
        kind: ``"online"`` for a connection that opened, ``"offline"`` for one that closed.
        fence: In a group, the number of the leadership under which this process handles the event. It grows with each
            take-over: an app that writes it beside its data can refuse to replace what has a greater one. None without
            a group.
    """

    client_id: ClientId
    metadata: str | None
    connections: int | None
    kind: Literal["online", "offline"] = "online"
    fence: int | None = None


class EventDecoder:
    """Turns what is published into events.

    Args:
        names: The names of this deployment.
        ids: Its kind of client id.
    """

    def __init__(self, names: Names, ids: IdKind) -> None:
        self.channels = (names.event_online, names.event_offline)
        self._kinds: dict[str, Literal["online", "offline"]] = {
            names.event_online: "online",
            names.event_offline: "offline",
        }
        self._ids: IdKind = ids
        self._garbage_seen = False

    def decode(self, channel: bytes, payload: bytes, fence: int | None = None) -> Event | None:
        """Return the event; None for what is none, which is logged the first time."""
        try:
            document = json.loads(payload)
            client_id = self._client_id(document["Item1"])
            metadata = document.get("Item2")
            connections = document.get("Item3")
            if metadata is not None and not isinstance(metadata, str):
                raise ValueError("Item2 is no text")
            if type(connections) is not int or connections < 0:
                connections = None
            return Event(client_id, metadata, connections, self._kinds[channel.decode()], fence)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if not self._garbage_seen:
                self._garbage_seen = True
                logger.warning(
                    "skipped an event on %r that is none: %.200r (%r); more of the kind are skipped in silence",
                    channel,
                    payload,
                    error,
                )
            return None

    def _client_id(self, value: object) -> ClientId:
        client_id = parse_client_id(value, self._ids) if isinstance(value, str) else check_client_id(value, self._ids)
        if client_id is None or client_id == system_id(self._ids):
            raise ValueError("Item1 is no client id")
        return client_id


def pause_before(attempt: int) -> float:
    """Return how long to wait before connecting again, in seconds.

    Args:
        attempt: How many attempts have failed in a row.
    """
    # Jittered, so that the helpers of a whole fleet do not come back to a restarted Redis in the same instant.
    return min(LONGEST_PAUSE, 0.05 * 2.0 ** min(attempt, 20)) * random.uniform(0.5, 1.0)


class Pulse:
    """Decides when a silent subscription is asked for a sign of life, and when it counts as dead; no I/O.

    Args:
        now: The current time, in seconds that only grow.
    """

    def __init__(self, now: float) -> None:
        self._heard = now
        self._asked: float | None = None

    def heard(self, now: float) -> None:
        """Note that anything came in."""
        self._heard = now
        self._asked = None

    def check(self, now: float) -> Literal["fine", "ask", "dead"]:
        """Tell what to do; "ask" comes once for each silence."""
        if self._asked is not None:
            return "dead" if now - self._asked >= PONG_SECONDS else "fine"
        if now - self._heard >= PING_SECONDS:
            self._asked = now
            return "ask"
        return "fine"


def call_logged(function: Callable[..., object], *args: object) -> object:
    """Call what the app gave us; what it raises is logged, and life goes on."""
    try:
        return function(*args)
    except Exception:
        logger.exception("the event bus's callback %r raised", function)
        return None


class EventBus:
    """Tells a synchronous program about clients that come and go; a thread calls its callbacks, one at a time.

    It reconnects for ever, and notices a connection that is only half there. After any time in which events may have
    been missed it calls `resync`. A callback that raises is logged. Threads do not survive a fork: start a bus in each
    process that wants one. With a group, only one of the processes that ask for it calls its callbacks. Made by
    `ImHelper.event_bus`::

        with helper.event_bus(online=print, resync=read_again):
            ...
    """

    def __init__(
        self,
        connect: Callable[[], redis_py.Redis],
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
        self._stopping = threading.Event()
        self._subscribed = threading.Event()
        self._tried = threading.Event()
        self._thread = threading.Thread(target=self._run, name="freeim-event-bus", daemon=True)
        self._group = None if group is None else GroupThread(connect, GroupMember(names, group))

    @property
    def alive(self) -> bool:
        """Whether the bus is running: from its start until `stop`, through every reconnect."""
        return self._thread.is_alive()

    @property
    def subscribed(self) -> bool:
        """Whether it is connected to Redis and subscribed at this moment."""
        return self._subscribed.is_set() and self.alive

    @property
    def leading(self) -> bool:
        """Whether this process is the one of its group that handles events now; without a group, whether it runs."""
        return self.alive and (self._group is None or self._group.leads())

    def start(self, timeout: float) -> None:
        """Begin; `ImHelper.event_bus` has done so.

        Args:
            timeout: How long to wait for the first attempt to subscribe, in seconds.
        """
        self._thread.start()
        if self._group is not None:
            atexit.register(self.stop)  # so that the next process takes over at once
        self._tried.wait(timeout)

    def wait_subscribed(self, timeout: float | None = None) -> bool:
        """Wait until the bus is subscribed.

        Args:
            timeout: How long to wait at most, in seconds.

        Returns:
            Whether it is.
        """
        return self._subscribed.wait(timeout)

    def stop(self, timeout: float | None = 5.0) -> None:
        """Stop listening; a callback that is running ends first. In a group, another process takes over at once.

        Args:
            timeout: How long to wait for the thread, in seconds; None for as long as it takes.
        """
        self._stopping.set()
        atexit.unregister(self.stop)
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    # -- the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        failed, gap = 0, False
        if self._group is not None:
            self._group.start()
        while not self._stopping.is_set():
            try:
                client: Any = self._connect()
                with contextlib.closing(client), client.pubsub() as pubsub:
                    self._subscribe(pubsub)
                    failed = 0
                    if self._group is not None:
                        self._group.subscribed()
                    self._subscribed.set()
                    self._tried.set()
                    if gap and self._group is None and self._resync is not None:
                        call_logged(self._resync)
                    self._listen(pubsub)
            except Exception as error:
                self._subscribed.clear()
                self._tried.set()
                gap = True
                if self._stopping.is_set():
                    break
                if self._group is not None:
                    self._group.unsubscribed()
                failed += 1
                if failed == 1:
                    logger.warning("the event bus lost Redis (%s); it keeps trying", error)
                self._stopping.wait(pause_before(failed))
        if self._group is not None:
            self._group.leave()

    def _subscribe(self, pubsub: redis_py.client.PubSub) -> None:
        """Subscribe and wait for all confirmations: from then on nothing is missed."""
        channels = self._decoder.channels if self._group is None else (*self._decoder.channels, self._group.channel)
        pubsub.subscribe(*channels)
        deadline = time.monotonic() + PONG_SECONDS
        confirmed = 0
        while confirmed < len(channels):
            message = pubsub.get_message(timeout=POLL_SECONDS)
            if message is not None and message["type"] == "subscribe":
                confirmed += 1
            elif message is not None:
                self._handle(message)
            if self._stopping.is_set() or time.monotonic() > deadline:
                raise TimeoutError("the subscription was not confirmed")

    def _listen(self, pubsub: redis_py.client.PubSub) -> None:
        pulse = Pulse(time.monotonic())
        while not self._stopping.is_set():
            more = self._group is not None and self._handle_kept(self._group)
            message = pubsub.get_message(timeout=0.0 if more else POLL_SECONDS)
            now = time.monotonic()
            if message is not None:
                pulse.heard(now)
                self._handle(message)
                continue
            state = pulse.check(now)
            if state == "ask":
                pubsub.ping()
            elif state == "dead":
                raise TimeoutError("no answer to a ping")

    def _handle(self, message: dict[str, Any]) -> None:
        if message["type"] == "subscribe":
            # redis-py subscribes again by itself when it reconnects; what came between is lost, so it is a gap.
            raise ConnectionError("the connection was replaced")
        if message["type"] != "message":
            return
        if self._group is not None:
            self._group.heard(message["channel"], message["data"])
        else:
            self._tell(self._decoder.decode(message["channel"], message["data"]))

    def _handle_kept(self, group: GroupThread) -> bool:
        """Handle what waits while this process leads; return whether there is more."""
        for _ in range(EVENTS_PER_LOOK):
            # Asked before each event: this process may have stood still for longer than its lease.
            gap, item, fence = group.next()
            if self._stopping.is_set():
                return False
            if gap:
                if self._resync is not None:
                    call_logged(self._resync)
                group.resynced()
            elif item is not None:
                self._tell(self._decoder.decode(*item, fence))
                group.done()
            else:
                return False
        return True

    def _tell(self, event: Event | None) -> None:
        callback = None if event is None else self._callbacks[event.kind]
        if callback is not None:
            call_logged(callback, event)
