"""A node, its Redis and its terminals in one test: start, connect, publish, collect.

Nothing here sleeps to let something happen. `until` polls with a deadline; that nothing arrives is shown by a *fence*:
a message published last, which arrives after all that was published before it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import logging
import os
import re
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import hiredis
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from freeim.config import Options
from freeim.names import ClientId, Names, default_prefix
from freeim.node import Node
from freeim.node.link import RedisLink
from tests.servers import RedisServer, Wire, encode_command

if TYPE_CHECKING:  # not where tools/autobahn runs it
    import pytest

SECONDS = 10.0
"""How long anything that must happen may take here."""

_numbers = itertools.count(1)


async def until(condition: Callable[[], Any], what: str = "", seconds: float = SECONDS) -> Any:
    """Wait until a condition holds, and return what it returned."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what or condition}"
        await asyncio.sleep(0.005)
    return found


async def bounded(work: Coroutine[Any, Any, Any], seconds: float = SECONDS) -> Any:
    """Await something that must not take longer."""
    return await asyncio.wait_for(work, seconds)


def join(server: RedisServer, names: Names, client: ClientId, *channels: str) -> None:
    """Make a client a member, in FreeIM's way."""
    with server.wire() as wire:
        wire("MULTI")
        for channel in channels:
            wire("HSET", names.chan(channel), str(client), 0)
            wire("HSET", names.client(client), channel, 0)
            wire("HINCRBY", names.list_chan, channel, 1)
        wire("EXEC")


def leave(server: RedisServer, names: Names, client: ClientId, *channels: str) -> None:
    """End a membership, in FreeIM's way."""
    with server.wire() as wire:
        wire("MULTI")
        for channel in channels:
            wire("HDEL", names.chan(channel), str(client))
            wire("HDEL", names.client(client), channel)
            wire("HINCRBY", names.list_chan, channel, -1)
            wire("HDEL", names.list_chan, channel)
        wire("EXEC")


def id_json(client: ClientId) -> str:
    return json.dumps(client)


def token_json(client: ClientId, metadata: str | None = "m") -> str:
    """Return the value of a token as FreeIM's helper writes it."""
    return json.dumps({"Item1": client, "Item2": metadata}, ensure_ascii=False, separators=(",", ":"))


def direct(receivers: Iterable[ClientId], message: object, sender: ClientId = 0, receipt: bool = False) -> str:
    """Return the payload of a direct message; the message is any JSON value."""
    text = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
    to = ",".join(map(id_json, receivers))
    return (
        f'{{"Item1":{id_json(sender)},"Item2":[{to}],"Item3":{json.dumps(text, ensure_ascii=False)},'
        f'"Item4":{"true" if receipt else "false"}}}'
    )


def channel_message(channel: str | None, message: object, sender: ClientId = 0) -> str:
    """Return the payload of a channel message."""
    text = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
    value = {"Item1": sender, "Item2": channel, "Item3": text}
    return "__FreeIM__(ChanMessage)" + json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class Peer:
    """A terminal on the library ``websockets``: collects the texts it receives, in order, and how it ended."""

    def __init__(self, running: Running, client: ClientId, socket: ClientConnection) -> None:
        self.client = client
        self.socket = socket
        self.seen: list[str] = []
        self._running = running
        self._waiting: dict[str, asyncio.Event] = {}
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for message in self.socket:
                assert isinstance(message, str), "a node sends text frames only"
                if message in self._waiting:
                    self._waiting[message].set()
                elif not message.startswith('"fence '):  # of another connection of this client
                    self.seen.append(message)

    async def fence(self) -> list[str]:
        """Return what has arrived since the last look of all that was published before this call."""
        mark = f"fence {next(_numbers)}"
        arrived = self._waiting[json.dumps(mark)] = asyncio.Event()
        self._running.publish(direct([self.client], mark, self._running.system))
        await bounded(arrived.wait())
        seen, self.seen = self.seen, []
        return seen

    async def next(self) -> str:
        """Wait for one text."""
        await until(lambda: self.seen, f"a message for client {self.client}")
        return self.seen.pop(0)

    async def ended(self) -> tuple[int | None, str | None]:
        """Wait for the end of the connection; return the close code and reason that the node sent."""
        await bounded(self.socket.wait_closed())
        await self._reading
        return self.socket.close_code, self.socket.close_reason

    @property
    def is_open(self) -> bool:
        return self.socket.state.name == "OPEN"

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await bounded(self.socket.close(code, reason))
        await self._reading


