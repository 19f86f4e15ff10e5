"""Clients that come and go: the events, and the bus for synchronous programs."""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class Event:
    """A connection was opened or closed.

    Attributes:
        client_id: Whose connection.
        metadata: What `prev_connect_server` was given for it.
        connections: How many connections the client has now: 1 at ``online`` means that it has just come, 0 at
            ``offline`` that it is gone. None where the node does not tell (FreeIM's .NET node).
        kind: ``"online"`` for a connection that opened, ``"offline"`` for one that closed.
    """

    client_id: ClientId
    metadata: str | None
    connections: int | None
    kind: Literal["online", "offline"] = "online"


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

    def decode(self, channel: bytes, payload: bytes) -> Event | None:
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
            return Event(client_id, metadata, connections, self._kinds[channel.decode()])
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
    process that wants one. Made by `ImHelper.event_bus`::

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

    @property
    def alive(self) -> bool:
        """Whether the bus is running: from its start until `stop`, through every reconnect."""
        return self._thread.is_alive()

    @property
    def subscribed(self) -> bool:
        """Whether it is connected to Redis and subscribed at this moment."""
        return self._subscribed.is_set() and self.alive

    def start(self, timeout: float) -> None:
        """Begin; `ImHelper.event_bus` has done so.

        Args:
            timeout: How long to wait for the first attempt to subscribe, in seconds.
        """
        self._thread.start()
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
        """Stop listening; a callback that is running ends first.

        Args:
            timeout: How long to wait for the thread, in seconds; None for as long as it takes.
        """
        self._stopping.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    # -- the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        failed, gap = 0, False
        while not self._stopping.is_set():
            try:
                client: Any = self._connect()
                with contextlib.closing(client), client.pubsub() as pubsub:
                    self._subscribe(pubsub)
                    failed = 0
                    self._subscribed.set()
                    self._tried.set()
                    if gap and self._resync is not None:
                        call_logged(self._resync)
                    self._listen(pubsub)
            except Exception as error:
                self._subscribed.clear()
                self._tried.set()
                gap = True
                if self._stopping.is_set():
                    return
                failed += 1
                if failed == 1:
                    logger.warning("the event bus lost Redis (%s); it keeps trying", error)
                self._stopping.wait(pause_before(failed))

    def _subscribe(self, pubsub: redis_py.client.PubSub) -> None:
        """Subscribe and wait for both confirmations: from then on nothing is missed."""
        pubsub.subscribe(*self._decoder.channels)
        deadline = time.monotonic() + PONG_SECONDS
        confirmed = 0
        while confirmed < len(self._decoder.channels):
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
            message = pubsub.get_message(timeout=POLL_SECONDS)
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
        event = self._decoder.decode(message["channel"], message["data"])
        if event is not None:
            callback = self._callbacks[event.kind]
            if callback is not None:
                call_logged(callback, event)
