"""One connection to Redis: commands go out pipelined, replies come back in order."""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import Callable
from typing import Any, Final

import hiredis

from freeim._core import BadStream, RespStream
from freeim.redis_url import RedisAddress

Callback = Callable[[Any], Callable[[], Any] | None]
"""Gets the reply; an exception where Redis answered with an error or the connection was lost.

Where it could not do all at once, it returns what goes on with it, as those do who get messages."""

LARGE_READ: Final = 65_536
"""Bytes of a read that has more behind it, as a rule: a unix socket holds little more, so Redis waits for us."""

HURRY: Final = 8
"""So many times shorter are all slices while more waits than two large reads."""
GREAT_HURRY: Final = 128
"""The same in a flood: from a turn of the loop that brought a `LARGE_READ` on, for `FLOOD_TURNS`."""
FLOOD_TURNS: Final = 32
"""Turns of the loop: they are so short in a flood that Redis does not send something in each."""

CONNECT_TIMEOUT: Final = 5.0
"""Seconds for a connection to Redis, its TLS handshake and its greeting included."""


class LinkLost(ConnectionError):
    """The connection to Redis ended before the reply came."""


class RedisLink(asyncio.Protocol):
    """One connection to Redis. Its commands of one turn of the loop leave in one write.

    What Redis sends is handled in slices of time, for it may be the answers to hundreds of handshakes in one read, or
    messages to everybody: the loop looks at everything else in between. It is read in any case, and waits here for its
    turn: Redis cuts a subscriber off that leaves too much waiting there.

    Args:
        on_message: Gets the payload of each message on a subscribed channel; see `RespStream`.
        on_invalidate: Gets the invalidated keys, or None for all of them.
        on_received: Called after each slice of what Redis sent has been handled: False where it was not enough for all
            that came in one read.
        on_error: Gets each reply that is an error, before whoever sent the command.
        on_hurry: Called when slices are to become shorter or longer, with how many times shorter than usual.
        on_lost: Called once, with the reason, when the connection ends by itself.
        gate: Asked before each slice; where it returns False all waits until `go_on` is called.
        queue_limit: Bytes of memory that may wait; see `RespStream`.
        on_dropped: Called whenever messages were dropped, since more than that waited; see `RespStream`.
        vital: Beginnings of the payloads of messages that are never dropped.
        stored: The same of those that can be read again; see `RespStream`.
    """

    def __init__(
        self,
        *,
        on_message: Callable[[bytes], Callable[[], Any] | None] | None = None,
        on_invalidate: Callable[[list[bytes] | None], None] | None = None,
        on_received: Callable[[bool], None] | None = None,
        on_hurry: Callable[[int], None] | None = None,
        on_error: Callable[[Exception], None] | None = None,
        on_lost: Callable[[Exception], None] | None = None,
        gate: Callable[[], bool] | None = None,
        queue_limit: int = sys.maxsize,
        on_dropped: Callable[[int], None] | None = None,
        vital: tuple[bytes, ...] = (),
        stored: tuple[bytes, ...] = (),
    ) -> None:
        self.resp3 = False
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._subscribes = on_message is not None
        self._on_message = on_message or _ignore
        self._on_invalidate = on_invalidate or _ignore
        self._on_received = on_received
        self._on_hurry = on_hurry
        self._on_error = on_error
        self._on_lost = on_lost
        self._gate = gate
        self._queue_limit = queue_limit
        self._on_dropped = on_dropped
        self._vital = vital
        self._stored = stored
        self._subscribed: asyncio.Future[None] | None = None
        self._out: list[bytes] = []
        self.behind = False
        """Whether more has been read than is handled, or so much that the loop looks at everything else first."""
        self._flood = 0
        """Turns that are left of what counts as a flood."""
        self._fresh = 0
        """Bytes that were read since the last turn, while something else had to be handled."""
        self._stream = self._new_stream(hiredis.PushNotification)

    def _new_stream(self, push_type: type) -> RespStream:
        reader = hiredis.Reader(notEnoughData=RespStream.NOTHING)
        return RespStream(
            reader,
            push_type,
            self._on_message,
            self._on_invalidate,
            self._on_push,
            on_error=self._on_error,
            queue_limit=self._queue_limit,
            on_dropped=self._on_dropped,
            vital=self._vital,
            stored=self._stored,
        )

    @property
    def alive(self) -> bool:
        """Whether commands can be sent."""
        return self._transport is not None

    def set_queue_limit(self, limit: int) -> None:
        """Change how much may wait; what is too much by it goes when more comes."""
        self._queue_limit = self._stream.queue_limit = limit

    @property
    def queued(self) -> int:
        """Bytes of memory of what has been read and is not handled yet."""
        return self._stream.queued

    async def connect(self, address: RedisAddress) -> None:
        """Connect and greet: RESP3 where Redis has it (6.0 and newer), else RESP2.

        Raises:
            OSError: Redis cannot be reached, or the connection ended (`LinkLost`).
            TimeoutError: It took longer than `CONNECT_TIMEOUT`.
            hiredis.ReplyError: Redis refused the user, the password or the database.
        """
        async with asyncio.timeout(CONNECT_TIMEOUT):
            if address.socket_path is not None:
                await self._loop.create_unix_connection(lambda: self, address.socket_path)
            else:
                context = ssl.create_default_context() if address.tls else None
                await self._loop.create_connection(lambda: self, address.host, address.port, ssl=context)
            await self._greet(address)

    async def _greet(self, address: RedisAddress) -> None:
        auth = [address.username or "default", address.password] if address.password is not None else []
        try:
            await self.call("HELLO", "3", *(["AUTH", *auth] if auth else []))
            self.resp3 = True
        except hiredis.ReplyError as error:
            if not str(error).startswith(("ERR unknown command", "NOPROTO", "ERR NOPROTO")):
                raise
            if auth:
                await self.call("AUTH", *(auth if address.username else auth[1:]))
            if self._subscribes:
                # All that a subscribed RESP2 connection receives are messages, as plain arrays.
                self._stream = self._new_stream(list)
        if address.database and not self._subscribes:
            await self.call("SELECT", str(address.database))
        elif address.database and self.resp3:
            await self.call("SELECT", str(address.database))

    async def subscribe(self, channel: str) -> None:
        """Listen to a channel; returns when Redis has confirmed it."""
        self._subscribed = self._loop.create_future()
        self._write(_pack(("SUBSCRIBE", channel)))
        await self._subscribed

    async def call(self, *args: str | bytes | int) -> Any:
        """Send one command and return its reply.

        Raises:
            hiredis.ReplyError: Redis answered with an error.
            LinkLost: The connection ended first.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        self.send(lambda reply: _resolve(future, reply), *args)
        return await future

    def send(self, callback: Callback, *args: str | bytes | int) -> None:
        """Send one command. The callback gets the reply; an error reply comes as an exception object."""
        if self._transport is None:
            callback(LinkLost("no connection to Redis"))
            return
        self._stream.waiting.append(callback)
        self._write(_pack(args))

    def _write(self, packed: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(packed)

    def _flush(self) -> None:
        if self._transport is not None:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def close(self, reason: Exception | None = None) -> None:
        """End the connection. Commands without a reply fail; `on_lost` is called only where a reason is given."""
        if self._transport is None:
            return
        transport, self._transport = self._transport, None
        transport.abort()
        self._stream.finish()
        self._hurry_up(1)
        if self._on_received is not None:
            self._on_received(True)  # what may be left of a slice is lost
        error = reason or LinkLost("the connection to Redis was closed")
        if self._subscribed is not None and not self._subscribed.done():
            self._subscribed.set_exception(error)
            self._subscribed.exception()  # nobody may be waiting any more
        waiting = self._stream.waiting
        while waiting:
            waiting.popleft()(error)
        if reason is not None and self._on_lost is not None:
            self._on_lost(reason)

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._handle(data, wait=self.behind)

    def _handle(self, data: bytes, *, wait: bool) -> None:
        """Handle one slice of what has been read, the last of which is this; or let it wait for its turn."""
        try:
            if wait or (self._gate is not None and not self._gate()):
                self.behind = True
                self._fresh += len(data)
                self._stream.queue(data)
                return
            complete = self._stream.receive(data)
        except (hiredis.ProtocolError, BadStream) as error:
            self.close(LinkLost(f"Redis sent something that is not its protocol: {error}"))
            return
        if self._transport is None:
            return  # closed by one of those who were called
        self.behind = not complete or len(data) >= LARGE_READ
        if self.behind:
            # Twice: what is called soon is called before the loop has looked at anything else.
            self._loop.call_soon(self._loop.call_soon, self._next_turn)
        else:
            self._hurry_up(1)
        if self._on_received is not None:
            self._on_received(self._stream.read_ended)

    def _next_turn(self) -> None:
        """Handle the next slice, the shorter the more comes: the socket holds little, and is to be read soon again."""
        fresh, self._fresh = self._fresh, 0
        self._flood = FLOOD_TURNS if fresh >= LARGE_READ else max(0, self._flood - 1)
        self._hurry_up(GREAT_HURRY if self._flood else HURRY if self.queued > 2 * LARGE_READ else 1)
        self.go_on()

    def _hurry_up(self, hurry: int) -> None:
        if hurry != self._stream.hurry:
            self._stream.hurry = hurry
            if self._on_hurry is not None:
                self._on_hurry(hurry)

    def go_on(self) -> None:
        """Handle the next slice of what has been read; to be called when the gate lets it pass again."""
        if self._transport is not None:
            try:
                self._handle(b"", wait=False)
            except Exception as error:
                # What an error in `data_received` comes to as well: half a slice must hold up nobody.
                self.close(LinkLost(f"internal error: {error!r}"))
                raise

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(LinkLost(f"the connection to Redis ended: {exc or 'closed by Redis'}"))

    def _on_push(self, push: list[Any]) -> None:
        if push[:1] == [b"subscribe"] and self._subscribed is not None and not self._subscribed.done():
            self._subscribed.set_result(None)


def _pack(args: tuple[str | bytes | int, ...]) -> bytes:
    packed: bytes = hiredis.pack_command(args)  # type: ignore[arg-type]  # its stub allows one argument only
    return packed


def _ignore(_: object) -> None:
    pass


def _resolve(future: asyncio.Future[Any], reply: Any) -> None:
    if future.done():
        return
    if isinstance(reply, Exception):
        future.set_exception(reply)
    else:
        future.set_result(reply)
