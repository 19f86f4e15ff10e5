"""Slow receivers on the core's own sockets: what is counted, who is cut, and what those still get."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Iterator

import pytest

from freeim._core import Connection, Fanout, Poller
from tests.core.fakes import CLOSE, NO_LIMIT, ends_of, text
from tests.node.harness import until


class Owner(asyncio.Protocol):
    """What a terminal does for its connection, and the far end of the socket."""

    def __init__(self, connection: Connection, far: socket.socket, answer: bytes) -> None:
        self.connection = connection
        self.far = far
        self.answer = answer
        self.got = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self.answer)  # type: ignore[attr-defined]
        self.connection.attach_transport(transport, transport.fileno())  # type: ignore[arg-type, attr-defined]

    def pause_writing(self) -> None:
        self.connection.set_blocked(True)

    def resume_writing(self) -> None:
        self.connection.set_blocked(False)

    def connection_lost(self, _exc: Exception | None) -> None:
        self.connection.detach_transport()

    @property
    def waiting(self) -> int:
        transport = self.connection.transport
        return 0 if transport is None else int(transport.get_write_buffer_size())

    def read(self, size: int) -> None:
        """Read at most so many bytes, if there are any."""
        with contextlib.suppress(BlockingIOError):
            self.got += self.far.recv(size)


class Sockets:
    """Connections under the core's epoll, with small buffers in the kernel.

    Args:
        queue_limit: For one receiver.
        node_queue_limit: For all.
    """

    def __init__(self, queue_limit: int, node_queue_limit: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.cut: list[tuple[int, int, bool]] = []
        # A slice in which all is written at once, also what is large.
        self.walk = Fanout(self.loop.call_soon, self._too_slow, queue_limit, node_queue_limit, slice_ms=10_000)
        self.owners: list[Owner] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self._listener.setblocking(False)
        self._poller = Poller(self.loop, self.walk.backlog)

    def _too_slow(self, connection: Connection, waiting: int, of_node: bool) -> None:
        self.cut.append((connection.number, waiting, of_node))
        assert connection.begin_close(CLOSE, 4002)

    def connect(self, answer: bytes = b"") -> Owner:
        """Return one that has answered its request."""
        far = socket.socket()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        far.connect(self._listener.getsockname())
        far.setblocking(False)
        owner = Owner(Connection(self.walk, len(self.owners), "{}", None), far, answer)
        self._poller.accept(self._listener.fileno(), lambda: owner)
        self.owners.append(owner)
        return owner

    def check(self) -> None:
        """What is counted is what waits, to the byte."""
        assert self.walk.waiting == sum(owner.waiting for owner in self.owners)

    async def read_to(self, owner: Owner, last: bytes) -> None:
        """Read up to bytes that must be the last ones."""
        async with asyncio.timeout(20):
            while not owner.got.endswith(last):
                owner.read(65536)
                await asyncio.sleep(0 if owner.waiting else 0.001)
        assert owner.waiting == 0

    def close(self) -> None:
        self._poller.close()
        self._listener.close()
        for owner in self.owners:
            owner.far.close()


@contextlib.contextmanager
def sockets(queue_limit: int = NO_LIMIT, node_queue_limit: int = NO_LIMIT) -> Iterator[Sockets]:
    stand = Sockets(queue_limit, node_queue_limit)
    try:
        yield stand
    finally:
        stand.close()


@pytest.mark.parametrize("seed", range(12))
async def test_a_receiver_that_is_cut_gets_whole_frames_in_order_and_then_its_close_frame(seed: int) -> None:
    dice = random.Random(seed)
    with sockets(queue_limit=30_000) as stand:
        owner = stand.connect()
        sent: list[bytes] = []
        while not owner.connection.closing:
            for _ in range(dice.choice([1, 1, 3, 20])):
                sent.append(text(len(sent), dice.choice([0, 1, 125, 126, 1000, 5000])))
                owner.connection.send_control(sent[-1])
            stand.walk.flush()
            if dice.random() < 0.5:
                owner.read(dice.choice([1, 100, 3000]))
                await asyncio.sleep(0)
            stand.check()
            assert owner.waiting < 130_000
        assert len(stand.cut) == stand.walk.too_slow == 1
        assert stand.cut[0][1] > 1000
        assert not stand.cut[0][2]
        stand.walk.flush()
        assert owner.waiting < 5010 + len(CLOSE), "no more is left than one frame and the Close frame"
        stand.check()
        owner.connection.send_control(b"nothing follows")
        stand.walk.flush()
        await stand.read_to(owner, CLOSE)
        assert stand.walk.waiting == 0
        stream = bytes(owner.got).removesuffix(CLOSE)
        assert b"".join(sent).startswith(stream)
        assert len(stream) in ends_of(sent)


async def test_what_waits_of_the_answer_to_a_request_is_no_frame_and_comes_before_the_close_frame() -> None:
    with sockets(queue_limit=1) as stand:
        owner = stand.connect(b"HTTP" * 100_000)
        while owner.waiting > 200_000:
            owner.read(65536)
            await asyncio.sleep(0)
        owner.connection.send_control(text(0, 1000))
        stand.walk.flush()
        stand.walk.flush()
        assert owner.connection.closing
        stand.check()
        await stand.read_to(owner, CLOSE)
        assert bytes(owner.got) == b"HTTP" * 100_000 + CLOSE


async def test_frames_that_were_sent_together_are_told_apart_where_the_kernel_took_some_of_them() -> None:
    with sockets(queue_limit=1) as stand:
        owner = stand.connect()
        frames = [text(number, 1000) for number in range(200)]
        for frame in frames:
            owner.connection.send_control(frame)
        stand.walk.flush()
        assert owner.waiting > 50_000
        owner.connection.send_control(frames[0])
        stand.walk.flush()
        stand.walk.flush()
        assert owner.waiting < 1004 + len(CLOSE)
        await stand.read_to(owner, CLOSE)
        assert len(owner.got) - len(CLOSE) in ends_of(frames)


@pytest.mark.parametrize("seed", range(4))
async def test_what_waits_is_counted_to_the_byte_however_connections_read_and_end(seed: int) -> None:
    dice = random.Random(seed)
    with sockets(queue_limit=100_000) as stand:
        owners = [stand.connect() for _ in range(8)]
        most = 0
        for _ in range(600):
            owner = dice.choice(owners)
            owner.connection.send_control(text(0, dice.choice([10, 3000, 20_000])))
            if dice.random() < 0.5:
                stand.walk.flush()
            if dice.random() < 0.7:
                dice.choice(owners).read(dice.choice([10, 20_000, 100_000]))
            if dice.random() < 0.3:
                await asyncio.sleep(0)
            if dice.random() < 0.01:
                gone = dice.choice(owners)
                dice.choice([gone.far.close, gone.connection.transport.abort])()
                owners.remove(gone)
                owners.append(stand.connect())
            stand.check()
            most = max(most, stand.walk.waiting)
        assert most > 100_000, "nothing was tested"
        for owner in owners[4:]:
            owner.far.close()
        async with asyncio.timeout(20):
            while stand.walk.waiting:
                for owner in owners[:4]:
                    owner.read(65536)
                await asyncio.sleep(0.001)
                stand.check()


async def test_the_largest_backlogs_are_cut_and_their_memory_is_free_before_the_walk_goes_on() -> None:
    limit = 1_000_000
    with sockets(node_queue_limit=limit) as stand:
        small, middle, large, growing = (stand.connect() for _ in range(4))
        sent: dict[Owner, list[bytes]] = {owner: [] for owner in stand.owners}

        def send(owner: Owner, count: int) -> None:
            for _ in range(count):
                sent[owner].append(text(0, 10_000))
                owner.connection.send_control(sent[owner][-1])
                stand.walk.flush()

        send(small, 5)
        send(middle, 25)
        send(large, 40)
        assert stand.cut == []
        while not stand.cut:
            waiting = large.waiting
            send(growing, 1)
            assert sum(owner.waiting for owner in stand.owners) <= limit
        assert stand.cut == [(large.connection.number, waiting, True)]
        assert stand.walk.too_slow == 1
        assert stand.walk.waiting <= limit * 3 / 4
        stand.check()
        send(growing, 1)
        assert large.waiting < 10_004 + len(CLOSE)
        for owner in stand.owners:
            await stand.read_to(owner, CLOSE if owner is large else b"".join(sent[owner]))
        assert len(large.got) - len(CLOSE) in ends_of(sent[large])
        assert stand.walk.waiting == 0


async def test_what_a_connection_that_is_cut_was_still_to_be_sent_is_dropped_with_its_queue() -> None:
    with sockets(node_queue_limit=1_000_000) as stand:
        large, growing = stand.connect(), stand.connect()
        frames = [text(0, 10_000) for _ in range(60)]
        for frame in frames:
            large.connection.send_control(frame)
        stand.walk.flush()
        large.connection.send_control(text(0, 50))  # waits for the walk
        while not stand.cut:
            growing.connection.send_control(text(0, 10_000))
            growing.connection.flush_now()
            assert growing.waiting < 500_000
        assert stand.cut[0][0] == large.connection.number
        stand.walk.flush()
        await stand.read_to(large, CLOSE)
        assert len(large.got) - len(CLOSE) in ends_of(frames), "a message arrived although one before it did not"


async def test_one_message_that_is_larger_than_the_nodes_limit_ends_its_connection_and_no_other() -> None:
    with sockets(node_queue_limit=1_000_000) as stand:
        small, large = stand.connect(), stand.connect()
        small.connection.send_control(text(0, 100_000))
        large.connection.send_control(text(0, 5_000_000))
        stand.walk.flush()
        assert [number for number, _, _ in stand.cut] == [large.connection.number]
        assert large.waiting == 0, "a Close frame behind the rest of it would keep it"
        assert 0 < stand.walk.waiting == small.waiting
        await until(lambda: large.connection.transport is None)
        assert not small.connection.closing
        await stand.read_to(small, text(0, 100_000))
        assert stand.walk.waiting == 0


async def test_a_large_message_that_waits_for_many_takes_the_memory_of_one() -> None:
    limit = 3_000_000
    with sockets(node_queue_limit=limit) as stand:
        owners = [stand.connect() for _ in range(40)]
        frame = text(0, 2_000_000)
        for owner in owners:
            owner.connection.send_control(frame)
        stand.walk.flush()
        stand.check()
        assert stand.walk.waiting > 10 * limit
        assert len(frame) <= stand.walk.memory < len(frame) + 10_000
        assert not stand.cut
        for owner in owners[:10]:
            owner.far.close()
        for owner in owners[10:]:
            await stand.read_to(owner, frame)
        await until(lambda: stand.walk.waiting == 0)
        assert stand.walk.memory == 0, "a frame is still counted although it waits for nobody"
        assert not stand.cut


async def test_who_waits_for_what_many_wait_for_is_not_cut_for_those_who_wait_for_much_of_their_own() -> None:
    with sockets(node_queue_limit=10_000_000) as stand:
        sharers = [stand.connect() for _ in range(20)]
        frame = text(0, 2_000_000)
        for owner in sharers:
            owner.connection.send_control(frame)
        stand.walk.flush()
        while not stand.cut:
            owner = stand.connect()
            for _ in range(10):
                owner.connection.send_control(text(0, 100_000))
            stand.walk.flush()
            assert stand.walk.memory < 10_000_000
        assert len(stand.cut) < 6
        assert not any(owner.connection.closing for owner in sharers)
        assert stand.walk.memory <= 7_500_000


async def test_when_all_wait_for_the_same_the_longest_queues_are_cut() -> None:
    with sockets(node_queue_limit=3_000_000) as stand:
        owners = [stand.connect() for _ in range(6)]
        frames = [text(0, 500_000) for _ in range(8)]
        for number, frame in enumerate(frames):
            for owner in owners[: 2 if number > 2 else 6]:
                owner.connection.send_control(frame)
        stand.walk.flush()
        assert {number for number, _, _ in stand.cut} == {owner.connection.number for owner in owners[:2]}


async def test_of_many_small_frames_the_kernel_is_offered_as_many_as_one_call_takes() -> None:
    with sockets() as stand:
        owner = stand.connect()
        frames = [text(number, number % 50) for number in range(20_000)]
        for frame in frames:
            owner.connection.send_control(frame)
        stand.walk.flush()
        assert owner.waiting > 256 * 50
        await stand.read_to(owner, frames[-1])
        assert bytes(owner.got) == b"".join(frames)


async def test_when_the_poller_is_closed_nothing_more_goes_to_its_descriptors() -> None:
    with sockets() as stand:
        owner = stand.connect()
        stand.walk.flush()
        owner.connection.send_control(text(0, 100))
        stand._poller.close()
        assert owner.connection.fd == -1
        before = stand.walk.writes
        stand.walk.flush()
        assert stand.walk.writes == before
