"""The protocol of a connection before it is a WebSocket: read the request, answer it or hand it on."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from freeim._core import Connection
from freeim.node.http import Refusal, Request, parse_head, response
from freeim.node.proxy_protocol import SIGNATURE, WORD, read_header

if TYPE_CHECKING:
    from freeim.node.connections import Connections

log = logging.getLogger("freeim")

_NO_HTTP: Final = "this is no HTTP request"
_HEAD_END: Final = b"\r\n\r\n"


def end_side(transport: asyncio.Transport) -> bool:
    """End our side of a connection behind what is written; return whether the peer can still end its own.

    Closing at once, with bytes of the peer unread, would be a reset, which can destroy our last words on their way. So
    the caller reads on until the peer ends its side or its time is over. TLS cannot do that.
    """
    if not transport.can_write_eof():
        transport.close()
        return False
    try:
        transport.write_eof()
    except OSError:  # it has gone, and we have not heard of it yet
        transport.abort()
        return False
    return True


class Handshake(asyncio.Protocol):
    """One request. It ends in a refusal, or as the owner of a `Connection` that waits for its 101.

    Args:
        connections: Where it goes.
    """

    __slots__ = (
        "_buffer",
        "_connections",
        "_head_done",
        "address",
        "connection",
        "finished",
        "from_proxy",
        "half_closed",
        "key",
        "proxy_read",
        "resume",
        "token",
        "transport",
    )

    def __init__(self, connections: Connections) -> None:
        self.transport: asyncio.Transport | None = None
        self.connection: Connection | None = None
        self.address: str | None = None
        """Where it comes from, as far as is known; None where that does not matter."""
        self.from_proxy = False
        """So far that is a trusted proxy, which may say more."""
        self.proxy_read = False
        """A PROXY header was read, or none can come any more."""
        self.key = ""
        self.token = ""
        self.resume: str | None = None
        """The last id of a terminal that may come back, "" at its first connection; see `Resume`."""
        self.finished = False
        self.half_closed = False
        """The peer has ended its side: it can read an answer, but be no terminal."""
        self._connections = connections
        self._buffer = bytearray()
        self._head_done = False

    @property
    def peer_address(self) -> str | None:
        """The address of the peer, without its port; None where it has gone."""
        name = self._peer_name
        return name[0] if name else None

    @property
    def peer(self) -> str:
        """Where the terminal is, and through which proxy, for the log."""
        name = self._peer_name
        peer = f"{name[0]}:{name[1]}" if name else "a peer that has gone"
        return peer if self.address in (None, self.peer_address) else f"{self.address} through {peer}"

    @property
    def _peer_name(self) -> Any:
        return self.transport.get_extra_info("peername") if self.transport is not None else None

    @property
    def rest(self) -> bytes:
        """What the terminal sent after its request."""
        return bytes(self._buffer)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._connections.handshake_begins(self)

    def data_received(self, data: bytes) -> None:
        if self.finished:
            return  # refused already; what still comes is read only so that the peer gets to see our answer
        self._buffer += data
        max_head = self._connections.options.max_head
        if self._head_done:
            if len(self._buffer) > self._connections.options.max_inbound:
                assert self.transport is not None
                self.transport.pause_reading()
            return
        try:
            if self.from_proxy and not self.proxy_read and not self._read_proxy_header():
                return
            # Some clients send an empty line first (RFC 9112, section 2.2).
            while self._buffer.startswith(b"\r\n"):
                del self._buffer[:2]
            if self._buffer.startswith(SIGNATURE.lstrip()):
                raise _stranger()
            if not self._buffer[:1].isalpha() and self._buffer:
                tls = self._connections.options.tls_cert is not None
                raise Refusal(400, _NO_HTTP if tls else f"{_NO_HTTP}; a node speaks TLS only with --tls-cert")
            end = self._buffer.find(_HEAD_END)
            if end > max_head or (end < 0 and len(self._buffer) > max_head):
                raise Refusal(431, f"the request head is longer than {max_head} bytes")
            if end < 0:
                return
            if self._buffer.startswith(WORD):
                raise _stranger()
            head = bytes(self._buffer[:end])
            del self._buffer[: end + len(_HEAD_END)]
            self._head_done = True
            self._connections.request(self, parse_head(head))
        except Refusal as refusal:
            self.refuse(refusal)

    def _read_proxy_header(self) -> bool:
        """Read what a trusted proxy may send first; False where more must come, or the connection was cut."""
        header = read_header(self._buffer)
        if header is None:
            return False
        self.proxy_read = True
        del self._buffer[: header.size]
        if header.source is None or self._connections.admission.place(self, header.source):
            return True
        if self.transport is not None:
            self.transport.abort()
        return False

    def eof_received(self) -> bool:
        self.half_closed = True
        if self.finished or self.connection is not None:
            return False
        if not self._head_done and self._buffer:
            self.refuse(Refusal(400, "the request ended before its empty line"))
            return False
        # The answer may be under way. TLS ends both sides at once, and does not like to be told otherwise.
        return self._head_done and self.transport is not None and self.transport.can_write_eof()

    def connection_lost(self, _exc: Exception | None) -> None:
        self.transport = None
        self._connections.handshake_lost(self)

    @property
    def begun(self) -> bool:
        """Whether any of the request has come."""
        return self._head_done or bool(self._buffer)

    def timed_out(self) -> None:
        """The request, Redis, or the peer's end after an answer took too long."""
        if self.finished:
            if self.transport is not None:
                self.transport.abort()
        elif self._head_done:
            self.refuse(Refusal(503, "Redis did not answer in time", "Retry-After: 1"))
        else:
            self.refuse(Refusal(408, "the request did not come in time"))

    def answer(self, request: Request, status: int, body: str, *headers: str) -> None:
        """Answer a plain HTTP request and end the connection."""
        self._finish(response(status, body, *headers, head_only=request.method == "HEAD"))

    def refuse(self, refusal: Refusal) -> None:
        """Answer with an error status and end the connection."""
        # Limits are there for those who come by the thousand.
        tell = self._connections.admission.log.tell if refusal.status == 429 else log.info
        tell("refused %s with %d: %s", self.peer, refusal.status, refusal.reason)
        if not self.finished:
            self._connections.handshakes[str(refusal.status)] += 1
        self._finish(response(refusal.status, refusal.reason, *refusal.headers))

    def _finish(self, answer: bytes) -> None:
        self.finished = True
        self._buffer.clear()
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        transport.write(answer)
        if self.half_closed:
            transport.close()
        elif end_side(transport):
            self._connections.linger(self)


def _stranger() -> Refusal:
    return Refusal(400, "a PROXY header from a peer that is not in --trusted-proxies")
