"""What stands in for a socket's transport, connections on it, and frames for them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from freeim._core import Connection, Fanout, control_frame

CLOSE = control_frame(8, b"\x0f\xa2too slow")
NO_LIMIT = 1 << 40


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


def no_close(connection: Connection, *_: object) -> None:
    """For tests in which nobody is too slow."""
    raise AssertionError(f"connection {connection.number} was called too slow")


def fanout() -> Fanout:
    return Fanout(never, no_close, 1 << 20, NO_LIMIT)


def open_connection(walk: Fanout, number: int) -> tuple[Connection, FakeTransport]:
    """Return a connection that is held, and the transport to attach; all writes go through the transport."""
    return Connection(walk, number, "{}", None), FakeTransport()


def text(number: int, size: int) -> bytes:
    """Return a text frame whose payload has so many bytes, all of which look like headers of long frames."""
    return control_frame(1, bytes([0x81, 127 - number % 2]) * (size // 2) + b"\x81" * (size % 2))


def ends_of(frames: list[bytes]) -> list[int]:
    """Return where each frame ends in the stream."""
    return [0, *itertools.accumulate(map(len, frames))]
