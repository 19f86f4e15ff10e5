"""The position of a node against a model of a stream that is cut, trimmed and lost; and any bytes as ids."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from freeim.node.stream_position import Entry, Outcome, Position, StreamId, read_entry, read_id, split_heard


class PositionMachine(RuleBasedStateMachine):
    """A Redis, one node, and the wire between them."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = 1000
        self.last_id: StreamId = (0, 0)
        self.sent = 0
        self.stream: list[tuple[Entry, int]] = []
        """Entries, each with the number that it has among all that were ever published."""
        self.all = 0
        self.position = Position()
        self.behind = True
        self.got: list[int] = []
        self.lost: set[int] = set()
        """What was trimmed before it was read, or was lost by Redis."""
        self.trimmed: set[int] = set()
        self.wire: list[tuple[Entry, int]] = []
        self.connected = False

    def hand_on(self, entry: tuple[Entry, int]) -> None:
        self.got.append(entry[1])

    @rule(later=st.integers(0, 2), many=st.integers(1, 5))
    def publish(self, later: int, many: int) -> None:
        for _ in range(many):
            self.clock += later
            ms = max(self.clock, self.last_id[0])
            self.last_id = (ms, self.last_id[1] + 1 if ms == self.last_id[0] else 0)
            self.sent += 1
            self.all += 1
            entry = Entry(self.last_id, self.sent, b"x"), self.all
            self.stream.append(entry)
            if self.connected:
                self.wire.append(entry)

    @precondition(lambda self: self.connected and self.wire)
    @rule(times=st.integers(1, 3))
    def hear(self, times: int) -> None:
        heard = self.wire.pop(0)
        for _ in range(times):  # twice: as where two connections of one node heard it
            if self.behind:
                return
            outcome = self.position.hear(heard[0])
            if outcome is Outcome.NEXT:
                self.hand_on(heard)
            elif outcome is Outcome.GAP:
                self.wire.insert(0, heard)  # what is heard then is left to the stream
                self.read()

    @rule()
    def cut(self) -> None:
        self.connected = False
        self.behind = True
        self.drop_wire()

    @precondition(lambda self: not self.connected)
    @rule()
    def connect(self) -> None:
        self.connected = True
        self.read()

    def read(self) -> None:
        """Read the stream to its end. What is on the wire by then is in it, where it was not trimmed."""
        self.drop_wire()
        self.position.meet(self.stream[-1][0].id if self.stream else None)
        for entry in [each for each in self.stream if each[0].id > self.position.id]:
            assert self.position.read_next(entry[0])
            self.hand_on(entry)
        self.behind = False

    def drop_wire(self) -> None:
        kept = {number for _, number in self.stream}
        self.trimmed |= {number for _, number in self.wire} - kept - set(self.got)
        self.wire.clear()

    @rule(keep=st.integers(1, 4))
    def trim(self, keep: int) -> None:
        gone, self.stream = self.stream[:-keep], self.stream[-keep:]
        self.trimmed |= {number for _, number in gone} - set(self.got) - set(self.on_its_way)

    @property
    def on_its_way(self) -> list[int]:
        return [] if self.behind else [number for _, number in self.wire]

    @rule()
    def crash(self) -> None:
        """The node is killed, and starts at the position that it has written last."""
        self.cut()
        written = Position.read(f"{self.position.id_text} {self.position.number}".encode())
        written.lost = self.position.lost
        self.position = written

    @rule()
    def redis_comes_back_empty(self) -> None:
        self.cut()
        self.lost |= {number for _, number in self.stream} - set(self.got)
        self.stream.clear()
        self.clock += 1  # it takes longer than a millisecond
        self.last_id, self.sent = (0, 0), 0

    @invariant()
    def each_came_once_in_order(self) -> None:
        assert self.got == sorted(set(self.got))

    @invariant()
    def nothing_is_missing_but_what_was_trimmed_or_lost_by_redis(self) -> None:
        if not self.behind and not self.wire:
            assert set(self.got) | self.trimmed | self.lost == set(range(1, self.all + 1))

    @invariant()
    def what_was_trimmed_is_counted_exactly(self) -> None:
        if not self.behind and not self.wire and not self.lost and self.sent == self.all:
            assert self.position.lost == len(self.trimmed)


PositionMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=50)
TestThePositionAgreesWithItsModelWhateverHappens = PositionMachine.TestCase


def test_with_a_clock_that_went_back_nothing_new_is_taken_for_old() -> None:
    position = Position((1000, 0), 5)
    assert position.meet((7, 3))
    assert position.hear(Entry((7, 4), 1, b"")) is Outcome.GAP
    assert position.read_next(Entry((7, 4), 1, b""))
    assert position.hear(Entry((7, 5), 2, b"")) is Outcome.NEXT
    assert position.lost == 0


def test_an_id_that_somebody_made_up_is_corrected_by_the_stream() -> None:
    position = Position((1000, 0), 5)
    assert position.hear(Entry((2**64 - 1, 0), 6, b"")) is Outcome.NEXT
    assert position.hear(Entry((1001, 0), 6, b"")) is Outcome.OLD
    assert position.hear(Entry((1002, 0), 7, b"")) is Outcome.GAP
    assert position.meet((1002, 0))


HEADS = st.one_of(
    st.binary(max_size=60),
    st.builds(
        lambda ms, seq, number, rest: b"%d-%d %d %b" % (ms, seq, number, rest),
        *(st.integers(-1, 2**70), st.integers(-1, 2**70), st.integers(-1, 2**70), st.binary(max_size=20)),
    ),
)


@given(HEADS)
@settings(max_examples=2000)
def test_whatever_stands_for_an_id_on_the_wire_is_read_or_refused(rest: bytes) -> None:
    payload = b"__FreeIM__(Stream)" + rest
    entry = split_heard(payload)
    if entry is not None:
        assert entry.payload is not None
        (ms, sequence), number = entry.id, entry.number
        assert max(ms, sequence) < 2**64
        words = rest[: len(rest) - len(entry.payload)].split(b" ")
        assert [int(part) for part in words[0].split(b"-")] == [ms, sequence]
        assert int(words[1]) == number
        Position().hear(entry)


@given(st.one_of(st.none(), st.binary(max_size=60), HEADS))
def test_whatever_is_kept_as_position_is_read_or_is_the_beginning(raw: bytes | None) -> None:
    position = Position.read(raw)
    assert max(position.id) < 2**64
    assert read_id(position.id_text.encode()) == position.id


@given(
    st.one_of(st.binary(max_size=40), st.none(), st.integers()),
    st.lists(st.one_of(st.sampled_from([b"n", b"m", b"5"]), st.binary(max_size=10), st.integers()), max_size=6),
)
def test_whatever_somebody_put_into_the_stream_is_read_or_refused(place: object, fields: list[object]) -> None:
    entry = read_entry([place, fields])
    if entry is not None and entry.payload is not None:
        assert len(fields) == 4


@pytest.mark.parametrize(
    "payload",
    [
        b"__FreeIM__(Stream)",
        b"__FreeIM__(Stream)1-1 1",
        b"__FreeIM__(Stream)1-1  x",
        b"__FreeIM__(Stream)1 1 x",
        b"__FreeIM__(Stream)18446744073709551616-0 1 x",
        b"__FreeIM__(Stream)-1-0 1 x",
        "__FreeIM__(Stream)١-0 1 x".encode(),
    ],
)
def test_what_is_no_id_is_none(payload: bytes) -> None:
    assert split_heard(payload) is None
