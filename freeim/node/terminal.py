"""The protocol of a WebSocket connection: picows reads the frames, everything that is written goes through the core.

The handshake hands its transport over after the token was found good. picows takes part as a reader: it gets this
object as its transport, so that the Close frames it writes for broken peers keep their place in the outbox.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from picows import WSFrame, WSListener, WSMsgType
from picows.picows import WSAutoPingStrategy, WSProtocol, WSTransport  # type: ignore[attr-defined]  # no stub has it

from freeim._core import Connection, control_frame
from freeim.errors import CloseCode
from freeim.node.handshake import end_side

if TYPE_CHECKING:
    from freeim.node.connections import Connections

log = logging.getLogger("freeim")

OP_CLOSE: Final = 0x8
OP_PING: Final = 0x9
OP_PONG: Final = 0xA

PING: Final = control_frame(OP_PING, b"")

# Close codes that picows takes (it refuses the other wrong ones below 3000), and that must not be echoed.
_NOT_IN_A_FRAME: Final = (0, 1006)

# What picows checks once more has been checked before the token; it gets the least that it takes.
_HEAD: Final = (
    "GET / HTTP/1.1\r\nHost: -\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {}\r\n\r\n"
)


def close_frame(code: int, reason: str = "") -> bytes:
    """Return a Close frame.

    Args:
        code: The close code, e.g. 1012.
        reason: At most 123 bytes of UTF-8.
    """
    return control_frame(OP_CLOSE, code.to_bytes(2, "big") + reason.encode())


class _NoSocket:
    """Stands in for the socket in front of picows, which would set and log options that are set already."""

    def fileno(self) -> int:
        return -1

    def setsockopt(self, *_: object) -> None:
        pass

    def getsockopt(self, *_: object) -> int:
        return 0


_NO_SOCKET: Final = _NoSocket()


class Terminal(WSListener):
    """One WebSocket connection: listener, transport and logger of picows in one object.

    Args:
        connections: The node's connections.
        connection: The core's part of this one.
        transport: The asyncio transport that the handshake had.
    """

    __slots__ = ("_broken", "_connections", "_message_size", "_transport", "connection", "ping_slot")

    def __init__(self, connections: Connections, connection: Connection, transport: asyncio.Transport) -> None:
        super().__init__()
        self.connection = connection
        self.ping_slot = -1
        self._connections = connections
        self._transport = transport
        self._message_size = -1  # bytes of the fragmented message so far; -1 between messages
        self._broken = False

    def start(self, key: str, rest: bytes) -> None:
        """Answer with the 101 and go on with the bytes that came after the request."""
        protocol = WSProtocol(
            None,  # host_port
            None,  # ws_path
            False,  # is_client_side
            self._listen,  # ws_listener_factory
            self,  # logger
            True,  # disconnect_on_exception
            None,  # websocket_handshake_timeout
            False,  # enable_auto_ping
            0,  # auto_ping_idle_timeout
            0,  # auto_ping_reply_timeout
            WSAutoPingStrategy.PING_WHEN_IDLE,
            False,  # enable_auto_pong
            self._connections.options.max_inbound,  # max_frame_size
            None,  # extra_headers
            2048,  # read_buffer_init_size, the least that picows takes
        )
        # From here on the transport reports every queued byte, so that no direct send overtakes one.
        self._transport.set_write_buffer_limits(high=0)
        self._transport.set_protocol(protocol)
        protocol.connection_made(self)
        data = _HEAD.format(key).encode() + rest
        while data and not self._broken:
            buffer = protocol.get_buffer(-1)
            size = min(len(buffer), len(data))
            buffer[:size] = data[:size]
            data = data[size:]
            protocol.buffer_updated(size)

    def _listen(self, _request: object) -> Terminal:
        return self

    # ---- WSListener

    def on_ws_connected(self, _transport: WSTransport) -> None:
        raw = self._transport
        tls = raw.get_extra_info("ssl_object") is not None
        self.connection.attach_transport(raw, -1 if tls else raw.get_extra_info("socket").fileno())
        self._connections.opened(self)

    def on_ws_frame(self, _transport: WSTransport, frame: WSFrame) -> None:
        if self._broken:
            return
        self.connection.awaiting_pong = False
        kind = frame.msg_type
        if frame.rsv1 or frame.rsv2 or frame.rsv3:
            self._fail(CloseCode.PROTOCOL_ERROR, "reserved bits are set, but no extension was agreed on")
        elif kind == WSMsgType.PING:
            self.connection.send_control(control_frame(OP_PONG, frame.get_payload_as_bytes()))
        elif kind == WSMsgType.CLOSE:
            self._closed_by_peer(frame)
        elif kind != WSMsgType.PONG:
            self._ignore_message(kind, frame)

    def on_ws_disconnected(self, _transport: WSTransport | None) -> None:
        self._connections.gone(self)

    def pause_writing(self) -> None:
        self.connection.set_blocked(True)

    def resume_writing(self) -> None:
        self.connection.set_blocked(False)

    def _ignore_message(self, kind: WSMsgType, frame: WSFrame) -> None:
        """Data frames carry nothing for a node, but must be well-formed and small."""
        if (kind == WSMsgType.CONTINUATION) != (self._message_size >= 0):
            self._fail(CloseCode.PROTOCOL_ERROR, "a fragment is out of place")
            return
        size = max(self._message_size, 0) + frame.payload_size
        if size > self._connections.options.max_inbound:
            self._fail(CloseCode.MESSAGE_TOO_BIG, "the message is too long")
            return
        self._message_size = -1 if frame.fin else size

    def _closed_by_peer(self, frame: WSFrame) -> None:
        code = frame.get_close_code().value
        if not frame.payload_size:
            # Without a code from the peer the answer is a normal closure; picows calls that 0.
            code = int(CloseCode.NORMAL)
        elif code in _NOT_IN_A_FRAME or code >= 5000:
            self._fail(CloseCode.PROTOCOL_ERROR, f"the close code {code} must not stand in a frame")
            return
        self._connections.close(self.connection, code)
        self.connection.flush_now()
        self._transport.close()

    def _fail(self, code: CloseCode, reason: str) -> None:
        """Close because of what the peer sent."""
        self._break(close_frame(code, reason), code, reason)

    def _break(self, frame: bytes, code: int, reason: str) -> None:
        self._broken = True
        if not self.connection.closing:
            self._connections.broken(self.connection, code, reason)
        self._connections.close(self.connection, code, frame=frame)
        self.connection.flush_now()
        # Not here: picows is still reading from the buffer of the protocol that is to be replaced.
        asyncio.get_running_loop().call_soon(self._linger)

    def _linger(self) -> None:
        if self.connection.transport is None:
            return
        self._transport.set_protocol(Lingering(self))
        end_side(self._transport)

    # ---- the transport that picows sees

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return _NO_SOCKET if name == "socket" else default

    def get_write_buffer_size(self) -> int:
        return 1  # never 0: picows must not use the descriptor on its own

    def write(self, data: bytes | bytearray) -> None:
        if self.connection.held:
            self._transport.write(bytes(data))  # the 101
        elif not self._broken and len(data) >= 4 and data[0] == 0x80 | OP_CLOSE:
            # picows writes nothing else by itself: what it found wrong, with code and reason.
            self._break(bytes(data), int.from_bytes(data[2:4], "big"), bytes(data[4:]).decode("utf-8", "replace"))

    def close(self) -> None:
        """Ignored: the node closes, in its own order and time."""

    abort = close

    # ---- the logger that picows sees: what matters arrives as a Close frame

    def isEnabledFor(self, _level: int) -> bool:  # noqa: N802 - logging's name
        return False

    def log(self, *_: object) -> None:
        pass

    debug = info = warning = error = log

    def exception(self, message: str, *args: object) -> None:
        log.exception("internal error: " + message, *args)


class Lingering(asyncio.Protocol):
    """After a Close frame for a peer that broke the protocol: read on, so that the frame is not lost to a reset."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    def data_received(self, _data: bytes) -> None:
        pass

    def pause_writing(self) -> None:
        self._terminal.pause_writing()

    def resume_writing(self) -> None:
        self._terminal.resume_writing()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._terminal.on_ws_disconnected(None)
