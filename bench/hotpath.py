"""The hot path alone, for instruction counts: ``python -m bench.hotpath KIND MESSAGES OF``; see bench/instructions.py.

From the bytes of Redis to send(2): parse, decode, route, frame and flush are the node's own, and so is what calls them.
Behind the sockets is nobody: all connections share a UDP socket, which takes everything.
"""

from __future__ import annotations

import asyncio
import math
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import hiredis

import freeim.node.bus
from bench.publisher import text
from freeim import envelope
from freeim._core import Connection, Fanout, RespStream, Router
from freeim.config import Options
from freeim.names import Names
from freeim.node.bus import Bus
from freeim.node.connections import Connections
from freeim.node.presence import Presence
from freeim.node.session import Session

CONNECTIONS: Final = 1000
ROOM: Final = 100
"""Members of the channel that ``room`` sends to."""
SIZE: Final = 128

KINDS: Final = {"direct": 1, "room": ROOM, "broadcast": CONNECTIONS, "burst": CONNECTIONS, "join": 1, "join_all": 1}
"""What is sent, and to how many each; or who joins and leaves, the channel of `ROOM` or that of everybody."""

CHANNELS: Final = {"join": b"room", "join_all": b"all"}

BURST: Final = 100
"""Messages of one read from Redis, for ``burst``; else each message is a read of its own."""


def payloads(kind: str, count: int) -> list[bytes]:
    """Return what is published, one after another."""
    texts = [text(1, number, SIZE, at=0) for number in range(1, count + 1)]
    if kind == "direct":
        return [
            envelope.direct(0, [1 + number * 7 % CONNECTIONS], envelope.direct_tail(each, False))
            for number, each in enumerate(texts)
        ]
    return [envelope.channel(0, "room" if kind == "room" else None, each) for each in texts]


def reads(kind: str, count: int) -> list[bytes]:
    """Return the same as Redis sends it, a read from its socket each; two for a join or leave."""
    if kind.startswith("join"):
        return [data for number in range(count) for data in _membership(kind, number)]
    pushes = [b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$%d\r\n%b\r\n" % (len(each), each) for each in payloads(kind, count)]
    step = BURST if kind == "burst" else 1
    return [b"".join(pushes[at : at + step]) for at in range(0, count, step)]


def _membership(kind: str, number: int) -> tuple[bytes, bytes]:
    """Return an invalidation, and the answer to the re-read: each client changes sides, and back."""
    client = b"%d" % (ROOM + 1 + number // 2 % (CONNECTIONS - ROOM))
    key = b"pClient" + client
    push = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$%d\r\n%b\r\n" % (len(key), key)
    channel = CHANNELS[kind]
    # So the small channel stays small, and the other one large.
    return push, b"*0\r\n" if number % 2 == (kind == "join") else b"*1\r\n$%d\r\n%b\r\n" % (len(channel), channel)


class _Transport(asyncio.WriteTransport):
    def get_write_buffer_size(self) -> int:
        return 0


async def run(kind: str, count: int, made: int) -> int:
    """Handle the first messages, or changes of membership, of those that are made.

    Returns:
        How many deliveries that were, or how many memberships were read again.
    """
    options, names = Options(node="n"), Names("p")
    session = Session(_nowhere, "c", _NobodyHears())
    connections = Connections(options, names, session, Presence(session, names, options))
    # One walk and one slice, however slow the machine: else the count depends on the clock.
    freeim.node.bus.Router = partial(Router, slice_ms=1e9)  # type: ignore[assignment, attr-defined, misc]
    bus = Bus(options, names, session, connections, _ignore, _ignore, on_handover=_ignore, on_gone=_ignore)
    connections.router = router = bus.router
    router.open = True
    connections.fanout = Fanout(_ignore, _ignore, options.queue_limit, options.node_queue_limit, slice_ms=1e9)
    router.set_tracking(True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink, socket.socket(type=socket.SOCK_DGRAM) as far:
        far.bind(("127.0.0.1", 0))
        sink.connect(far.getsockname())
        transport = _Transport()
        for number in range(1, CONNECTIONS + 1):
            connection = Connection(connections.fanout, number, "{}", None)
            client = router.attach(str(number).encode(), connection)
            router.members(client, [b"all"] if kind == "join_all" else [b"room"] if number <= ROOM else [])
            router.confirm(connection)
            connection.attach_transport(transport, sink.fileno())
        stream = RespStream(
            hiredis.Reader(notEnoughData=RespStream.NOTHING),
            hiredis.PushNotification,
            bus.on_message,
            bus.on_invalidate,
            _ignore,
            slice_ms=1e9,
        )
        session._reader = reader = _Reader(stream)  # type: ignore[assignment]
        before = router.deliveries
        each = {"burst": 1 / BURST, "join": 2, "join_all": 2}.get(kind, 1)
        for data in reads(kind, made)[: math.ceil(count * each)]:
            stream.receive(data)
            bus.on_received(True)
        return router.deliveries - before or reader.sent


class _Reader:
    """What sends commands to Redis on the connection of the stream, as `RedisLink` does."""

    def __init__(self, stream: RespStream) -> None:
        self._stream = stream
        self.sent = 0

    def send(self, callback: Callable[[Any], None], *args: str | bytes | int) -> None:
        self._stream.waiting.append(callback)
        hiredis.pack_command(args)  # type: ignore[arg-type]  # its stub allows one argument only
        self.sent += 1


class _NobodyHears:
    def __getattr__(self, _name: str) -> Any:
        return _ignore


async def _nowhere() -> Any:
    raise ConnectionError("there is no Redis here")


def _ignore(*_: Any) -> None:
    pass


if __name__ == "__main__":
    print(asyncio.run(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
