"""WebSocket clients of a page, quick enough to hammer with: one that blocks and one for asyncio."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import cast

from freeim.names import ClientId, Names, new_token
from tests.servers import Wire

NAMES = Names("im_v2_ws")
PONG = b"\x8a\x80\0\0\0\0"


def grant(wire: Wire, client_id: ClientId, seconds: int = 60) -> str:
    """Authorise a connection as a helper does, and return the token."""
    token = new_token()
    value = json.dumps({"Item1": client_id, "Item2": "test"}, separators=(",", ":"))
    wire("SET", NAMES.token(token), value, "EX", seconds)
    return token


def request(token: str) -> bytes:
    """Return the request of a WebSocket client."""
    return (
        f"GET /ws?token={token} HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()


class Frames:
    """Splits what a server sends into (opcode, payload)."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0

    def feed(self, data: bytes) -> None:
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        self._buffer += data

    def next(self) -> tuple[int, bytes] | None:
        """Return the next frame that is complete."""
        buffer, at = self._buffer, self._at
        if len(buffer) < at + 2:
            return None
        size, start = buffer[at + 1], at + 2
        if size > 125:
            width = 2 if size == 126 else 8
            start += width
            if len(buffer) < start:
                return None
            size = int.from_bytes(buffer[at + 2 : start], "big")
        if len(buffer) < start + size:
            return None
        self._at = start + size
        return buffer[at] & 0x0F, bytes(buffer[start : start + size])


class Ended(Exception):
    """The server closed; the argument is the close code, or None where the socket just ended."""


class Refused(Exception):
    """The server answered with another status than 101."""


class BlockingTerminal:
    """A connection for a process that waits for one thing at a time."""

    def __init__(self, node: str, token: str, timeout: float = 20.0) -> None:
        host, _, port = node.rpartition(":")
        self.sock = socket.create_connection((host, int(port)), timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.sendall(request(token))
        head = b""
        while b"\r\n\r\n" not in head:
            data = self.sock.recv(65536)
            if not data:
                break
            head += data
        if not head.startswith(b"HTTP/1.1 101 "):
            self.sock.close()
            raise Refused(head.decode())
        self._frames = Frames()
        self._frames.feed(head.partition(b"\r\n\r\n")[2])

    def next(self) -> bytes:
        """Return the next text; pings are answered on the way."""
        while True:
            frame = self._frames.next()
            if frame is None:
                data = self.sock.recv(65536)
                if not data:
                    raise Ended(None)
                self._frames.feed(data)
            elif frame[0] == 9:
                self.sock.sendall(PONG)
            elif frame[0] == 8:
                raise Ended(int.from_bytes(frame[1][:2], "big"))
            elif frame[0] == 1:
                return frame[1]

    def close(self) -> None:
        self.sock.close()


class Terminal(asyncio.Protocol):
    """A connection for tests in a loop: `await Terminal.connect(...)`, `await terminal.next()`."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._head = b""
        self._frames = Frames()
        self._texts: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self.transport: asyncio.Transport | None = None
        loop = asyncio.get_running_loop()
        self.upgraded: asyncio.Future[float] = loop.create_future()
        """Done with the loop's time of the 101."""
        self.lost: asyncio.Future[None] = loop.create_future()

    @classmethod
    async def begin(cls, node: str, token: str) -> Terminal:
        """Connect and send the request; the 101 is not awaited."""
        host, _, port = node.rpartition(":")
        _, terminal = await asyncio.get_running_loop().create_connection(lambda: cls(token), host, int(port))
        return terminal

    @classmethod
    async def connect(cls, node: str, token: str) -> Terminal:
        terminal = await cls.begin(node, token)
        async with asyncio.timeout(20):
            await terminal.upgraded
        return terminal

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(request(self._token))

    def data_received(self, data: bytes) -> None:
        if not self.upgraded.done():
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                self.upgraded.set_exception(Refused(head.decode()))
                return
            self.upgraded.set_result(asyncio.get_running_loop().time())
        self._frames.feed(data)
        while frame := self._frames.next():
            if frame[0] == 1:
                self._texts.put_nowait(frame[1])
            elif frame[0] == 8:
                self._texts.put_nowait(Ended(int.from_bytes(frame[1][:2], "big")))
            elif frame[0] == 9 and self.transport is not None:
                self.transport.write(PONG)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.upgraded.done():
            self.upgraded.set_exception(Refused("the connection ended"))
        self.upgraded.exception() if not self.upgraded.cancelled() else None
        self._texts.put_nowait(Ended(None))
        self.lost.set_result(None)

    async def next(self, seconds: float = 20.0) -> str:
        """Return the next text."""
        async with asyncio.timeout(seconds):
            text = await self._texts.get()
        if isinstance(text, Exception):
            raise text
        return text.decode()

    def waiting(self) -> int:
        """Texts that have come and were not taken."""
        return self._texts.qsize()

    async def close(self) -> None:
        """End the socket without a closing handshake."""
        assert self.transport is not None
        self.transport.abort()
        await self.lost
