"""What the core and the histograms count, at their bounds; tests/node/test_metrics.py reads it from a node."""

from __future__ import annotations

import math

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeim._core import Message, RespStream
from freeim.node.histogram import Histogram
from tests.core.test_router import SYSTEM, Desk

BOUNDS = (0, 1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, None)


@pytest.mark.parametrize("receivers", [0, 1, 2, 4, 5, 16, 17, 1024, 1025, 65536, 65537])
def test_a_message_is_counted_in_the_first_class_that_its_receivers_do_not_pass(receivers: int) -> None:
    desk = Desk()
    for _ in range(receivers):
        desk.connect(b"1")
    desk.direct(SYSTEM, [b"1"], b"hi")
    sizes = dict(desk.router.fanout_sizes)
    assert tuple(sizes) == BOUNDS
    expected = next((bound for bound in BOUNDS if bound is not None and receivers <= bound), None)
    assert {bound: count for bound, count in sizes.items() if count} == {expected: 1}
    assert desk.router.deliveries == receivers
    assert desk.router.delivered == receivers * (2 + len(b"hi"))


def test_what_is_replayed_is_delivered_and_no_fanout() -> None:
    desk = Desk()
    one, _two = desk.connect(b"1", b"red"), desk.connect(b"2", b"red")
    desk.router.invalidate(b"1")
    desk.say(SYSTEM, b"red", b"first")
    desk.direct(SYSTEM, [b"1"], b"second")
    desk.say(SYSTEM, None, b"third")
    assert (desk.router.deliveries, desk.router.replayed) == (2, 0)
    desk.router.members(one.client, [b"red"])
    assert desk.got(one) == [b"first", b"second", b"third"]
    assert (desk.router.deliveries, desk.router.replayed) == (5, 3)
    assert desk.router.delivered == 2 * (2 + 5) + (2 + 6) + 2 * (2 + 5)
    assert dict(desk.router.fanout_sizes)[0] == 1, "the direct one went to nobody at once"


def test_a_message_that_takes_several_slices_is_counted_once_when_all_have_it() -> None:
    desk = Desk(slice_ms=0)  # each slice reaches one client
    connections = [desk.connect(client) for client in (b"1", b"2", b"3", b"4", b"5")]
    desk.router.invalidate(b"5")
    rest = desk.router.route(Message.channel_message(SYSTEM, None, b"hello"))
    desk.router.members(connections[4].client, [])
    assert desk.router.replayed == 1
    assert rest is not None
    assert rest() is not None
    assert sum(desk.router.messages) == 0
    desk.router.finish()
    assert [desk.got(each) for each in connections] == [[b"hello"]] * 5
    assert desk.router.messages == (0, 0, 1, 0)
    assert {bound: count for bound, count in desk.router.fanout_sizes if count} == {4: 1}
    assert (desk.router.deliveries, desk.router.delivered) == (5, 5 * (2 + 5))


def test_a_message_without_a_frame_is_counted_and_delivered_to_nobody() -> None:
    desk = Desk()
    desk.connect(b"1")
    desk.router.open = True
    payload = b'{"Item1":0,"Item2":[1],"Item3":null,"Item4":false}'
    desk.router.take(payload)
    assert desk.router.messages == (1, 0, 0, 0)
    assert (desk.router.received, desk.router.deliveries, desk.router.delivered) == (len(payload), 0, 0)


def test_each_reply_that_is_an_error_is_told_before_whoever_waits_for_it() -> None:
    told: list[str] = []
    stream = RespStream(
        hiredis.Reader(notEnoughData=RespStream.NOTHING),
        hiredis.PushNotification,
        lambda _: None,
        lambda _: None,
        lambda _: None,
        on_error=lambda error: told.append(f"error {error}"),
    )
    for _ in range(4):
        stream.waiting.append(lambda reply: told.append(f"reply {reply}"))
    stream.receive(b":1\r\n-OOM x\r\n$3\r\nERR\r\n*1\r\n:2\r\n")
    assert told == ["reply 1", "error OOM x", "reply OOM x", "reply b'ERR'", "reply [2]"]


@given(
    st.lists(st.floats(0.001, 100), min_size=1, max_size=5, unique=True).map(sorted),
    st.lists(st.floats(0, 200), max_size=20),
    st.lists(st.integers(0, 4), max_size=5),
)
def test_a_histogram_counts_each_duration_once_by_the_first_bound_it_does_not_pass(
    bounds: list[float], durations: list[float], exact: list[int]
) -> None:
    durations += [bounds[index % len(bounds)] for index in exact]
    histogram = Histogram(bounds)
    for duration in durations:
        histogram.observe(duration)
    total = 0
    for bound, count in histogram:
        total += count
        assert total == sum(duration <= bound for duration in durations)
    assert bound == math.inf
    assert math.isclose(histogram.sum, sum(durations))
