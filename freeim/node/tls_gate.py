"""What happens to an accepted connection before TLS, and the handshake of TLS itself."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from typing import Final

from freeim.node.connections import Connections
from freeim.node.handshake import Handshake
from freeim.node.http import Refusal
from freeim.node.proxy_protocol import SIGNATURE, WORD, missing, read_header
from freeim.node.sparse_log import SparseLog

FAILURES_PER_MINUTE: Final = 20
"""Log lines about failed handshakes; the rest of the minute is counted."""


class TlsGate:
    """Lets connections in that speak TLS.

    Args:
        context: The certificate.
        connections: Where they go.
        timeout: Seconds for the handshake of TLS, and for its end.
    """

    def __init__(self, context: ssl.SSLContext, connections: Connections, timeout: float) -> None:
        self._context = context
        self._connections = connections
        self._admission = connections.admission
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._log = SparseLog(logging.INFO, FAILURES_PER_MINUTE, "%d more TLS handshakes failed")

    def reload(self, context: ssl.SSLContext, timeout: float) -> None:
        """Use this certificate and this time-out for connections that come from now on."""
        self._context = context
        self._timeout = timeout

    async def admit(self, conn: socket.socket, peer: str) -> bool:
        """Make a TLS connection of a socket; False where it came to nothing, and the socket is to be closed.

        Args:
            conn: A connected socket that does not block.
            peer: The address that it comes from.
        """
        handshake = Handshake(self._connections)
        try:
            async with asyncio.timeout(self._timeout):
                source = await self._read_source(conn, peer)
            handshake.proxy_read = True
            if not self._admission.place(handshake, source):
                return False
            # Counted before the handshake, which costs a hundred times what a connection without TLS does.
            await self._loop.connect_accepted_socket(
                lambda: handshake,
                conn,
                ssl=self._context,
                ssl_handshake_timeout=self._timeout,
                ssl_shutdown_timeout=self._timeout,
            )
        except (OSError, Refusal) as error:  # a time-out is an OSError too
            self._admission.leave(handshake)
            reason = error.reason if isinstance(error, (ssl.SSLError, Refusal)) else str(error) or "no answer in time"
            self._log.tell("a TLS handshake with %s failed: %s", handshake.address or peer, reason)
            return False
        except asyncio.CancelledError:
            self._admission.leave(handshake)
            raise
        return True

    async def _read_source(self, conn: socket.socket, peer: str) -> str:
        """Read the PROXY header that a trusted proxy may send before TLS, and not a byte more."""
        if not self._admission.is_proxy(peer):
            return peer
        await self._readable(conn)
        # No handshake of TLS begins so: its first byte is 0x16.
        if conn.recv(1, socket.MSG_PEEK) not in (WORD[:1], SIGNATURE[:1]):
            return peer
        data = b""
        while (header := read_header(data)) is None:
            part = await self._loop.sock_recv(conn, missing(data))
            if not part:
                raise ConnectionAbortedError("it ended in its PROXY header")
            data += part
        return header.source or peer

    async def _readable(self, conn: socket.socket) -> None:
        ready = asyncio.Event()
        self._loop.add_reader(conn.fileno(), ready.set)
        try:
            await ready.wait()
        finally:
            self._loop.remove_reader(conn.fileno())

    def tell_rest(self) -> None:
        """Log how many handshakes failed without a line of their own; to be called now and then."""
        self._log.tell_rest()
