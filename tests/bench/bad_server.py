"""A WebSocket server that sends whatever bytes a test wants, faults included."""

from __future__ import annotations

import base64
import hashlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from bench.processes import Process
from bench.tally import Tally, merge

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def frame(payload: bytes, head: int = 0x81) -> bytes:
    """Return a frame of a server, by default of text in one piece."""
    if len(payload) < 126:
        return bytes([head, len(payload)]) + payload
    if len(payload) < 65536:
        return struct.pack(">BBH", head, 126, len(payload)) + payload
    return struct.pack(">BBQ", head, 127, len(payload)) + payload


def message(stream: int, sequence: int, size: int = 128, to: int = 0) -> bytes:
    """Return a frame that the generator takes for good."""
    start = f'"{stream} {sequence} {time.monotonic_ns()} {to} '.encode()
    return frame(start + b"x" * (size - len(start) - 1) + b'"')


def answer(head: bytes) -> bytes:
    """Return the right answer to an upgrade request."""
    key = head.split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0]
    accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


class BadServer:
    """Accepts connections in a thread and answers their requests; tests write to the sockets.

    Args:
        process: The load generator.
        answering: Makes the answer to a request; an empty one closes the connection.
    """

    def __init__(self, process: Process, answering: Callable[[bytes], bytes] = answer) -> None:
        self.process = process
        self.sockets: list[socket.socket] = []
        self.heads: list[bytes] = []
        self._answering = answering
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(10)
        self._thread: threading.Thread | None = None

    def connect(self, count: int = 1, path: str = "/ws") -> Tally:
        """Let the generator connect the clients 1 to `count`."""
        self._thread = threading.Thread(target=self._accept, args=(count,))
        self._thread.start()
        port = self._listener.getsockname()[1]
        lines = [f"token{client} {client}" for client in range(1, count + 1)]
        tally = merge([self.process.ask(f"connect 127.0.0.1 {port} {path} 10 {count}", *lines)])
        self._thread.join()
        return tally

    def _accept(self, count: int) -> None:
        for _ in range(count):
            sock, _ = self._listener.accept()
            sock.settimeout(10)
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += sock.recv(4096)
            self.heads.append(head)
            reply = self._answering(head)
            sock.sendall(reply)
            if reply[9:12] == b"101":
                self.sockets.append(sock)
            else:
                sock.close()

    def send(self, *frames: bytes, number: int = 0) -> Tally:
        """Send to one connection, and return what the generator has counted once it has seen all of it."""
        self.sockets[number].sendall(b"".join(frames) + frame(b"", 0x89))
        sent = self.read(6, number)  # a pong: what came before the ping has been dealt with
        assert sent[:2] == b"\x8a\x80"
        return self.state()

    def state(self) -> Tally:
        """Return what the generator has counted since the last `begin`."""
        return merge([self.process.ask("wait 0 0")])

    def read(self, size: int, number: int = 0) -> bytes:
        """Read exactly so many bytes that the generator sent."""
        data = b""
        while len(data) < size:
            piece = self.sockets[number].recv(size - len(data))
            assert piece, f"the generator closed; it sent {data!r} before"
            data += piece
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        for sock in (self._listener, *self.sockets):
            sock.close()
