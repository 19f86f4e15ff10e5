"""A process that holds many WebSocket connections and counts what arrives; ``python -m bench.clients``.

It speaks over stdin and stdout, a line each way: ``connect HOST PORT PATH N`` (then N tokens, a line each),
``expect BYTES`` (wait until each connection got that many more bytes), ``quit``.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
IN_FLIGHT = 256


def connect(host: str, port: int, path: str, tokens: list[str], poll: select.epoll) -> dict[int, socket.socket]:
    """Open one connection a token, `IN_FLIGHT` at a time, and return them by descriptor once each has its 101."""
    opened: dict[int, socket.socket] = {}
    waiting: dict[int, tuple[socket.socket, bytes]] = {}
    todo = iter(tokens)
    left = len(tokens)
    while left:
        while len(waiting) < IN_FLIGHT:
            token = next(todo, None)
            if token is None:
                break
            sock = socket.socket()
            sock.connect((host, port))
            sock.sendall(
                f"GET {path}?token={token} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\n"
                f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n".encode()
            )
            sock.setblocking(False)
            poll.register(sock.fileno(), select.EPOLLIN)
            waiting[sock.fileno()] = (sock, b"")
        for fd, _ in poll.poll():
            sock, head = waiting[fd]
            head += sock.recv(4096)
            if b"\r\n\r\n" in head:
                if not head.startswith(b"HTTP/1.1 101"):
                    raise SystemExit(f"refused: {head[:80]!r}")
                del waiting[fd]
                opened[fd] = sock
                left -= 1
            else:
                waiting[fd] = (sock, head)
    return opened


def expect(count: int, size: int, poll: select.epoll) -> None:
    """Read until `count` connections have received `size` bytes each."""
    left = count * size
    while left > 0:
        for fd, _ in poll.poll(30) or [(-1, 0)]:
            if fd < 0:
                raise SystemExit(f"nothing arrived for 30 s; {left} bytes are missing")
            left -= len(os.read(fd, 65536))
    if left < 0:
        raise SystemExit(f"{-left} bytes too many arrived")


def main() -> None:
    poll = select.epoll()
    connections: dict[int, socket.socket] = {}
    for line in sys.stdin:
        command, *args = line.split()
        start = time.perf_counter()
        if command == "connect":
            tokens = [sys.stdin.readline().strip() for _ in range(int(args[3]))]
            connections.update(connect(args[0], int(args[1]), args[2], tokens, poll))
        elif command == "expect":
            print("ready", flush=True)
            expect(len(connections), int(args[0]), poll)
        else:
            break
        print(f"done {time.perf_counter() - start}", flush=True)


if __name__ == "__main__":
    main()
