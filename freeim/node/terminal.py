"""The protocol of a WebSocket connection after its 101.

Everything that is written goes through the core. Of what is read, the few frames that terminals usually send are known
at sight; a terminal that sends anything else gets a `FrameReader`, in which picows reads from then on.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from picows import WSFrame, WSListener, WSMsgType, WSTransport
from picows.picows import WSAutoPingStrategy, WSProtocol  # type: ignore[attr-defined]  # no stub has it

from freeim._core import Connection, control_frame, small_frame, unmask
from freeim.errors import CloseCode
from freeim.node.handshake import end_side
from freeim.node.http import switching_protocols

if TYPE_CHECKING:
    from freeim.node.connections import Connections

log = logging.getLogger("freeim")

OP_CLOSE: Final = 0x8
OP_PING: Final = 0x9
OP_PONG: Final = 0xA

PING: Final = control_frame(OP_PING, b"")

# What follows most Close frames: the peer's code, or none, which is answered with a normal closure. No reason.
_USUAL_CLOSES: Final = {b"": 1000, b"\x03\xe8": 1000, b"\x03\xe9": 1001}

# Close codes that picows takes (it refuses the other wrong ones below 3000), and that must not be echoed.
_NOT_IN_A_FRAME: Final = (0, 1006)

# picows begins with a handshake, which is over already when it is asked for; it gets the least that it takes.
_HEAD: Final = (
    b"GET / HTTP/1.1\r\nHost: -\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def close_frame(code: int, reason: str = "") -> bytes:
    """Return a Close frame.

    Args:
        code: The close code, e.g. 1012.
        reason: At most 123 bytes of UTF-8.
    """
    return control_frame(OP_CLOSE, code.to_bytes(2, "big") + reason.encode())


class Terminal(asyncio.Protocol):
    """One WebSocket connection.

    Args:
        connections: The node's connections.
        connection: The core's part of this one.
        transport: The transport that the handshake had.
    """

    __slots__ = ("_connections", "_deaf", "_reader", "_transport", "connection", "ping_slot")

    def __init__(self, connections: Connections, connection: Connection, transport: asyncio.Transport) -> None:
        self.connection = connection
        self.ping_slot = -1
        self._connections = connections
        self._transport = transport
        self._reader: FrameReader | None = None
        self._deaf = False

    def start(self, key: str, rest: bytes) -> None:
        """Answer with the 101 and go on with the bytes that came after the request."""
        raw = self._transport
        secure = raw.get_extra_info("sslcontext") is not None
        # From here on the transport reports every queued byte, so that no direct send overtakes one. One of TLS says
        # so of its high-water mark itself, the others of what is above it.
        raw.set_write_buffer_limits(high=1 if secure else 0)
        raw.set_protocol(self)
        raw.write(switching_protocols(key))
        # What goes through TLS cannot be sent past it.
        self.connection.attach_transport(raw, -1 if secure else raw.get_extra_info("socket").fileno())
        self._connections.opened(self)
        if rest:
            self.data_received(rest)

    # ---- asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if not self._connections.admission.count(self, len(data)):
            self.fail(CloseCode.MESSAGE_TOO_BIG, "too much sent in a second")
            return
        if self._reader is None:
            if self._read_usual(data):
                return
            self._reader = FrameReader(self, self._connections.options.max_inbound)
        self._reader.feed(data)

    def _read_usual(self, data: bytes) -> bool:
        """Read what is one usual frame; False where it is anything else."""
        opcode = small_frame(data)
        if not opcode:
            return False
        if opcode == OP_CLOSE:
            code = _USUAL_CLOSES.get(unmask(data))
            if code is None:
                return False
            self.closed_by_peer(code)
        elif opcode == OP_PING:
            self.connection.send_control(control_frame(OP_PONG, unmask(data)))
        self.connection.awaiting_pong = False
        return True

    def pause_writing(self) -> None:
        self.connection.set_blocked(True)

    def resume_writing(self) -> None:
        self.connection.set_blocked(False)

    def connection_lost(self, _exc: Exception | None) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.end()
        self._connections.gone(self)

    # ---- what a FrameReader finds

    @property
    def deaf(self) -> bool:
        """Whether the peer has closed or broken the protocol: whatever it still sends means nothing."""
        return self._deaf

    def closed_by_peer(self, code: int) -> None:
        """The peer sent its Close frame: answer, and end the connection."""
        self._deaf = True
        self._connections.close(self.connection, code, by="terminal")
        self.connection.flush_now()
        self._transport.close()

    def fail(self, code: int, reason: str) -> None:
        """Close because of what the peer sent."""
        self.fail_with(close_frame(code, reason), code, reason)

    def fail_with(self, frame: bytes, code: int, reason: str) -> None:
        """Close because of what the peer sent, with a Close frame that exists already."""
        self._deaf = True
        if not self.connection.closing:
            self._connections.broken(self.connection, code, reason)
        self._connections.close(self.connection, code, frame=frame)
        self.connection.flush_now()
        if self.connection.transport is not None:
            end_side(self._transport)


class FrameReader(WSListener):
    """Reads the frames of one terminal: listener, transport and logger of picows in one object.

    Args:
        terminal: Whose frames.
        max_inbound: Bytes of a message.
    """

    __slots__ = ("_fault", "_max_inbound", "_message_size", "_protocol", "_terminal")

    def __init__(self, terminal: Terminal, max_inbound: int) -> None:
        super().__init__()
        self._terminal = terminal
        self._max_inbound = max_inbound
        self._message_size = -1  # bytes of the fragmented message so far; -1 between messages
        self._fault = b""  # picows's Close frame for what it found wrong
        self._protocol: Any = WSProtocol(
            None,  # host_port
            None,  # ws_path
            False,  # is_client_side
            lambda _request: self,  # ws_listener_factory
            self,  # logger
            True,  # disconnect_on_exception
            None,  # websocket_handshake_timeout
            False,  # enable_auto_ping
            0,  # auto_ping_idle_timeout
            0,  # auto_ping_reply_timeout
            WSAutoPingStrategy.PING_WHEN_IDLE,
            False,  # enable_auto_pong
            max_inbound,  # max_frame_size
            None,  # extra_headers
            2048,  # read_buffer_init_size, the least that picows takes
        )
        self._protocol.connection_made(self)
        self.feed(_HEAD)

    def feed(self, data: bytes) -> None:
        """Read bytes that came from the terminal."""
        protocol = self._protocol
        while data and not self._terminal.deaf:
            buffer = protocol.get_buffer(-1)
            size = min(len(buffer), len(data))
            buffer[:size] = data[:size]
            data = data[size:]
            protocol.buffer_updated(size)
            if self._fault and not self._terminal.deaf:
                code, reason = int.from_bytes(self._fault[2:4], "big"), self._fault[4:].decode("utf-8", "replace")
                self._terminal.fail_with(self._fault, code, reason)

    def end(self) -> None:
        """The connection is gone. Without this the protocol and this reader would keep each other."""
        protocol, self._protocol = self._protocol, None
        protocol.connection_lost(None)

    # ---- WSListener

    def on_ws_frame(self, _transport: WSTransport, frame: WSFrame) -> None:
        terminal = self._terminal
        if terminal.deaf:
            return
        terminal.connection.awaiting_pong = False
        kind = frame.msg_type
        if frame.rsv1 or frame.rsv2 or frame.rsv3:
            terminal.fail(CloseCode.PROTOCOL_ERROR, "reserved bits are set, but no extension was agreed on")
        elif kind == WSMsgType.PING:
            terminal.connection.send_control(control_frame(OP_PONG, frame.get_payload_as_bytes()))
        elif kind == WSMsgType.CLOSE:
            self._read_close(frame)
        elif kind != WSMsgType.PONG:
            self._ignore_message(kind, frame)

    def _ignore_message(self, kind: WSMsgType, frame: WSFrame) -> None:
        """Data frames carry nothing for a node, but must be well-formed and small."""
        if (kind == WSMsgType.CONTINUATION) != (self._message_size >= 0):
            self._terminal.fail(CloseCode.PROTOCOL_ERROR, "a fragment is out of place")
            return
        size = max(self._message_size, 0) + frame.payload_size
        if size > self._max_inbound:
            self._terminal.fail(CloseCode.MESSAGE_TOO_BIG, "the message is too long")
            return
        self._message_size = -1 if frame.fin else size

    def _read_close(self, frame: WSFrame) -> None:
        code = frame.get_close_code().value
        if not frame.payload_size:
            # Without a code from the peer the answer is a normal closure; picows calls that 0.
            code = int(CloseCode.NORMAL)
        elif code in _NOT_IN_A_FRAME or code >= 5000:
            self._terminal.fail(CloseCode.PROTOCOL_ERROR, f"the close code {code} must not stand in a frame")
            return
        self._terminal.closed_by_peer(code)

    # ---- the transport that picows sees

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return _NO_SOCKET if name == "socket" else default

    def get_write_buffer_size(self) -> int:
        return 1  # never 0: picows must not use the descriptor on its own

    def write(self, data: bytes | bytearray) -> None:
        # Beside the 101, which was sent long ago, picows writes by itself only what it found wrong: code and reason. It
        # parses one frame ahead, so the frame before the wrong one has not been looked at yet.
        if len(data) >= 4 and data[0] == 0x80 | OP_CLOSE:
            self._fault = bytes(data)

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


class _NoSocket:
    """Stands in for the socket in front of picows, which would set and log options that are set already."""

    def fileno(self) -> int:
        return -1

    def setsockopt(self, *_: object) -> None:
        pass

    def getsockopt(self, *_: object) -> int:
        return 0


_NO_SOCKET: Final = _NoSocket()
