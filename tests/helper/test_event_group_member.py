"""Histories of a group that matter, one by one; and marks that are none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeim import event_group
from freeim.event_group import LEASE_SECONDS, decode_mark
from tests.helper.group_model import LEASE, FaithfulGroup, Group
from tests.servers import RedisServer, Subscriber


@pytest.fixture
def group(redis_server: RedisServer) -> Iterator[Group]:
    """Two processes that are settled: the first leads, and the second knows where it is."""
    made = FaithfulGroup(redis_server)
    made.begin()
    made.settle(0)
    made.hear(1, 1000)
    yield made
    made.teardown()


def expire(group: Group) -> None:
    """The leader stands still until its lease has run out."""
    group.now += LEASE_SECONDS
    group.wire("DEL", LEASE)


def test_a_newcomer_leaves_a_free_lease_to_one_that_has_missed_nothing_for_one_turn(group: Group) -> None:
    group.start()
    expire(group)
    group.beat(2)
    assert group.processes[2].member.fence == 0
    group.beat(1)
    group.hear(1, 1000)
    assert group.processes[1].member.leads(group.now)
    group.beat(2)
    expire(group)
    for turn in (0, 3):  # and nobody else comes
        group.beat(2)
        assert group.processes[2].member.fence == turn


def test_one_that_takes_over_waits_until_it_has_heard_all_that_its_predecessor_said(group: Group) -> None:
    group.publish(2)
    group.settle(0)
    expire(group)
    group.beat(1)
    second = group.processes[1]
    while second.unread:
        assert not group.handle(1, finishes=True)
        group.hear(1, 1)
    assert second.member.leads(group.now)
    assert not group.handle(1, finishes=True), "the first has handled both, and said so"


def test_an_event_that_was_begun_and_that_another_has_handled_meanwhile_is_not_taken_for_the_next(
    group: Group,
) -> None:
    group.publish(2)
    group.hear(0, 1000)
    group.handle(0, finishes=False)
    expire(group)
    group.beat(1)
    group.hear(1, 1000)
    assert group.handle(1, finishes=True)
    group.beat(1)  # says that the first event is handled
    group.hear(0, 1000)
    group.handle(0, finishes=True)
    group.processes.pop(1).wire.close()
    expire(group)
    group.settle(0)
    assert group.processes[0].handled == [1, 2]


def test_a_leader_that_lost_its_lease_does_not_give_that_of_another_back(group: Group) -> None:
    expire(group)
    group.beat(1)
    first = group.processes[0].member
    first.unsubscribed()
    turn = first.turn(group.now)
    assert turn is not None
    assert turn.leaves
    assert group.wire(*turn.command) == 0
    assert group.wire("EXISTS", LEASE) == 1
    first.subscribed()


def test_no_mark_has_the_number_of_another_though_no_answer_comes(group: Group) -> None:
    with Subscriber(group.server, LEASE) as marks:
        for _ in range(3):
            turn = group.processes[0].member.turn(group.now)
            assert turn is not None
            group.wire(*turn.command)
            group._count(1)
        numbers = [decode_mark(payload.encode()).id for _, payload in marks.drain()]
    assert len(set(numbers)) == 3


def test_nothing_counts_as_handled_while_events_are_missing_and_until_the_resync_is_done(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = group.processes[0]

    def said() -> object:
        turn = leader.member.turn(group.now)
        assert turn is not None
        return turn.command[-1]

    assert said() != "null"
    monkeypatch.setattr(event_group, "KEPT_EVENTS", 4)
    group.publish(6)
    group.beat(0)
    group.publish(3)
    group.hear(0, 1000)  # too much: what is left is the mark and what came behind it
    group.handle(0, finishes=True)
    assert leader.handled == [7]
    assert said() == "null"
    group.handle(0, finishes=False)
    assert leader.gap == 9, "it has begun to resync"
    assert said() == "null"
    assert leader.member.next(group.now) is None
    group.handle(0, finishes=True)
    group.handle(0, finishes=True)
    assert leader.handled == [7, 8]
    assert said() != "null"


def test_an_answer_that_comes_after_the_lease_was_lost_makes_nobody_a_leader(group: Group) -> None:
    group.beat(0, late=True)
    expire(group)
    group.now -= LEASE_SECONDS  # the answer is fresh by the member's clock
    group.beat(1)
    group.hear(0, 1000)
    group.answer(group.processes[0])
    assert not group.processes[0].member.leads(group.now)


@given(st.binary(max_size=200) | st.from_regex(rb'\{"fence":[0-9e.]{1,25},"mark":.{1,9},"handled":.{1,20}\}'))
def test_whatever_is_published_as_a_mark_is_read_or_refused(payload: bytes) -> None:
    try:
        mark = decode_mark(payload)
    except ValueError:
        return
    assert all(0 <= number <= 10**12 for number in mark.id)
