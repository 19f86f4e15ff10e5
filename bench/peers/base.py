"""What the peers have in common: what one must tell of itself, and how Python programs and Redis are dealt with."""

from __future__ import annotations

import abc
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Protocol

import redis

from bench import tokens
from bench.processes import BenchError, Crowd, Process
from freeim.names import new_token

START_SECONDS: Final = 20.0
SERVERS: Final = Path(__file__).parent / "servers"
CHUNK: Final = 65536


class PeerError(BenchError):
    """A peer cannot be measured, or not any longer; the others can."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a peer is started with.

    Attributes:
        url: Redis.
        prefix: What its names in Redis begin with.
        folder: An empty folder for its files.
    """

    url: str
    prefix: str
    folder: Path


class Sender(Protocol):
    """Publishes: packed beforehand, since what a sender spends must not slow the server down."""

    def pack(self, text: str, client: int = 0) -> bytes:
        """Return what publishes a text to one client, or to everybody (0)."""

    def send(self, packed: Sequence[bytes]) -> None:
        """Publish one after another without waiting for each, and return when the last was taken."""

    def close(self) -> None:
        """Close the connection."""


class Server(Process):
    """A process that listens; this waits until it does."""

    def __init__(self, name: str, command: Sequence[str], port: int, run: Run) -> None:
        super().__init__(command)
        self.name = name
        self.port = port
        self.run = run
        if not listens(self, socket.AF_INET, ("127.0.0.1", port)):
            self.__exit__(None, None, None)
            raise PeerError(f"{name} does not listen on port {port}; stderr has its reason")


class Peer(abc.ABC):
    """A server to compare with.

    Args:
        python: The interpreter that has the third-party packages, for those that are written in Python.

    Attributes:
        name: Its name in the report.
        path: Where clients connect to; see `Crowd.connect`.
        envelope: What it puts around each message; see `Crowd.envelope`.
    """

    name: str
    path: str = "/ws"
    envelope: tuple[str, str] | None = None

    def __init__(self, python: str = sys.executable) -> None:
        self.python = python

    @abc.abstractmethod
    def missing(self) -> str | None:
        """Return how to install it, or None where it can be started."""

    @abc.abstractmethod
    def version(self) -> str:
        """Return the versions that are measured."""

    @abc.abstractmethod
    def start(self, run: Run) -> Server:
        """Start it, with one process that serves."""

    @abc.abstractmethod
    def sender(self, server: Server) -> Sender:
        """Return what publishes to it."""

    @abc.abstractmethod
    def tokens(self, server: Server, count: int) -> list[str]:
        """Return what the clients 1 to `count` show when they connect, and make the server know it."""

    def check_refusal(self, server: Server, wrong: Sequence[str]) -> None:
        """Show wrong tokens.

        Raises:
            PeerError: One of them was let in.
        """
        with Crowd(len(wrong)) as crowd:
            refused = crowd.connect([server.port], wrong, path=self.path).refused
        if refused[HTTPStatus.UNAUTHORIZED] + refused[HTTPStatus.FORBIDDEN] != len(wrong):
            raise PeerError(f"{self.name} does not refuse wrong tokens")


