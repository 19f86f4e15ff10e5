"""What waits is found by an index: a replay gives what a look at every message would give, and costs what it gives."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freeim._core import Connection, Message
from tests.core.test_router import CHANNELS, IDS, Desk

EVERY = 1 << 40
"""A replay looks at every message."""

MESSAGES = st.lists(
    st.tuples(
        st.sampled_from(["direct", "channel", "members", "broadcast", "force"]),
        st.sampled_from([b"0", *IDS]),
        st.lists(st.sampled_from([*IDS, b"red", b"99"]), min_size=1, max_size=4),
        st.sampled_from(CHANNELS),
        st.booleans(),
    ),
    max_size=30,
)


def message_of(kind: str, sender: bytes, to: list[bytes], channel: bytes, receipt: bool, text: bytes) -> Message:
    if kind == "direct":
        return Message.direct(sender, to, text, receipt)
    if kind == "force":
        return Message.force_offline(to[0])
    message = Message.channel_message(sender, None if kind == "broadcast" else channel, text)
    if kind == "members":
        message.members = frozenset(to)
    return message


def everything(desk: Desk) -> tuple[object, ...]:
    router = desk.router
    numbers = {connection.number: desk.got(connection) for connection in desk.wires}
    counts = router.window_size, router.replayed, router.deliveries, router.delivered
    return numbers, desk.receipts, router.away(), counts


@given(
    rounds=st.lists(st.tuples(MESSAGES, st.sampled_from(IDS), st.sets(st.sampled_from(CHANNELS))), max_size=8),
    newest=st.integers(0, 5),
    grace=st.sampled_from([None, False, True]),
)
@settings(max_examples=300)
def test_the_index_finds_what_a_look_at_every_message_finds(
    rounds: list[tuple[list[tuple[str, bytes, list[bytes], bytes, bool]], bytes, set[bytes]]],
    newest: int,
    grace: bool | None,
) -> None:
    desks = [Desk(newest=count) for count in (EVERY, newest)]
    here: dict[bytes, list[Connection]] = {}
    count = 0
    for desk in desks:
        if grace is not None:
            desk.router.begin_grace(in_two=grace)
        here.setdefault(b"1", []).append(desk.connect(b"1", b"red"))
    for messages, client_id, channels in rounds:
        for desk in desks:
            desk.router.invalidate(b"1")
        for what in messages:
            count += 1
            for desk in desks:
                desk.router.route(message_of(*what, b"%d" % count))
        if client_id in here:  # it leaves where it is here, and comes where it is not
            for desk, connection in zip(desks, here.pop(client_id), strict=True):
                desk.router.members(connection.client, sorted(channels))
                connection.detach_transport()
                desk.router.detach(connection)
        else:
            here[client_id] = [desk.connect(client_id, *sorted(channels)) for desk in desks]
        assert everything(desks[0]) == everything(desks[1])
    for desk in desks:
        desk.router.end_grace()
        for client in desk.router.hold_all():
            desk.router.members(client, [])
    assert everything(desks[0]) == everything(desks[1])
    assert desks[1].router.window_bytes == desks[1].router.window_size == 0


@pytest.mark.parametrize("newest", [0, 3, EVERY])
def test_in_the_index_too_the_oldest_go_first_and_leave_nothing_behind(newest: int) -> None:
    desk = Desk(window_limit=20_000, newest=newest)
    desk.router.begin_grace()
    kinds = ["direct", "broadcast", "channel", "force", "direct", "members"]
    for number in range(2_000):
        to = [b"%d" % (number % 7), b"twice", b"twice"]
        desk.router.route(message_of(kinds[number % 6], b"5", to, CHANNELS[number % 3], True, b"%d" % number))
        assert desk.router.window_bytes <= 20_000 + 1_000
    assert desk.router.window_bytes > 15_000
    gone = range(2_000 - desk.router.window_size)
    assert desk.router.forgotten == sum(number % 6 != 3 for number in gone)  # no forced offline
    said = [int(text) for text, receiver, _ in desk.receipts if receiver == b"twice"]
    assert said == [number for number in gone if number % 6 in (0, 4) for _ in range(2)]
    got = [int(text) for text in desk.got(desk.connect(b"twice", CHANNELS[2]))]
    kept = range(len(gone), 2_000)
    assert got == [n for n in kept for _ in range({0: 2, 1: 1, 2: 1, 4: 2, 5: 1}.get(n % 6, 0))]
    desk.router.end_grace()
    assert desk.router.window_bytes == desk.router.window_size == 0


def test_what_the_index_takes_counts_and_is_given_back_message_by_message() -> None:
    """Of two clients that wait, one began behind the index: what is before it goes one by one."""
    sizes = []
    for newest in (EVERY, 10):
        desk = Desk(newest=newest)
        first, second = desk.connect(b"1"), desk.connect(b"2")
        desk.router.invalidate(b"1")
        for number in range(50):
            desk.direct(b"0", [b"%d" % (100 + number % 20)], b"x")
        desk.router.invalidate(b"2")
        for number in range(50):
            desk.direct(b"0", [b"%d" % (200 + number % 20)], b"x")
        full = desk.router.window_bytes
        desk.router.members(first.client, [])
        sizes.append((full, desk.router.window_bytes))
        desk.router.members(second.client, [])
        assert desk.router.window_bytes == 0
    (plain, plain_half), (full, half) = sizes
    assert plain == 2 * plain_half
    # 90 messages under 40 names, and then 40 under 20: NAME_COST, TRACK_COST and PLACE_COST of _core_window.pxi.
    assert full == plain + 40 * (80 + 120) + 90 * 16
    assert half == plain_half + 20 * (80 + 120) + 40 * 16


@pytest.mark.parametrize("grace", [True, False])
def test_a_replay_costs_the_same_however_much_waits_that_does_not_concern_the_client(grace: bool) -> None:
    def took(kept: int) -> float:
        """Return the seconds of CPU that the fastest of some replays took."""
        desk = Desk()
        clients = 20
        if grace:
            desk.router.begin_grace()
        else:
            for number in range(clients):
                desk.connect(b"%d" % number)
            desk.router.hold_all()
        for number in range(kept):
            if number % 2:
                desk.direct(b"0", [b"%d" % (1_000 + number)], b"x")
            else:
                desk.say(b"0", b"channel %d" % (number % 100), b"x")
        best = []
        for number in range(clients):
            client = desk.begin(b"%d" % number).client if grace else desk.router.clients[b"%d" % number]
            if grace:
                desk.router.confirm(client.connections[0])
            began = time.process_time()
            desk.router.members(client, [b"channel 1"])
            best.append(time.process_time() - began)
        return min(best[:-1])  # the last one that waited has everything forgotten

    assert took(60_000) < 5 * took(3_000), "every message is looked at"


@pytest.mark.parametrize("newest", [0, EVERY])
def test_what_came_with_its_members_is_for_these_alone(newest: int) -> None:
    desk = Desk(tracking=False, newest=newest)
    connection = desk.begin(b"1")
    desk.router.route(message_of("members", b"0", [b"2"], b"red", False, b"for another"))
    desk.router.route(message_of("members", b"0", [b"2", b"1"], b"red", False, b"for both"))
    desk.router.confirm(connection)
    connection.attach_transport(desk.wires[connection], -1)
    assert desk.got(connection) == [b"for both"]
