"""Slow receivers: what a cut leaves of a queue, and who is cut when too much waits in all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeim._core import Connection, Fanout, Queue
from tests.core.fakes import CLOSE, NO_LIMIT, FakeTransport, ends_of, never, open_connection, text

# ---- the queue of one connection

SIZES = st.one_of(st.sampled_from([0, 1, 2, 125, 126, 127, 65535, 65536]), st.integers(0, 400))
STEPS = st.lists(st.one_of(SIZES.map(lambda size: ("add", size)), SIZES.map(lambda size: ("take", size))), max_size=40)


@given(STEPS)
def test_what_is_kept_of_a_queue_ends_the_frame_that_is_begun_and_no_other(steps: list[tuple[str, int]]) -> None:
    queue = Queue()
    frames: list[bytes] = []
    taken = 0
    for number, (what, size) in enumerate(steps):
        if what == "add":
            frames.append(text(number, size))
            queue.add(frames[-1])
        else:
            size = min(size, len(queue))
            queue.take(size)
            taken += size
        assert bytes(queue) == b"".join(frames)[taken:]
    queue.drop()
    queue.add(CLOSE)
    kept = next(end for end in ends_of(frames) if end >= taken)
    assert bytes(queue) == b"".join(frames)[taken:kept] + CLOSE


@given(STEPS, STEPS)
def test_a_queue_that_was_dropped_can_be_filled_and_dropped_again(
    first: list[tuple[str, int]], second: list[tuple[str, int]]
) -> None:
    queue = Queue()
    for steps in (first, second):
        for number, (what, size) in enumerate(steps):
            if what == "add":
                queue.add(text(number, size))
            else:
                queue.take(min(size, len(queue)))
        queue.drop()
        begun = bytes(queue)
    queue.take(len(begun))
    queue.add(CLOSE)
    queue.take(1)
    queue.drop()
    assert bytes(queue) == CLOSE[1:]


@given(st.binary(max_size=40), st.data())
def test_bytes_that_are_no_frames_harm_nothing(data: bytes, draw: st.DataObject) -> None:
    queue = Queue()
    queue.add(data)
    while len(queue):
        queue.take(draw.draw(st.integers(1, len(queue))))
        queue.drop()
        assert bytes(queue) in data


def test_a_frame_that_is_longer_than_the_queue_ends_with_it() -> None:
    queue = Queue()
    queue.add(text(0, 100)[:50])
    queue.take(1)
    queue.add(text(0, 10))
    queue.drop()
    assert bytes(queue) == text(0, 100)[1:50]


@pytest.mark.parametrize("size", [-1, 4])
def test_no_more_is_taken_from_a_queue_than_is_in_it(size: int) -> None:
    queue = Queue()
    queue.add(b"\x81\x01x")
    with pytest.raises(ValueError, match="not in the queue"):
        queue.take(size)


# ---- who is cut, on transports that cannot drop anything


class Backlogs:
    """Connections with so many bytes in their transports each, counted one after another."""

    def __init__(self, limit: int) -> None:
        self.cut: list[int] = []
        self.walk = Fanout(never, self._too_slow, NO_LIMIT, limit)
        self.all: dict[int, tuple[Connection, FakeTransport]] = {}

    def _too_slow(self, connection: Connection, _waiting: int, of_node: bool) -> None:
        assert of_node
        self.cut.append(connection.number)
        assert connection.begin_close(CLOSE, 4002)

    def add(self, queued: int) -> Connection:
        connection, transport = open_connection(self.walk, len(self.all))
        connection.attach_transport(transport, -1)
        self.all[connection.number] = connection, transport
        connection.set_blocked(True)
        self.grow(connection, queued)
        return connection

    def grow(self, connection: Connection, queued: int) -> None:
        """The transport is written to, and holds so much then."""
        self.all[connection.number][1].queued = queued
        connection.send_control(text(0, 1))
        connection.flush_now()

    @property
    def aborted(self) -> list[int]:
        return [number for number, (_, transport) in self.all.items() if transport.aborted]


@given(st.lists(st.integers(1, 1000), max_size=50), st.integers(1, 5000))
def test_nobody_is_cut_while_one_with_more_waiting_is_not(sizes: list[int], limit: int) -> None:
    backlogs = Backlogs(limit)
    left: dict[int, int] = {}
    for size in sizes:
        before = list(backlogs.cut)
        left[backlogs.add(size).number] = size
        now_cut = backlogs.cut[len(before) :]
        if sum(left.values()) <= limit:
            assert now_cut == []
            continue
        gone = [left.pop(number) for number in now_cut]
        assert gone == sorted(gone, reverse=True)
        assert min(gone) >= max(left.values(), default=0)
        assert sum(left.values()) == backlogs.walk.waiting <= limit - limit // 4
        assert sum(left.values()) + gone[-1] > limit - limit // 4, "one more than was needed"
    assert backlogs.aborted == sorted(backlogs.cut)
    assert backlogs.walk.too_slow == len(backlogs.cut)


def test_a_connection_that_closes_already_is_cut_in_its_turn_and_not_reported() -> None:
    backlogs = Backlogs(1000)
    closing, other = backlogs.add(500), backlogs.add(400)
    assert closing.begin_close(CLOSE, 1012)
    backlogs.add(300)
    assert backlogs.aborted == [closing.number]
    assert backlogs.cut == []
    assert backlogs.walk.too_slow == 0
    assert not other.closing
    assert backlogs.walk.waiting == 700


def test_nothing_is_written_to_a_connection_that_was_cut() -> None:
    backlogs = Backlogs(1000)
    connection = backlogs.add(900)
    transport = backlogs.all[connection.number][1]
    connection.send_control(text(0, 1))  # waits for the walk
    transport.sent.clear()
    backlogs.add(200)
    backlogs.walk.flush()
    assert backlogs.aborted == [connection.number]
    assert not transport.sent


def test_what_a_transport_of_asyncio_holds_is_forgotten_when_it_has_sent_all_and_when_it_ends() -> None:
    backlogs = Backlogs(1000)
    drained, ended = backlogs.add(300), backlogs.add(400)
    backlogs.grow(drained, 350)
    assert backlogs.walk.waiting == 750
    backlogs.all[drained.number][1].queued = 0
    drained.set_blocked(False)
    assert backlogs.walk.waiting == 400
    ended.detach_transport()
    assert backlogs.walk.waiting == 0


def test_what_waits_at_the_101_counts() -> None:
    backlogs = Backlogs(1000)
    connection, transport = open_connection(backlogs.walk, 1)
    transport.queued = 129
    connection.attach_transport(transport, -1)
    assert backlogs.walk.waiting == 129