class Listener:
    """Hears what is published on some pub/sub channels, without blocking the loop that the node runs in."""

    def __init__(self, server: RedisServer, *channels: str) -> None:
        self._server = server
        self._mark = f"fence-{next(_numbers)}"
        self._channels = (*channels, self._mark)
        self._heard: list[tuple[str, str]] = []
        self._fences = 0
        self._passed = 0

    async def __aenter__(self) -> Self:
        reader, self._writer = await asyncio.open_unix_connection(self._server.socket_path)
        parser = hiredis.Reader()
        self._writer.write(encode_command(("SUBSCRIBE", *self._channels)))
        self._subscribed = 0
        self._reading = asyncio.create_task(self._read(reader, parser))
        await until(lambda: self._subscribed == len(self._channels), "subscribed")
        return self

    async def _read(self, reader: asyncio.StreamReader, parser: hiredis.Reader) -> None:
        while data := await reader.read(65536):
            parser.feed(data)
            while (item := parser.gets()) is not False:
                if item[0] == b"subscribe":
                    self._subscribed += 1
                elif item[1].decode() == self._mark:
                    self._passed += 1
                else:
                    self._heard.append((item[1].decode(), item[2].decode()))

    @property
    def waiting(self) -> int:
        """How many messages have arrived since the last look."""
        return len(self._heard)

    async def heard(self) -> list[tuple[str, str]]:
        """Return (channel, payload) of all that was published since the last look and before this call."""
        self._fences += 1
        self._server.command("PUBLISH", self._mark, "")
        await until(lambda: self._passed == self._fences, "the fence of a listener")
        heard, self._heard = self._heard, []
        return heard

    async def next(self, count: int = 1) -> list[tuple[str, str]]:
        """Wait for at least `count` messages and return them all."""
        await until(lambda: len(self._heard) >= count, f"{count} messages; there are {self._heard}")
        return await self.heard()

    async def __aexit__(self, *exc: object) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        await self._reading


