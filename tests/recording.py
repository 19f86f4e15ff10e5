"""A RESP proxy that writes down every command on its way to a real Redis."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from types import TracebackType
from typing import Any, Self

from tests.servers import RedisServer, free_port

HANDSHAKE = {"HELLO", "CLIENT", "AUTH", "SELECT", "PING"}
"""What a client sends to set a connection up; not written down."""


class RecordingRedis:
    """Stands before a `RedisServer`; ``with RecordingRedis(server) as recorder:`` then ``recorder.url``.

    Attributes:
        commands: The commands so far, each a list of texts, those of all connections together.
    """

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.commands: list[list[str]] = []
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def take(self) -> list[list[str]]:
        """Return the commands since the last call."""
        found, self.commands = self.commands, []
        return found

    def pass_on(self, args: list[str], raw: bytes, upstream: socket.socket) -> None:
        """Write a command down and send it to the server."""
        self.commands.append(args)  # before it is passed on: once its reply is there, it is written down
        upstream.sendall(raw)

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._sockets.append(self._listener)
        for sock in list(self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(5.0)

    def _spawn(self, target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            upstream = socket.socket(socket.AF_UNIX)
            upstream.connect(self.server.socket_path)
            self._sockets += (client, upstream)
            self._spawn(self._commands, client, upstream)
            self._spawn(self._replies, upstream, client)

    def _commands(self, client: socket.socket, upstream: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), client.makefile("rb") as reader:
            while line := reader.readline():
                raw, args = [line], []
                for _ in range(int(line[1:])):
                    head = reader.readline()
                    body = reader.read(int(head[1:]) + 2)
                    raw += (head, body)
                    args.append(body[:-2].decode())
                if args[0].upper() in HANDSHAKE:
                    upstream.sendall(b"".join(raw))
                else:
                    self.pass_on(args, b"".join(raw), upstream)
        with contextlib.suppress(OSError):
            upstream.shutdown(socket.SHUT_WR)

    def _replies(self, upstream: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := upstream.recv(io.DEFAULT_BUFFER_SIZE):
                client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_WR)
