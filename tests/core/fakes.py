"""What stands in for a socket's transport, and connections on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from freeim._core import Connection, Fanout


class FakeTransport(asyncio.WriteTransport):
    """Takes everything at once and remembers it; `queued` is what it claims to hold back."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.queued = 0
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        return self.queued

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def abort(self) -> None:
        self.aborted = True


def never(_: Callable[[], None]) -> None:
    """A ``call_soon`` that forgets: the test flushes by itself."""


def fanout() -> Fanout:
    def too_slow(connection: Connection) -> None:
        raise AssertionError(f"connection {connection.number} was called too slow")

    return Fanout(never, too_slow, 1 << 20)


def open_connection(walk: Fanout, number: int) -> tuple[Connection, FakeTransport]:
    """Return a connection that is held, and the transport to attach; all writes go through the transport."""
    return Connection(walk, number, "{}", None), FakeTransport()
