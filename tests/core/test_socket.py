"""The sockets of terminals under their own epoll: what arrives, what waits, how they end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from freeim._core import Backlog, Poller, Socket
from tests.node.harness import until

BIG = bytes(range(256)) * 16384


class Recorder(asyncio.Protocol):
    """Remembers what its transport tells it."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.data = bytearray()
        self.calls: list[str] = []
        self.error: Exception | None = None
        self.keep_open = False
        self.on_lost: Callable[[], None] = lambda: None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data

    def eof_received(self) -> bool:
        self.calls.append("eof")
        return self.keep_open

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("lost")
        self.error = exc
        self.on_lost()


class Stand:
    """A listening socket, its poller, and what it accepted."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        self.listener.setblocking(False)
        self.poller = Poller(self.loop, Backlog())

    async def pair(self, protocol: Recorder | None = None) -> tuple[Recorder, socket.socket]:
        far = socket.socket()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        far.connect(self.listener.getsockname())
        far.setblocking(False)
        recorder = protocol or Recorder()
        self.poller.accept(self.listener.fileno(), lambda: recorder)
        return recorder, far


@contextlib.asynccontextmanager
async def standing() -> AsyncIterator[Stand]:
    stand = Stand()
    try:
        yield stand
    finally:
        stand.poller.close()
        stand.listener.close()


async def read(loop: asyncio.AbstractEventLoop, far: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        chunk = await loop.sock_recv(far, 65536)
        assert chunk, "it ended too early"
        data += chunk
    return bytes(data)


async def lost(recorder: Recorder) -> None:
    await until(lambda: "lost" in recorder.calls)


async def test_bytes_go_both_ways_and_the_peers_name_is_known() -> None:
    async with standing() as stand:
        near, far = await stand.pair()
        far.send(b"hello")
        await until(lambda: near.data == b"hello")
        near.transport.write(b"you")
        assert await read(stand.loop, far, 3) == b"you"
        assert near.transport.get_extra_info("peername") == far.getsockname()
        assert os.fstat(near.transport.get_extra_info("socket").fileno())
        assert near.transport.get_extra_info("ssl_object", 5) == 5
        far.close()
        await lost(near)
        assert near.calls == ["eof", "lost"]
        assert near.error is None


async def test_what_the_kernel_does_not_take_waits_is_reported_and_comes_in_order() -> None:
    async with standing() as stand:
        near, far = await stand.pair()
        near.transport.write(BIG)
        assert near.calls == ["pause"]
        near.transport.write(b"the end")
        assert near.transport.get_write_buffer_size() > 0
        assert await read(stand.loop, far, len(BIG) + 7) == BIG + b"the end"
        await until(lambda: near.calls == ["pause", "resume"])
        assert near.transport.get_write_buffer_size() == 0
        far.close()
        await lost(near)


async def test_closing_waits_for_the_queue_and_takes_nothing_more() -> None:
    async with standing() as stand:
        near, far = await stand.pair()
        near.transport.write(BIG)
        near.transport.close()
        near.transport.write(b"too late")
        assert near.transport.is_closing()
        assert near.calls == ["pause"]
        assert await read(stand.loop, far, len(BIG)) == BIG
        assert await stand.loop.sock_recv(far, 10) == b""
        await lost(near)
        far.close()


async def test_an_abort_does_not_wait() -> None:
    async with standing() as stand:
        near, far = await stand.pair()
        near.transport.write(BIG)
        near.transport.abort()
        near.transport.abort()
        await lost(near)
        assert near.calls == ["pause", "lost"]
        far.close()


async def test_the_descriptor_lives_until_the_protocol_has_heard_of_its_end() -> None:
    async with standing() as stand:
        near, far = await stand.pair()
        descriptor = near.transport.fileno()
        seen = []
        near.on_lost = lambda: seen.append(os.fstat(descriptor).st_ino)
        near.transport.abort()
        assert os.fstat(descriptor).st_ino
        await lost(near)
        assert seen
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
        far.close()


async def test_our_side_ends_behind_the_queue_and_the_peer_is_still_heard() -> None:
    async with standing() as stand:
        near, far = await stand.pair()
        near.transport.write(BIG)
        near.transport.write_eof()
        assert await read(stand.loop, far, len(BIG)) == BIG
        assert await stand.loop.sock_recv(far, 10) == b""
        far.send(b"still here")
        await until(lambda: near.data == b"still here")
        far.close()
        await lost(near)


async def test_a_half_closed_peer_can_be_kept_and_costs_nothing_meanwhile() -> None:
    async with standing() as stand:
        near, far = await stand.pair()
        near.keep_open = True
        far.shutdown(socket.SHUT_WR)
        await until(lambda: near.calls == ["eof"])
        await asyncio.sleep(0.05)
        assert near.calls == ["eof"]
        near.transport.write(b"answer")
        assert await read(stand.loop, far, 6) == b"answer"
        near.transport.close()
        await lost(near)
        far.close()


async def test_reading_can_be_paused_and_a_reset_is_noticed_nevertheless() -> None:
    async with standing() as stand:
        near, far = await stand.pair()
        near.transport.pause_reading()
        far.send(b"wait")
        await asyncio.sleep(0.05)
        assert near.data == b""
        near.transport.resume_reading()
        await until(lambda: near.data == b"wait")
        near.transport.pause_reading()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        await lost(near)


async def test_a_reset_is_told_as_an_error() -> None:
    async with standing() as stand:
        near, far = await stand.pair()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        await lost(near)
        assert isinstance(near.error, ConnectionResetError)


async def test_a_defect_in_one_protocol_cuts_that_connection_alone() -> None:
    class Broken(Recorder):
        def data_received(self, data: bytes) -> None:
            raise RuntimeError("broken")

    told: list[dict[str, Any]] = []
    async with standing() as stand:
        stand.loop.set_exception_handler(lambda _, context: told.append(context))
        other, far = await stand.pair()
        near, bad = await stand.pair(Broken())
        bad.send(b"x")
        far.send(b"y")
        await lost(near)
        await until(lambda: other.data == b"y")
        assert str(told[0]["exception"]) == "broken"
        for each in (far, bad):
            each.close()
        await lost(other)


async def test_more_sockets_than_one_turn_looks_at_are_all_served() -> None:
    async with standing() as stand:
        pairs = [await stand.pair() for _ in range(200)]
        for number, (_, far) in enumerate(pairs):
            far.send(str(number).encode())
        await until(lambda: all(near.data == str(number).encode() for number, (near, _) in enumerate(pairs)))
        for _, far in pairs:
            far.close()
        await until(lambda: all("lost" in near.calls for near, _ in pairs))


async def test_where_sockets_take_long_the_loop_has_its_turn_in_between_and_all_come_in_turns() -> None:
    served: list[int] = []

    class Busy(Recorder):
        """Takes longer than a turn may, and has something to read again at once."""

        number = 0

        def data_received(self, data: bytes) -> None:
            time.sleep(0.001)
            served.append(self.number)
            pairs[self.number][1].send(b"x")

    async with standing() as stand:
        pairs: list[tuple[Recorder, socket.socket]] = []
        for number in range(24):
            busy = Busy()
            busy.number = number
            pairs.append(await stand.pair(busy))
        for _, far in pairs:
            far.send(b"x")
        before = 0
        while len(served) < 24 * 3:
            await asyncio.sleep(0)
            assert len(served) - before <= 8, "nothing else had a turn"
            before = len(served)
        for each in range(3):
            assert sorted(served[each * 24 : each * 24 + 24]) == list(range(24))
        for near, far in pairs:
            near.transport.abort()
            far.close()
        await until(lambda: all("lost" in near.calls for near, _ in pairs))


async def test_when_many_end_at_once_the_loop_has_its_turn_in_between() -> None:
    class Told(Recorder):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            time.sleep(0.0005)  # longer than all of them have in a turn
            if self is second[0]:
                third[0].transport.abort()
                raise RuntimeError("broken")

    told: list[dict[str, Any]] = []
    async with standing() as stand:
        stand.loop.set_exception_handler(lambda _, context: told.append(context))
        pairs = [await stand.pair(Told()) for _ in range(201)]
        first, second, *rest, third = pairs
        for near, _ in (first, second, *rest):
            near.transport.abort()
        turns = 0
        while any("lost" not in near.calls for near, _ in pairs):
            await asyncio.sleep(0)
            turns += 1
        assert turns >= len(pairs), "one in each"
        assert all(near.calls == ["lost"] for near, _ in pairs)
        assert [str(context["exception"]) for context in told] == ["broken"]
        for _, far in pairs:
            far.close()


async def test_nobody_to_accept_is_an_error_of_the_system() -> None:
    async with standing() as stand:
        with pytest.raises(BlockingIOError):
            stand.poller.accept(stand.listener.fileno(), Recorder)


async def test_closing_the_poller_closes_what_is_open_also_what_is_just_ending() -> None:
    stand = Stand()
    (_, far), (ending, other) = [await stand.pair() for _ in range(2)]
    ending.transport.abort()
    stand.poller.close()
    stand.poller.close()
    for each in (far, other):
        assert await stand.loop.sock_recv(each, 10) == b""
        each.close()
    await asyncio.sleep(0)
    stand.listener.close()


def test_a_socket_is_only_made_by_accepting() -> None:
    with pytest.raises(TypeError, match="accept"):
        Socket()
