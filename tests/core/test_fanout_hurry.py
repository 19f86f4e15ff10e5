"""While much waits on the bus, a slice of sending is shorter: Redis is to be read soon again."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from freeim._core import Fanout, control_frame
from tests.core.fakes import NO_LIMIT, FakeTransport, no_close, open_connection

SLICE = 1_000.0
"""Seconds of a slice as usual: in it everything is sent, on any machine."""

HURRY = 20_000
WRITE = 0.06
"""Seconds of a write: longer than a slice that is so many times shorter, 0.05 s."""


class SlowTransport(FakeTransport):
    """Takes its time."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        time.sleep(WRITE)
        super().write(data)


@pytest.mark.parametrize("size", [10, 65_536], ids=["short", "bulk"])
def test_in_a_hurry_a_slice_is_over_sooner(size: int) -> None:
    later: list[Callable[[], None]] = []
    walk = Fanout(later.append, no_close, NO_LIMIT, NO_LIMIT, slice_ms=1_000 * SLICE)
    transports = [SlowTransport() for _ in range(5)]
    for number, transport in enumerate(transports):
        connection, _ = open_connection(walk, number)
        connection.attach_transport(transport, -1)
        connection.send_control(control_frame(1, bytes(size)))
    walk.hurry = HURRY
    walk.flush()
    assert [bool(transport.sent) for transport in transports] == [True, False, False, False, False]
    walk.hurry = 1
    later.pop()()  # of the turn that had its slice
    later.pop()()
    assert all(transport.sent for transport in transports), "as usual once little waits"
