"""Slow receivers: what a cut leaves of a queue, and who is cut when too much waits in all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeim._core import Backlog, Connection, Fanout, Queue
from tests.core.fakes import CLOSE, NO_LIMIT, FakeTransport, ends_of, never, open_connection, text

# ---- the queue of one connection

SIZES = st.one_of(st.sampled_from([0, 1, 2, 125, 126, 127, 65535, 65536]), st.integers(0, 400))
STEPS = st.lists(st.one_of(SIZES.map(lambda size: ("add", size)), SIZES.map(lambda size: ("take", size))), max_size=40)


@given(STEPS)
def test_what_is_kept_of_a_queue_ends_the_frame_that_is_begun_and_no_other(steps: list[tuple[str, int]]) -> None:
    queue = Queue(Backlog())
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
    queue = Queue(Backlog())
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


@pytest.mark.parametrize("size", [-1, 4])
def test_no_more_is_taken_from_a_queue_than_is_in_it(size: int) -> None:
    queue = Queue(Backlog())
    queue.add(b"\x81\x01x")
    with pytest.raises(ValueError, match="not in the queue"):
        queue.take(size)


# ---- the memory of all queues

FRAMES = [text(0, size) for size in (1, 100, 101, 2000, 2001)]
FRAME, REFERENCE = 150, 16
"""Bytes for which a frame counts besides its own, and for which its place in a queue does."""


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(0, 2), st.sampled_from(FRAMES)),
            st.tuples(st.just("take"), st.integers(0, 2), st.integers(0, 5000)),
            st.tuples(st.sampled_from(["drop", "clear"]), st.integers(0, 2), st.none()),
        ),
        max_size=60,
    )
)
def test_a_frame_counts_once_however_many_queues_it_is_in(steps: list[tuple[str, int, Any]]) -> None:
    walk = Fanout(never, lambda *_: None, NO_LIMIT, NO_LIMIT)
    queues = [Queue(walk.backlog) for _ in range(3)]
    model: list[list[bytes]] = [[], [], []]
    begun = [0, 0, 0]
    for what, number, argument in steps:
        queue, frames = queues[number], model[number]
        if what == "add":
            queue.add(argument)
            frames.append(argument)
        elif what == "take":
            size = min(argument, len(queue))
            queue.take(size)
            begun[number] += size
            while frames and begun[number] >= len(frames[0]):
                begun[number] -= len(frames.pop(0))
        elif what == "drop":
            queue.drop()
            del frames[1 if begun[number] else 0 :]
        else:
            queue.clear()
            frames.clear()
            begun[number] = 0
        held = [frame for frames in model for frame in frames]
        assert walk.memory == sum(FRAME + len(frame) for frame in set(held)) + REFERENCE * len(held)
        assert [len(queue) for queue in queues] == [
            sum(map(len, frames)) - sent for frames, sent in zip(model, begun, strict=True)
        ]


# ---- who is cut, on transports that cannot drop anything


class Backlogs:
    """Connections with so many bytes in their transports each, counted one after another."""

    def __init__(self, limit: int, call_soon: Callable[[Callable[[], None]], object] = never, **more: float) -> None:
        self.cut: list[int] = []
        self.walk = Fanout(call_soon, self._too_slow, NO_LIMIT, limit, **more)
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


def test_thousands_are_cut_in_slices_of_time() -> None:
    later: list[Callable[[], None]] = []
    backlogs = Backlogs(10_000, later.append, slice_ms=0)
    for _ in range(1000):
        backlogs.add(10)
    assert not backlogs.cut
    backlogs.add(10)
    assert 0 < (first := len(backlogs.cut)) < 100
    backlogs.add(10)
    assert len(backlogs.cut) == first, "the same turn of the loop has had its slice"
    slices = 0
    while backlogs.walk.waiting > 7500:
        before = len(backlogs.cut)
        later.pop()()
        assert before < len(backlogs.cut) < before + 100
        slices += 1
    assert slices > 1
    assert len(backlogs.cut) == 252
    backlogs.grow(backlogs.add(2000), 3000)
    assert len(backlogs.cut) > 252, "it is relieved again when it is due again"


def test_an_error_while_connections_are_cut_does_not_switch_the_limit_off() -> None:
    cut: list[int] = []

    def too_slow(connection: Connection, *_: object) -> None:
        cut.append(connection.number)
        if len(cut) == 1:
            raise ZeroDivisionError("a defect")
        connection.begin_close(CLOSE, 4002)

    walk = Fanout(never, too_slow, NO_LIMIT, 1000)
    connections = []
    for number in range(3):
        connection, transport = open_connection(walk, number)
        connection.attach_transport(transport, -1)
        connection.set_blocked(True)
        transport.queued = 600
        connections.append(connection)
    connections[0].send_control(text(0, 1))
    connections[0].flush_now()
    connections[1].send_control(text(0, 1))
    with pytest.raises(ZeroDivisionError):
        connections[1].flush_now()
    connections[2].send_control(text(0, 1))
    connections[2].flush_now()
    assert len(cut) > 1


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
