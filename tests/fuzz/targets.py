"""One function for each way into the program: it takes any bytes and breaks where a promise does.

`tests/fuzz/test_corpus.py` runs them over the corpus; `python -m tests.fuzz` under AddressSanitizer and libFuzzer.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
from collections.abc import Callable
from functools import cache
from typing import Any, Final, cast

import hiredis

from freeim import _core
from freeim._core import BadStream, Client, Connection, Message, RespStream, Router
from freeim.commands import Call, Commands
from freeim.config import Options
from freeim.errors import FreeImError
from freeim.event_bus import EventDecoder
from freeim.names import SYSTEM_GUID, Names
from freeim.node.connections import Connections
from freeim.node.decode import BadPayload, decode_token, decode_tolerantly
from freeim.node.http import Refusal, parse_head, response, token_of, websocket_key
from freeim.node.resume import LastId, resume_of
from freeim.node.terminal import Terminal
from freeim.node_list import NodeView, registered_nodes
from freeim.notices import Notices
from tests.core.fakes import FakeTransport

STATUSES: Final = {101, 400, 401, 405, 426, 431, 505}
NAMES: Final = Names("f")


# ---- HTTP


def outcome(data: bytes) -> int:
    """Return the status that a request leads to, 101 where it goes on to the token."""
    try:
        request = parse_head(data)
        key = websocket_key(request)
        token = token_of(request)
    except Refusal as refusal:
        assert "\n" not in refusal.reason
        # What was sent is not sent back: no reflected text, and no token in a log.
        assert "abc" not in refusal.reason
        response(refusal.status, refusal.reason, *refusal.headers)
        return refusal.status
    assert key.isascii()
    assert token.isascii()
    last_id = LastId.parse(resume_of(request) or "")
    assert last_id is None or LastId.parse(str(last_id)) == last_id
    return 101


def http(data: bytes) -> None:
    """Any bytes in place of a request lead to an answer of ours."""
    assert outcome(data) in STATUSES


# ---- WebSocket frames


def _cut(data: bytes) -> list[bytes]:
    """Cut bytes as their first one says, into pieces of 1 to 16."""
    size = data[0] % 16 + 1
    return [data[start : start + size] for start in range(1, len(data), size)]


class _Transport(FakeTransport):
    """A socket's transport; what is written after an end or a close would be lost."""

    closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self if name == "socket" else default

    def fileno(self) -> int:
        return -1

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        pass

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        super().write(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.closed = True

    def close(self) -> None:
        self.closed = True


def _read_as_terminal(pieces: list[bytes], connections: Connections) -> bytes:
    """Return all that a node sends to a terminal that sends these pieces."""
    transport = _Transport()
    connection = Connection(connections.fanout, 1, "{}", None)
    assert connections.router is not None
    connections.router.attach(b"1", connection)
    terminal = Terminal(connections, connection, cast(asyncio.Transport, transport))
    connection.owner = terminal
    terminal.start("key", b"")
    head = len(transport.sent)
    for piece in pieces:
        if not transport.closed:
            terminal.data_received(piece)
    connection.flush_now()
    sent = bytes(transport.sent[head:])
    terminal.connection_lost(None)
    return sent


class _Presence:
    """Takes the closes."""

    def close(self, number: int) -> None:
        pass


@cache
def _node() -> tuple[asyncio.AbstractEventLoop, Connections]:
    logging.getLogger("freeim").setLevel(logging.CRITICAL)
    loop = asyncio.new_event_loop()
    atexit.register(loop.close)

    async def make() -> Connections:
        return Connections(Options(), NAMES, cast(Any, None), cast(Any, _Presence()))

    connections = loop.run_until_complete(make())
    connections.router = Router(b"0", _ignore, _ignore, connections.force_offline, tracking=False)
    return loop, connections


def frames(data: bytes) -> None:
    """A node answers any frames with whole frames, and alike however the bytes were cut."""
    if not data:
        return
    loop, connections = _node()

    async def run() -> None:
        at_once = _read_as_terminal([data[1:]], connections)
        in_pieces = _read_as_terminal(_cut(data), connections)
        assert at_once == in_pieces, (at_once, in_pieces)
        at = 0
        while at < len(at_once):
            assert at_once[at] in (0x88, 0x8A), "a Close or a pong"
            assert at_once[at] == 0x8A or at + 2 + at_once[at + 1] == len(at_once), "a Close is the last frame"
            at += 2 + at_once[at + 1]
        assert at == len(at_once)

    loop.run_until_complete(run())


# ---- what is published on a node's channel


def envelope(data: bytes) -> None:
    """Where the core reads a payload, the tolerant decoder reads the same; any is routed or refused."""
    for guid in (False, True):
        fast = _core.decode(data, guid)
        slow: Message | None = None
        with contextlib.suppress(BadPayload):
            slow = decode_tolerantly(data, "guid" if guid else "int")
        if fast is not None:
            assert slow is not None
            assert fast.fields == slow.fields
        if slow is not None:
            _route(slow, guid)


def _route(message: Message, guid: bool) -> None:
    system = SYSTEM_GUID.encode() if guid else b"0"
    receipts: list[bytes] = []

    def on_receipt(_message: Message, receiver: bytes, _delivered: bool) -> None:
        receipts.append(receiver)

    router = Router(system, on_receipt, _ignore, _ignore, tracking=False, guid=guid)
    _, connections = _node()
    transport = FakeTransport()
    connection = Connection(connections.fanout, 1, "{}", None)
    router.attach(b"1", connection)
    router.confirm(connection)
    connection.attach_transport(cast(asyncio.WriteTransport, transport), -1)
    _finish(router.route(message))
    connection.flush_now()
    whole = message.frame or b""
    assert bytes(transport.sent) == whole * router.deliveries
    connection.detach_transport()
    router.detach(connection)


def token(data: bytes) -> None:
    """A token's value authorises somebody, or is refused."""
    for ids in ("int", "guid"):
        with contextlib.suppress(BadPayload):
            text, client = decode_token(data, ids)
            assert text.encode() == data
            assert str(client)


# ---- what Redis sends


def redis(data: bytes) -> None:
    """Any bytes from Redis lead to the same calls however they were cut, until they make no sense."""
    if data:
        at_once, in_pieces = _receive([data[1:]]), _receive(_cut(data))
        assert repr(at_once) == repr(in_pieces), (at_once, in_pieces)  # an error equals only itself


def _receive(pieces: list[bytes]) -> list[Any]:
    calls: list[Any] = []
    asked: list[Client] = []
    router = Router(b"0", _ignore, asked.append, _ignore, on_other=lambda payload, _: calls.append(payload))
    router.open = True
    _, connections = _node()
    connection = Connection(connections.fanout, 1, "{}", None)
    router.attach(b"1", connection)

    def on_message(payload: bytes) -> None:
        _finish(router.take(payload))
        calls.append(("message", payload, router.window_size))

    def on_invalidate(keys: list[bytes] | None) -> None:
        for key in keys or ():
            if isinstance(key, bytes):
                router.invalidate(key)
        calls.append(("invalidate", keys))

    reader = hiredis.Reader(notEnoughData=RespStream.NOTHING)
    stream = RespStream(reader, hiredis.PushNotification, on_message, on_invalidate, calls.append, slice_ms=1e9)
    stream.waiting.extend([lambda reply: calls.append(repr(reply))] * 3)
    try:
        for number, piece in enumerate(pieces):
            # Every second one waits for the next: what has waited is handled as all else.
            (stream.queue if number % 2 and number + 1 < len(pieces) else stream.receive)(piece)
    except (hiredis.ProtocolError, BadStream) as error:
        calls.append(type(error))
    router.confirm(connection)
    router.members(asked[0], [])
    router.detach(connection)
    return calls


def helper_reply(data: bytes) -> None:
    """What Redis holds for the helper, the list of nodes and the events, is read or refused."""
    with contextlib.suppress(FreeImError):
        registered_nodes(NAMES, data)
    for ids in ("int", "guid"):
        reader = EventDecoder(NAMES, ids)  # type: ignore[arg-type]
        reader.decode(NAMES.event_online.encode(), data)


# ---- what an app gives to the helper


_VIEW: Final = NodeView(("n0", "n1"), {}, {"n0": ("PUBLISH", b"c0"), "n1": ("PUBLISH", b"c1")}, None, 1e18)


@cache
def _commands() -> Commands:
    return Commands(NAMES, "int", "/ws", 10, None, Notices())


def helper(data: bytes) -> None:
    """What the helper takes reaches Redis as it was given, and a node reads it."""
    method, *rest = data.split(b"\xff")
    texts = [part.decode("utf-8", "surrogatepass" if part[:1] < b"\x80" else "replace") for part in _valid(rest)]
    texts += [""] * (3 - len(texts))
    numbers = [int(part) if part.removeprefix("-").isdecimal() and len(part) < 30 else part for part in texts]
    commands = _commands()
    calls: list[Callable[[], Call[Any]]] = [
        lambda: commands.prev_connect_server(numbers[0], texts[1]),
        lambda: commands.send_message(numbers[0], numbers[1:-1], texts[-1], True, True),
        lambda: commands.send_chan_message(numbers[0], texts[1], texts[2]),
        lambda: commands.send_broadcast_message(texts),
        lambda: commands.force_offline(numbers[0]),
        lambda: commands.join_chan(numbers[0], texts[1:]),
        lambda: commands.leave_chan(numbers[0], texts[1:]),
        lambda: commands.leave_chan_clients(texts[0], numbers[1:]),
        lambda: commands.clear_chan_client(texts[0]),
    ]
    try:
        call = calls[(method[0] if method else 0) % len(calls)]()
    except (TypeError, ValueError):
        return
    for command in call.commands(_VIEW):
        packed = hiredis.pack_command(command)  # type: ignore[arg-type]
        reader = hiredis.Reader()
        reader.feed(packed)
        assert reader.gets() == [each if isinstance(each, bytes) else str(each).encode() for each in command]
        if command[0] == "PUBLISH":
            payload = command[2]
            decode_tolerantly(payload if isinstance(payload, bytes) else str(payload).encode(), "int")


def _valid(parts: list[bytes]) -> list[bytes]:
    """Drop what is no UTF-8 but for lone surrogates, which a str can hold."""
    found = []
    for part in parts:
        with contextlib.suppress(UnicodeDecodeError):
            part.decode("utf-8", "surrogatepass")
            found.append(part)
    return found


def _finish(rest: Callable[[], Any] | None) -> None:
    """Go on with what a router does in slices."""
    while rest is not None:
        rest = rest()


def _ignore(*_: object) -> None:
    pass


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "http": http,
    "frames": frames,
    "envelope": envelope,
    "token": token,
    "redis": redis,
    "helper_reply": helper_reply,
    "helper": helper,
}