class Running:
    """A started node and all that a test does to it.

    Args:
        server: The Redis it runs on.
        options: Options of the node beside the address and Redis.
    """

    def __init__(self, server: RedisServer, **options: Any) -> None:
        self.server = server
        self.options = Options(**{"bind": "127.0.0.1:0", "redis_url": server.url, **options})
        self.names = Names(self.options.prefix or default_prefix(self.options.path, self.options.ids))
        self.system: ClientId = 0 if self.options.ids == "int" else "00000000-0000-0000-0000-000000000000"
        self.node = Node(self.options)
        self.peers: list[Peer] = []
        self._raw: list[Raw] = []

    async def __aenter__(self) -> Self:
        await bounded(self.node.start())
        self.wire: Wire = self.server.wire()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for raw in self._raw:
                raw.close()
            await bounded(self.node.stop(), 20)
            for peer in self.peers:
                await peer.ended()
        finally:
            self.wire.close()

    # ---- terminals

    def token(
        self, client: ClientId, metadata: str | None = "m", *, value: str | None = None, seconds: int = 10
    ) -> str:
        """Store a token as FreeIM's helper does and return it."""
        token = os.urandom(64).hex()
        text = token_json(client, metadata) if value is None else value
        self.server.command("SET", self.names.token(token), text, "EX", seconds)
        return token

    def url(self, token: str) -> str:
        return f"ws://127.0.0.1:{self.node.port}{self.options.path}?token={token}"

    async def connect(self, client: ClientId, metadata: str | None = "m", **kwargs: Any) -> Peer:
        """Connect a terminal."""
        return await self.connect_with(self.token(client, metadata), client, **kwargs)

    async def connect_with(self, token: str, client: ClientId, **kwargs: Any) -> Peer:
        """Connect a terminal with a token that there is already."""
        socket = await connect(
            self.url(token),
            **{"compression": None, "ping_interval": None, "max_size": None, "proxy": None, **kwargs},
        )
        peer = Peer(self, client, socket)
        self.peers.append(peer)
        return peer

    async def raw(self) -> Raw:
        """Open a plain TCP connection to the node."""
        raw = Raw(*await asyncio.open_connection("127.0.0.1", self.node.port))
        self._raw.append(raw)
        return raw

    async def raw_client(self, client: ClientId, rest: bytes = b"", query: str = "") -> Raw:
        """Connect a terminal that is a plain socket; `rest` goes out together with the request, `query` in its URL."""
        raw = await self.raw()
        raw.send(self.request(self.token(client) + query) + rest)
        status, _, _ = await raw.response()
        assert status == 101
        return raw

    def request(self, token: str) -> bytes:
        """Return a well-formed upgrade."""
        return head(f"{self.options.path}?token={token}")

    async def http(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send bytes, and return status, headers and body of the answer, which must end with the connection.

        A 101 is returned at once: there is no end to wait for.
        """
        raw = await self.raw()
        raw.send(request)
        status, headers, body = await raw.response()
        if status != 101:
            body += await raw.rest()
        raw.close()
        return status, headers, body

    # ---- Redis

    async def settled(self) -> None:
        """Wait until Redis has done all that the node has sent it so far."""
        await bounded(self.node._session.call("PING"))

    async def heard_all(self) -> None:
        """Wait until the node has heard all that was published on its channel so far."""
        heard = asyncio.Event()
        probe = self.node._session.probe_seen
        self.node._session.probe_seen = lambda _number: heard.set()  # type: ignore[assignment,method-assign]
        try:
            self.publish("__FreeIM__(Probe)0")
            await bounded(heard.wait())
        finally:
            self.node._session.probe_seen = probe  # type: ignore[method-assign]

    def publish(self, payload: str | bytes) -> int:
        """Publish on the node's channel."""
        return int(self.server.command("PUBLISH", self.names.server(self.node.name), payload))

    def publish_all(self, payloads: Iterable[str | bytes]) -> None:
        """Publish many in one pipeline."""
        count = 0
        packed = []
        for payload in payloads:
            packed.append(encode_command(("PUBLISH", self.names.server(self.node.name), payload)))
            count += 1
        self.wire.sock.sendall(b"".join(packed))
        for _ in range(count):
            self.wire.read()

    def events(self) -> Listener:
        """Return a listener to the Online and Offline events."""
        return Listener(self.server, self.names.event_online, self.names.event_offline)

    @property
    def online(self) -> dict[str, str]:
        return self.server.hash(self.names.online)

    @property
    def share(self) -> dict[str, str]:
        return self.server.hash(self.names.share(self.node._presence.epoch))

    def keys(self) -> set[str]:
        return {key.decode() for key in self.server.command("KEYS", "*")}

    def join(self, client: ClientId, *channels: str) -> None:
        join(self.server, self.names, client, *channels)

    def leave(self, client: ClientId, *channels: str) -> None:
        leave(self.server, self.names, client, *channels)

    async def is_back(self) -> None:
        """Wait until a lost session has been taken up again."""
        await until(lambda: self.node._session.gaps > 0 and self.node._session.up, "Redis is back")


KEY = base64.b64encode(b"0123456789abcdef").decode()


def head(target: str, *lines: str, **changed: str | None) -> bytes:
    """Return the head of an upgrade request.

    Args:
        target: Path and query.
        lines: More header lines.
        changed: Headers with another value, or None to leave one out: ``Sec_WebSocket_Key=None``.
    """
    headers: dict[str, str | None] = {
        "Host": "127.0.0.1",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": KEY,
    }
    headers |= {name.replace("_", "-"): value for name, value in changed.items()}
    all_lines = [f"GET {target} HTTP/1.1", *lines]
    all_lines += [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join(all_lines).encode() + b"\r\n\r\n"


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True, rsv: int = 0) -> bytes:
    """Return a frame as a terminal sends it."""
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    mask_bit = 0x80 if masked else 0
    size = len(payload)
    if size < 126:
        start = bytes([first, mask_bit | size])
    elif size < 65536:
        start = bytes([first, mask_bit | 126]) + struct.pack("!H", size)
    else:
        start = bytes([first, mask_bit | 127]) + struct.pack("!Q", size)
    if not masked:
        return start + payload
    mask = b"\x0a\x0b\x0c\x0d"
    key = int.from_bytes(mask * (size // 4 + 1), "big") >> 8 * (4 - size % 4)
    return start + mask + (int.from_bytes(payload, "big") ^ key).to_bytes(size, "big")


def close_payload(code: int, reason: bytes = b"") -> bytes:
    return struct.pack("!H", code) + reason


class Raw:
    """A plain socket: sends any bytes, and reads responses and frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def response(self) -> tuple[int, dict[str, str], bytes]:
        """Read a response: status, headers by lower-case name, and as much of a body as its length says."""
        start = (await bounded(self.reader.readuntil(b"\r\n\r\n"))).decode()
        status_line, *lines = start.rstrip("\r\n").split("\r\n")
        headers = dict(line.lower().split(": ", 1) if ": " in line else (line, "") for line in lines)
        return int(status_line.split()[1]), headers, b""

    async def rest(self) -> bytes:
        """Read to the end of the connection."""
        return bytes(await bounded(self.reader.read()))

    async def frame(self) -> tuple[int, bytes]:
        """Read one frame: opcode and payload. The node's frames are final, unmasked and without extensions."""
        first, second = await bounded(self.reader.readexactly(2))
        assert first & 0xF0 == 0x80
        size = second
        if size == 126:
            (size,) = struct.unpack("!H", await self.reader.readexactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
        return first & 0xF, await bounded(self.reader.readexactly(size))

    async def answer_close(self) -> tuple[int, str]:
        """Read the node's Close frame, which comes next, answer it as a good peer, and return code and reason."""
        opcode, payload = await self.frame()
        assert opcode == 8
        self.send(frame(8, payload))
        assert await self.rest() == b"", "nothing may follow a Close frame"
        return int.from_bytes(payload[:2], "big"), payload[2:].decode()

    async def closed_with(self) -> tuple[int, str]:
        """Read frames up to a Close frame and on to the end of the connection; return code and reason."""
        while True:
            opcode, payload = await self.frame()
            if opcode == 8:
                assert await self.rest() == b"", "nothing may follow a Close frame"
                return int.from_bytes(payload[:2], "big"), payload[2:].decode()

    def end(self) -> None:
        """End our side of the connection; the node's goes on."""
        self.writer.write_eof()

    def close(self) -> None:
        self.writer.close()

    def cut(self) -> None:
        """Vanish without a word: a reset."""
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def running(server: RedisServer, **options: Any) -> AsyncIterator[Running]:
    """Start a node, and stop it at the end."""
    async with Running(server, **options) as run:
        yield run


def told(caplog: Any, level: int = logging.INFO) -> list[str]:
    """Return what the node has logged."""
    return [record.getMessage() for record in caplog.records if record.name == "freeim" and record.levelno >= level]


def event(client: ClientId, connections: int, metadata: str | None = "m") -> str:
    """Return the payload of an Online or Offline event."""
    return token_json(client, metadata).removesuffix("}") + f',"Item3":{connections}}}'


async def refused(node: Node, kind: type[Exception], pattern: str = "") -> str:
    """Show that a node does not start, for a reason that matches; return the reason."""
    try:
        await bounded(node.start())
    except kind as error:
        assert re.search(pattern, str(error)), str(error)
        return str(error)
    await node.stop()  # a loop could not be closed with what it has open
    raise AssertionError("the node started")


def noted_reads(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return what nodes read from Redis from now on, a read each."""
    reads: list[bytes] = []
    handle = RedisLink._handle

    def note(link: RedisLink, data: bytes, **how: bool) -> None:
        reads.append(data)
        handle(link, data, **how)

    monkeypatch.setattr(RedisLink, "_handle", note)
    return reads
