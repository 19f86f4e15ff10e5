"""A message to many is delivered in slices of time: what happens in between changes nothing for anybody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from freeim._core import Connection, Message
from tests.core.test_router import Desk

Rest = Callable[[], Any] | None


@pytest.fixture
def desk() -> Desk:
    """Each slice reaches one client."""
    return Desk(slice_ms=0)


def say(desk: Desk, text: bytes) -> Rest:
    """A message to everybody comes."""
    return desk.router.route(Message.channel_message(b"0", None, text))


def slices(rest: Rest) -> Iterator[int]:
    """Go on with a message, slice by slice."""
    count = 0
    while rest is not None:
        rest = rest()
        yield (count := count + 1)


def finish(rest: Rest) -> int:
    """Return in how many slices the rest was delivered."""
    return sum(1 for _ in slices(rest))


def almost_open(desk: Desk, client: bytes) -> Connection:
    """Return a connection that waits for Redis to count it, and for nothing else."""
    connection = desk.begin(client)
    desk.router.members(connection.client, [])
    return connection


def open_now(desk: Desk, connection: Connection) -> None:
    desk.router.confirm(connection)
    connection.attach_transport(desk.wires[connection], -1)


def test_one_slice_reaches_one_client_and_all_of_them_reach_everybody(desk: Desk) -> None:
    connections = [desk.connect(client, b"room") for client in (b"1", b"2", b"3")]
    for number, channel in enumerate((None, b"room")):
        rest = desk.router.route(Message.channel_message(b"0", channel, b"hello"))
        for reached, _ in enumerate(slices(rest), 2):
            assert [len(desk.got(each)) for each in connections].count(number + 1) == reached
        assert [desk.got(each) for each in connections] == [[b"hello"] * (number + 1)] * 3


def test_who_waits_when_the_message_comes_and_no_more_when_its_turn_comes_gets_it_once(desk: Desk) -> None:
    desk.connect(b"1")
    waiting = almost_open(desk, b"2")
    rest = say(desk, b"hello")
    open_now(desk, waiting)
    assert desk.got(waiting) == [b"hello"]
    assert finish(rest) == 1
    assert desk.got(waiting) == [b"hello"]


def test_who_still_waits_when_its_turn_comes_gets_it_once(desk: Desk) -> None:
    desk.connect(b"1")
    waiting = almost_open(desk, b"2")
    assert finish(say(desk, b"hello")) == 1
    open_now(desk, waiting)
    assert desk.got(waiting) == [b"hello"]


@pytest.mark.parametrize("gap", [True, False])
def test_before_anybody_begins_to_wait_everybody_gets_what_came_before(desk: Desk, gap: bool) -> None:
    connections = [desk.connect(client) for client in (b"1", b"2", b"3")]
    rest = say(desk, b"hello")
    if gap:
        desk.router.hold_all()
    else:
        desk.router.invalidate(b"3")
    assert [desk.got(each) for each in connections] == [[b"hello"]] * 3
    assert finish(rest) == 1, "nothing was left"
    finish(say(desk, b"while some wait"))
    for each in connections:
        if each.client.reading:
            desk.router.members(each.client, [])
    assert [desk.got(each) for each in connections] == [[b"hello", b"while some wait"]] * 3


def test_who_waited_twice_gets_it_once(desk: Desk) -> None:
    desk.connect(b"1")
    waiting = almost_open(desk, b"2")
    rest = say(desk, b"hello")
    open_now(desk, waiting)
    desk.router.hold_all()
    finish(rest)
    desk.router.members(waiting.client, [])
    assert desk.got(waiting) == [b"hello"]


def test_a_message_to_many_receivers_is_delivered_in_their_order_with_a_receipt_for_each(desk: Desk) -> None:
    connections = {client: desk.connect(client) for client in (b"1", b"2", b"3", b"4")}
    waiting = almost_open(desk, b"5")
    receivers = [b"1", b"99", b"2", b"3", b"4", b"5", b"6", b"1"]
    rest = desk.router.route(Message.direct(b"7", receivers, b"hello", True))
    assert desk.receipts == [(b"hello", b"1", True)]
    going = connections.pop(b"3")
    going.detach_transport()
    desk.router.detach(going)
    late = almost_open(desk, b"6")
    open_now(desk, waiting)
    finish(rest)
    assert desk.receipts == [
        (b"hello", b"1", True),
        (b"hello", b"5", True),  # when its waiting ended
        *((b"hello", client, client in (b"1", b"2", b"4")) for client in (b"99", b"2", b"3", b"4", b"6", b"1")),
    ]
    assert desk.got(connections[b"1"]) == [b"hello"] * 2
    assert all(desk.got(connections[each]) == [b"hello"] for each in (b"2", b"4"))
    assert desk.got(waiting) == [b"hello"]
    open_now(desk, late)
    assert desk.got(late) == []


def test_who_comes_and_who_goes_in_between_gets_nothing(desk: Desk) -> None:
    desk.connect(b"1")
    going = desk.connect(b"2")
    rest = say(desk, b"hello")
    coming = desk.connect(b"3")
    going.detach_transport()
    desk.router.detach(going)
    back = desk.connect(b"2")
    finish(rest)
    assert desk.got(coming) == desk.got(back) == desk.got(going) == []


def test_the_next_message_comes_behind_the_rest_of_the_last_one(desk: Desk) -> None:
    connections = [desk.connect(client) for client in (b"1", b"2", b"3")]
    say(desk, b"one")
    rest = say(desk, b"two")
    desk.router.finish()
    assert rest is not None
    assert [desk.got(each) for each in connections] == [[b"one", b"two"]] * 3


def test_nothing_is_left_where_nobody_is() -> None:
    desk = Desk(slice_ms=0)
    assert say(desk, b"hello") is None
    desk.connect(b"1")
    assert say(desk, b"hello") is None
