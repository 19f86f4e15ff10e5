"""Accepting connections: from the listening socket to a transport with a handshake on it."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
from collections.abc import Callable
from typing import Final

from freeim._core import HAVE_EPOLL, Backlog, Poller
from freeim.config import Options
from freeim.limits import raise_descriptor_limit
from freeim.node.tls_gate import TlsGate

log = logging.getLogger("freeim")

RESERVED_DESCRIPTORS: Final = 32
"""Kept free for Redis connections, log files, name look-ups and whatever else the process opens."""

ACCEPTS_PER_TURN: Final = 32
"""Connections accepted before the loop looks at anything else."""

RETRY_SECONDS: Final = 1.0
"""Pause after the system refused a descriptor although our own count allowed it."""

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def listen(host: str, port: int, backlog: int, send_buffer: int) -> socket.socket:
    """Return a listening socket. What is set on it here, its connections inherit.

    Args:
        host: Address to bind, IPv6 without brackets.
        port: Port, 0 for any free one.
        backlog: Connections that may wait to be accepted.
        send_buffer: SO_SNDBUF in bytes; 0 leaves the system's default.

    Raises:
        OSError: The address cannot be bound.
    """
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
        0
    ]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if send_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        sock.bind(address)
        sock.listen(backlog)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def adopt(sock: socket.socket, backlog: int, send_buffer: int) -> socket.socket:
    """Set on a listening socket that another process has made what `listen` would have set."""
    if send_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    sock.listen(backlog)
    return sock


class Acceptor:
    """Accepts as many connections as there are descriptors; the others wait in the kernel's queue.

    Args:
        sock: The listening socket; it stays the caller's.
        protocol: Makes the protocol of a new connection.
        backlog: Where what waits for terminals is counted.
        gate: Makes TLS connections of what is accepted; None for plain ones.
    """

    def __init__(
        self,
        sock: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        backlog: Backlog,
        gate: TlsGate | None = None,
    ) -> None:
        self.gate = gate
        self.limit = raise_descriptor_limit()
        self.capacity = max(1, self.limit - _open_descriptors() - RESERVED_DESCRIPTORS)
        self.open = 0
        self._sock = sock
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        # Elsewhere, and with TLS, each connection gets a transport of the event loop, which costs more.
        self._poller = Poller(self._loop, backlog) if HAVE_EPOLL and gate is None else None
        self._tasks: set[asyncio.Task[object]] = set()
        self._accepting = False
        self._wanted = False
        self._told = False
        self._retry: asyncio.TimerHandle | None = None

    def check_capacity(self, wanted: int) -> None:
        """Warn where there are not as many descriptors as connections are wanted."""
        if wanted > self.capacity:
            log.warning(
                "--max-connections is %d, and the limit of %d descriptors allows only %d: raise the hard limit of open "
                "files (ulimit -Hn, LimitNOFILE=)",
                wanted,
                self.limit,
                self.capacity,
            )

    def reload(self, options: Options, context: ssl.SSLContext | None) -> None:
        """Take new options, for connections that come from now on.

        Args:
            options: The node's.
            context: The certificate; None without TLS.
        """
        self._sock.listen(options.backlog)
        if options.send_buffer:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options.send_buffer)
        if self.gate is not None and context is not None:
            self.gate.reload(context, options.handshake_timeout)

    def start(self) -> None:
        """Begin to accept."""
        self._wanted = True
        self._resume()

    def stop(self) -> None:
        """Accept no more."""
        self._wanted = False
        if self._retry is not None:
            self._retry.cancel()
        self._pause()

    async def settled(self) -> None:
        """Wait until what was accepted has become handshakes; with TLS that takes a moment."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def close(self) -> None:
        """Accept no more, and close what is still open."""
        self.stop()
        for task in self._tasks:
            task.cancel()
        if self._poller is not None:
            self._poller.close()

    def closed(self) -> None:
        """A connection that was accepted here has been closed."""
        self.open -= 1
        if self._wanted and not self._accepting and self._retry is None:
            self._resume()

    def _resume(self) -> None:
        self._retry = None
        if self._wanted and not self._accepting:
            self._accepting = True
            self._loop.add_reader(self._sock.fileno(), self._accept)

    def _pause(self) -> None:
        if self._accepting:
            self._accepting = False
            self._loop.remove_reader(self._sock.fileno())

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            if self.open >= self.capacity:
                self._tell(f"{self.open} connections are open and the limit of {self.limit} descriptors allows no more")
                self._pause()
                return
            try:
                self._accept_one()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    log.warning("a connection could not be accepted: %s", error)
                    return
                self._tell(f"the system has no descriptor left ({error.strerror})")
                self._pause()
                self._retry = self._loop.call_later(RETRY_SECONDS, self._resume)
                return

    def _accept_one(self) -> None:
        if self._poller is not None:
            self.open += 1
            try:
                self._poller.accept(self._sock.fileno(), self._protocol)
            except OSError:
                self.open -= 1
                raise
            return
        conn, address = self._sock.accept()
        self.open += 1
        task = self._loop.create_task(self._adopt(conn, address[0]))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _adopt(self, conn: socket.socket, peer: str) -> None:
        adopted = False
        try:
            conn.setblocking(False)
            if self.gate is not None:
                adopted = await self.gate.admit(conn, peer)
            else:
                await self._loop.connect_accepted_socket(self._protocol, conn)
                adopted = True
        except OSError:
            pass  # the peer was gone before the transport was there
        finally:
            if not adopted:
                conn.close()
                self.closed()

    def _tell(self, reason: str) -> None:
        if not self._told:
            self._told = True
            log.warning(
                "accepting is paused: %s; new clients wait until others leave. Raise the hard limit of open files "
                "(ulimit -Hn, LimitNOFILE=) or run more nodes. This is said once",
                reason,
            )


def _open_descriptors() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(folder))
        except OSError:
            continue
    return RESERVED_DESCRIPTORS