class PythonPeer(Peer):
    """One that is a program of ours on third-party packages.

    Attributes:
        modules: Those that it imports.
        packages: What pip installs them from; the first ones are named in the report.
        program: Its file, started with the URL of Redis, a port and the prefix of its channels.
    """

    modules: tuple[str, ...]
    packages: tuple[str, ...]
    program: str

    def missing(self) -> str | None:
        """Try to import what it needs."""
        command = [self.python, "-c", f"import {', '.join(self.modules)}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            reason = str(error)
        else:
            if done.returncode == 0:
                return None
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return f"{self.python} -m pip install {' '.join(self.packages)} ({reason})"

    def version(self) -> str:
        """Ask the interpreter."""
        names = [package.split("[")[0] for package in self.packages]
        code = "import sys, importlib.metadata as m; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
        return subprocess.run(
            [self.python, "-c", code, *names], capture_output=True, text=True, check=True
        ).stdout.strip()

    def start(self, run: Run) -> Server:
        """Start the program."""
        port = free_port()
        return Server(self.name, [self.python, str(SERVERS / self.program), run.url, str(port), run.prefix], port, run)

    def tokens(self, server: Server, count: int) -> list[str]:
        """Write a token for each client to Redis, and make sure that no other is let in."""
        issued = [new_token() for _ in range(count)]
        with redis.Redis.from_url(server.run.url) as client:
            pipe = client.pipeline(transaction=False)
            for number, token in enumerate(issued, 1):
                pipe.set(f"{server.run.prefix}:token:{token}", number, ex=tokens.TOKEN_SECONDS)
            pipe.execute()
        self.check_refusal(server, [new_token()])
        return issued

    def sender(self, server: Server) -> Sender:
        """Publish to Redis, where the program reads."""
        return RedisSender(server.run.url, f"{server.run.prefix}:push")


class RedisSender:
    """Publishes to one channel that the server reads: the client's number (0: everybody), a space, and the text."""

    def __init__(self, url: str, channel: str) -> None:
        self._client = redis.Redis.from_url(url, protocol=2)
        self._connection: Any = self._client.connection_pool.get_connection()
        self.channel = channel

    def pack(self, text: str, client: int = 0) -> bytes:
        """Return a PUBLISH."""
        return self.publish(self.channel, f"{client} {text}")

    def publish(self, channel: str, payload: str) -> bytes:
        """Return a PUBLISH of anything."""
        return b"".join(self._connection.pack_command("PUBLISH", channel, payload))

    def send(self, packed: Sequence[bytes]) -> None:
        """Write all, then read the replies; what nobody heard is found by those who miss it."""
        for start in range(0, len(packed), 500):
            self._connection.send_packed_command([b"".join(packed[start : start + 500])])
        for _ in packed:
            self._connection.read_response()

    def close(self) -> None:
        """Disconnect."""
        self._connection.disconnect()
        self._client.close()


class HttpSender:
    """Publishes with POST requests, pipelined on one connection that is kept.

    Args:
        port: The server's, on 127.0.0.1.
        window: How many requests may wait for their answers.
    """

    def __init__(self, port: int, window: int = 64) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._answers = self._socket.makefile("rb")
        self._window = window

    def request(self, path: str, body: str, *headers: str) -> bytes:
        """Return a POST request."""
        data = body.encode()
        lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(data)}", *headers, "", ""]
        return "\r\n".join(lines).encode() + data

    def send(self, packed: Sequence[bytes]) -> None:
        """Send requests, and check that each was accepted."""
        for start in range(0, len(packed), self._window):
            some = packed[start : start + self._window]
            self._socket.sendall(b"".join(some))
            for _ in some:
                self._read_answer()

    def _read_answer(self) -> None:
        status = self._answers.readline()
        size = 0
        while line := self._answers.readline().strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                size = int(value)
        body = self._answers.read(size)
        if not status.startswith(b"HTTP/1.1 2") or b'"error"' in body:
            raise PeerError(f"a message was refused: {status.decode().strip()} {body.decode()[:200]}")

    def close(self) -> None:
        """Disconnect."""
        self._answers.close()
        self._socket.close()


def listens(process: Process, family: socket.AddressFamily, address: Any) -> bool:
    """Wait until a process listens; False if it ends before, or takes too long."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.popen.poll() is None:
        with socket.socket(family) as probe:
            if probe.connect_ex(address) == 0:
                return True
        time.sleep(0.05)
    return False


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def find_program(name: str, *folders: str | Path) -> str | None:
    """Return the path of a program on PATH or in one of these folders."""
    for folder in (*os.environ.get("PATH", "").split(os.pathsep), *folders):
        path = Path(folder) / name
        if folder and path.is_file() and os.access(path, os.X_OK):
            return str(path)
    return None
