"""The fan-out on real sockets: partial sends, a transport that queues, slow readers and descriptors that come back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest
import uvloop

from freeim._core import Connection, Fanout, control_frame
from tests.core.fakes import CLOSE, NO_LIMIT, FakeTransport, never, open_connection

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def no_close(connection: Connection, *_: object) -> None:
    raise AssertionError(f"connection {connection.number} was called too slow")


def tcp_pair(buffers: int) -> tuple[socket.socket, socket.socket]:
    """Return both ends of a connection whose kernel buffers are small."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        far = socket.socket()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        far.connect(listener.getsockname())
        near, _ = listener.accept()
    for each in (near, far):
        each.setblocking(False)
    return near, far


class Owner(asyncio.Protocol):
    """What a terminal does for its connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.paused = 0
        self.drained = asyncio.Event()
        self.drained.set()
        self.lost = asyncio.get_running_loop().create_future()

    def pause_writing(self) -> None:
        self.paused += 1
        self.drained.clear()
        self.connection.set_blocked(True)

    def resume_writing(self) -> None:
        self.drained.set()
        self.connection.set_blocked(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self.connection.detach_transport()
        self.lost.set_result(exc)


class Wired:
    """A connection on a real transport, and the far end of its socket."""

    def __init__(self, owner: Owner, transport: asyncio.Transport, far: socket.socket) -> None:
        self.owner = owner
        self.connection = owner.connection
        self.transport = transport
        self.far = far

    async def read(self, size: int, seconds: float = 20) -> bytes:
        """Return exactly `size` bytes from the far end; fewer where it ends before."""
        loop = asyncio.get_running_loop()
        data = bytearray()
        async with asyncio.timeout(seconds):
            while len(data) < size:
                chunk = await loop.sock_recv(self.far, size - len(data))
                if not chunk:
                    break
                data += chunk
        return bytes(data)


async def wire(walk: Fanout, buffers: int = 4096, number: int = 1) -> Wired:
    near, far = tcp_pair(buffers)
    connection = Connection(walk, number, "{}", None)
    owner = Owner(connection)
    transport, _ = await asyncio.get_running_loop().create_connection(lambda: owner, sock=near)
    transport.set_write_buffer_limits(high=0)
    connection.attach_transport(transport, transport.get_extra_info("socket").fileno())
    wired = Wired(owner, transport, far)
    open_wires.append(wired)
    return wired


open_wires: list[Wired] = []


async def cut_wires() -> None:
    """End all connections of a test: uvloop hangs for good on a transport that outlives its loop."""
    while open_wires:
        wired = open_wires.pop()
        wired.transport.abort()
        async with asyncio.timeout(5):
            await wired.owner.lost
        wired.far.close()


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Callable[[], Awaitable[None]]], None]]:
    """Runs a test on the transports of each loop."""
    with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:

        def start(test: Callable[[], Awaitable[None]]) -> None:
            async def main() -> None:
                try:
                    async with asyncio.timeout(60):
                        await test()
                finally:
                    await cut_wires()

            runner.run(main())

        yield start


Run = Callable[[Callable[[], Awaitable[None]]], None]


def frame(number: int, size: int) -> bytes:
    return control_frame(1, (b"%d." % number) * (size // 3 + 1))


@pytest.mark.parametrize("seed", range(4))
def test_every_byte_arrives_once_and_in_order_however_slowly_the_peer_reads(run: Run, seed: int) -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        walk = Fanout(loop.call_soon, no_close, 1 << 30, NO_LIMIT)
        wired = await wire(walk)
        dice = random.Random(seed)
        sent = bytearray()
        got = bytearray()
        frames = 0
        for step in range(1500):
            for _ in range(dice.choice([0, 1, 1, 3])):
                data = frame(step, dice.choice([1, 10, 100, 1000, 3000, 30_000 if step % 50 == 0 else 5]))
                wired.connection.send_control(data)
                sent += data
                frames += 1
            choice = dice.random()
            if choice < 0.3:
                walk.flush()
            elif choice < 0.4:
                wired.connection.flush_now()
            if choice < 0.6:
                await asyncio.sleep(0)
            with contextlib.suppress(BlockingIOError):
                if dice.random() < 0.2:
                    got += wired.far.recv(dice.choice([1, 100, 10_000]))
            if step % 100 == 99:  # the peer catches up: the next sends are direct again
                walk.flush()
                got += await wired.read(len(sent) - len(got))
                await wired.owner.drained.wait()
        got += await wired.read(len(sent) - len(got))
        assert bytes(got) == bytes(sent)
        assert 0 < walk.writes < frames, "direct sends, each of all frames that wait"
        assert wired.owner.paused > 5, "the transport has never queued: nothing was tested"
        wired.transport.close()
        assert await wired.read(1) == b""

    run(test)


def test_a_slow_reader_is_reported_once_and_gets_its_close_frame_behind_all_that_was_queued(run: Run) -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        limit = 100_000
        reported = []

        def too_slow(connection: Connection, *_: object) -> None:
            reported.append(connection.number)
            assert connection.begin_close(CLOSE, 4002)

        walk = Fanout(loop.call_soon, too_slow, limit, NO_LIMIT)
        slow, good = await wire(walk, number=1), await wire(walk, 1 << 20, number=2)
        sent = []
        for number in range(2000):
            data = frame(number, 1000)
            before = slow.connection.closing
            for each in (slow, good):
                each.connection.send_control(data)
            walk.flush()
            assert slow.transport.get_write_buffer_size() <= limit + len(CLOSE)
            if not slow.connection.closing:
                sent.append(data)
            elif not before:
                cut_at = number
            if number % 10 == 0:
                await asyncio.sleep(0)
                with contextlib.suppress(BlockingIOError):
                    good.far.recv(1 << 20)
        assert reported == [1]
        assert walk.too_slow == 1
        assert 50 < cut_at < 1000
        want = b"".join(sent) + CLOSE
        assert await slow.read(len(want)) == want
        assert not good.connection.closing

    run(test)


def test_an_empty_queue_takes_one_message_of_any_size_and_no_second_one(run: Run) -> None:
    async def test() -> None:
        reported = []
        walk = Fanout(
            asyncio.get_running_loop().call_soon, lambda each, *_: reported.append(each.number), 1000, NO_LIMIT
        )
        wired = await wire(walk)
        huge = frame(1, 5_000_000)
        wired.connection.send_control(huge)
        walk.flush()
        assert reported == []
        wired.connection.send_control(frame(2, 10))
        walk.flush()
        assert reported == [1]
        assert await wired.read(len(huge)) == huge

    run(test)


def test_without_a_descriptor_the_limits_are_the_same() -> None:
    reported = []
    # As with TLS: all goes through the transport.
    walk = Fanout(never, lambda each, *_: reported.append(each.number), 1000, NO_LIMIT)
    connection, transport = open_connection(walk, 1)
    connection.attach_transport(transport, -1)
    for size, queued, accepted in ((5_000_000, 0, True), (900, 50, True), (900, 200, False)):
        transport.queued = queued
        transport.sent.clear()
        data = control_frame(1, b"x" * size)
        connection.send_control(data)
        walk.flush()
        assert bytes(transport.sent) == (data if accepted else b"")
        assert reported == [] if accepted else [1]
    assert walk.writes == 0


def test_a_peer_that_has_gone_is_cut_and_nothing_more_goes_to_its_descriptor(run: Run) -> None:
    async def test() -> None:
        walk = Fanout(asyncio.get_running_loop().call_soon, no_close, 1 << 20, NO_LIMIT)
        wired = await wire(walk)
        wired.transport.pause_reading()  # only the sending may notice
        wired.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        wired.far.close()  # a reset
        while wired.connection.fd >= 0:
            wired.connection.send_control(frame(0, 10))
            walk.flush()
        writes = walk.writes
        wired.connection.send_control(frame(0, 10))
        wired.connection.flush_now()
        assert walk.writes == writes
        async with asyncio.timeout(5):
            await wired.owner.lost
        assert wired.connection.transport is None

    run(test)


def test_nothing_is_sent_on_a_descriptor_after_detach_although_the_number_is_in_use_again() -> None:
    walk = Fanout(never, no_close, 1 << 20, NO_LIMIT)
    old_near, old_far = socket.socketpair()
    new_near, new_far = socket.socketpair()
    new_far.setblocking(False)
    fd = old_near.fileno()
    connection, transport = open_connection(walk, 1)
    connection.attach_transport(transport, fd)
    connection.send_control(frame(1, 10))
    walk.flush()
    assert old_far.recv(1000) == frame(1, 10)
    connection.send_control(frame(2, 10))
    connection.send_control(frame(3, 10))  # both wait for the walk
    connection.detach_transport()
    os.dup2(new_near.fileno(), fd)  # somebody else's connection has the number now
    walk.flush()
    connection.send_control(frame(4, 10))
    assert not connection.begin_close(CLOSE, 1001)
    connection.flush_now()
    walk.flush()
    with pytest.raises(BlockingIOError):
        new_far.recv(1)
    assert not transport.sent
    for each in (old_near, old_far, new_near, new_far):
        each.close()


def test_all_frames_of_a_walk_leave_in_one_send() -> None:
    walk = Fanout(never, no_close, 1 << 20, NO_LIMIT)
    near, far = socket.socketpair()
    connection, transport = open_connection(walk, 1)
    connection.attach_transport(transport, near.fileno())
    frames = [frame(number, 20) for number in range(100)]
    for each in frames:
        connection.send_control(each)
    walk.flush()
    assert walk.writes == 1
    assert far.recv(1 << 20) == b"".join(frames)
    walk.flush()
    assert walk.writes == 1
    near.close()
    far.close()


def test_a_held_connection_gets_nothing_before_its_101_and_all_of_it_after() -> None:
    walk = Fanout(never, no_close, 1 << 20, NO_LIMIT)
    connection, transport = open_connection(walk, 1)
    for number in range(3):
        connection.send_control(frame(number, 10))
        walk.flush()
    assert not transport.sent
    connection.attach_transport(transport, -1)
    walk.flush()
    assert bytes(transport.sent) == b"".join(frame(number, 10) for number in range(3))


def test_what_the_transport_holds_back_at_the_101_is_not_overtaken() -> None:
    walk = Fanout(never, no_close, 1 << 20, NO_LIMIT)
    near, far = socket.socketpair()
    far.setblocking(False)
    connection, transport = open_connection(walk, 1)
    transport.queued = 129  # the 101 itself
    connection.send_control(frame(1, 10))
    connection.attach_transport(transport, near.fileno())
    walk.flush()
    assert bytes(transport.sent) == frame(1, 10)
    with pytest.raises(BlockingIOError):
        far.recv(1)
    near.close()
    far.close()


def test_nothing_follows_a_close_frame_and_there_is_only_one() -> None:
    walk = Fanout(never, no_close, 10, NO_LIMIT)
    connection, transport = open_connection(walk, 1)
    transport.queued = 1000
    connection.attach_transport(transport, -1)
    assert connection.begin_close(CLOSE, 4002)
    assert not connection.begin_close(CLOSE, 1001)
    connection.send_control(frame(1, 10))
    walk.flush()
    assert bytes(transport.sent) == CLOSE, "a Close frame goes out however much is queued"
    assert connection.close_code == 4002


def test_a_long_walk_stops_after_its_slice_and_goes_on_in_order_when_the_loop_has_had_its_turn() -> None:
    later: list[Callable[[], None]] = []
    walk = Fanout(later.append, no_close, 1 << 20, NO_LIMIT, slice_ms=0)
    connections: list[tuple[Connection, FakeTransport]] = []
    for number in range(5000):
        connection, transport = open_connection(walk, number)
        connection.attach_transport(transport, -1)
        connection.send_control(frame(1, 1))
        connections.append((connection, transport))
    turns = 0
    done = 0
    while later:
        later.pop()()
        assert len(later) <= 1, "one walk at a time"
        turns += 1
        reached = sum(1 for _, transport in connections if transport.sent)
        assert all(transport.sent for _, transport in connections[:reached]), "out of order"
        assert reached > done
        done = reached
        # What arrives meanwhile joins the walk: the early ones get a second frame in it.
        if turns == 3:
            connections[0][0].send_control(frame(2, 1))
    assert turns > 100
    assert done == len(connections)
    assert bytes(connections[0][1].sent) == frame(1, 1) + frame(2, 1)
    assert all(bytes(transport.sent) == frame(1, 1) for _, transport in connections[1:])


def unfinished(later: list[Callable[[], None]]) -> tuple[Fanout, list[FakeTransport]]:
    """Return a walk that stops after sixteen connections, and the transports of forty that have something to send."""
    walk = Fanout(later.append, no_close, 1 << 20, NO_LIMIT, slice_ms=0)
    transports = []
    for number in range(40):
        connection, transport = open_connection(walk, number)
        connection.attach_transport(transport, -1)
        connection.send_control(frame(1, 1))
        transports.append(transport)
    return walk, transports


def test_a_turn_of_the_loop_has_one_slice_however_often_it_is_told_to_flush() -> None:
    later: list[Callable[[], None]] = []
    walk, transports = unfinished(later)

    def done() -> int:
        return sum(1 for transport in transports if transport.sent)

    walk.flush()
    assert done() == 16
    walk.flush()
    assert done() == 16, "another read in the same turn"
    later.pop()()
    assert done() == 16, "what was called soon before the slice was over is of the same turn"
    later.pop()()
    assert done() == 32
    walk.flush()
    assert done() == 40
    later.pop()()
    assert not later


@pytest.mark.parametrize(("hurry", "done"), [(1, 10), (100_000, 1)])
def test_the_slice_of_a_walk_is_so_many_times_shorter_where_more_comes_than_is_handled(hurry: int, done: int) -> None:
    class Slow(FakeTransport):
        def write(self, data: bytes | bytearray | memoryview) -> None:
            time.sleep(0.002)
            super().write(data)

    later: list[Callable[[], None]] = []
    walk = Fanout(later.append, no_close, 1 << 20, NO_LIMIT, slice_ms=100_000)
    walk.hurry = hurry
    transports = []
    for number in range(10):
        connection, _ = open_connection(walk, number)
        transports.append(Slow())
        connection.attach_transport(transports[-1], -1)
        connection.send_control(frame(1, 1))
    walk.flush()
    assert sum(1 for transport in transports if transport.sent) == done


def test_a_read_that_takes_long_is_sent_in_parts() -> None:
    later: list[Callable[[], None]] = []
    walk, transports = unfinished(later)
    walk.midread = True
    began = time.monotonic()
    while not transports[0].sent:
        later.pop()()
        assert time.monotonic() - began < 10
    assert time.monotonic() - began > 0.19
    while later:
        later.pop()()
    assert all(transport.sent for transport in transports)
    walk.midread = False
    walk.flush()
    # The next read has as long again.
    walk, transports = unfinished(later)
    walk.midread = True
    later.pop()()
    assert not any(transport.sent for transport in transports)


def test_while_a_read_is_half_handled_nothing_is_sent() -> None:
    later: list[Callable[[], None]] = []
    walk, transports = unfinished(later)
    walk.midread = True
    for _ in range(3):
        later.pop()()
        assert not any(transport.sent for transport in transports)
    walk.midread = False
    while later:
        later.pop()()
    assert all(transport.sent for transport in transports)


def bulky(later: list[Callable[[], None]], slow: int) -> tuple[Fanout, list[tuple[Connection, FakeTransport]]]:
    """Return a walk whose slices are over at once, and connections that have much to send."""
    walk = Fanout(later.append, no_close, 1 << 20, NO_LIMIT, slice_ms=0)
    connections = []
    for number in range(slow):
        connection, transport = open_connection(walk, number)
        connection.attach_transport(transport, -1)
        connection.send_control(frame(number, 65_536))
        connections.append((connection, transport))
    return walk, connections


def test_a_short_message_goes_out_before_the_rest_of_many_long_ones() -> None:
    later: list[Callable[[], None]] = []
    walk, slow = bulky(later, 15)
    walk.flush()
    assert [bool(transport.sent) for _, transport in slow] == [True] + [False] * 14, "a slice of bulk is short"
    quick, transport = open_connection(walk, 99)
    quick.attach_transport(transport, -1)
    later.pop()()  # the turn that had its slice
    quick.send_control(frame(1, 10))
    later.pop()()
    assert bytes(transport.sent) == frame(1, 10)
    assert sum(1 for _, each in slow if each.sent) == 2
    # What one of those who wait gets meanwhile stays behind what it has.
    slow[-1][0].send_control(frame(2, 10))
    while later:
        later.pop()()
    for number, (_, each) in enumerate(slow):
        assert bytes(each.sent) == frame(number, 65_536) + (frame(2, 10) if number == 14 else b"")


def test_those_who_have_bytes_queued_already_wait_for_the_others() -> None:
    later: list[Callable[[], None]] = []
    walk = Fanout(later.append, no_close, 1 << 20, NO_LIMIT, slice_ms=0)
    order: list[int] = []

    class Noting(FakeTransport):
        number = 0

        def write(self, data: bytes | bytearray | memoryview) -> None:
            order.append(self.number)
            super().write(data)

    for number in range(10):
        connection, _ = open_connection(walk, number)
        transport = Noting()
        transport.number = number
        transport.queued = 1000 if number < 5 else 0
        connection.attach_transport(transport, -1)
        connection.send_control(frame(1, 10))
    while later:
        later.pop()()
    assert order == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]


def test_bulk_goes_out_although_there_are_always_short_messages_to_send() -> None:
    later: list[Callable[[], None]] = []
    walk, slow = bulky(later, 20)
    quick = []
    for number in range(100, 300):
        connection, transport = open_connection(walk, number)
        connection.attach_transport(transport, -1)
        quick.append(connection)
    for _ in range(60):
        for connection in quick:
            connection.send_control(frame(1, 10))  # more than one slice is enough for
        later.pop()()
    assert later, "there was a turn without short messages"
    assert all(transport.sent for _, transport in slow)
