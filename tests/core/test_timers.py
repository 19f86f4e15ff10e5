"""The wheel that says when to ping whom, and what has so much time and no more."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeim.node.timers import EXPIRED_PER_TURN, TURN, Deadlines, PingWheel


@pytest.mark.parametrize("interval", [0.2, 2.5, 25.0, 3600.0])
def test_everybody_is_pinged_once_per_interval_and_checked_after_the_timeout(interval: float) -> None:
    happened: list[str] = []
    wheel: PingWheel[int] = PingWheel(
        interval, interval / 2, lambda _: happened.append("ping"), lambda _: happened.append("check")
    )
    turns = round(interval / wheel.turn_seconds)
    wheel.add(1)
    when = []
    for turn in range(1, 3 * turns + 1):
        wheel.turn()
        when += [(turn, what) for what in happened]
        happened.clear()
    assert [turn for turn, what in when if what == "ping"] == [turns, 2 * turns, 3 * turns]
    checked = [turn for turn, what in when if what == "check"]
    assert [turn - turns * number for number, turn in enumerate(checked)] == [(turns + 1) // 2] * 3


@pytest.mark.parametrize("interval", [2.5, 10.0, 25.0, 60.0])
def test_one_turn_pings_only_those_who_came_in_a_tenth_of_a_second(interval: float) -> None:
    wheel: PingWheel[int] = PingWheel(interval, 1.0, lambda _: None, lambda _: None)
    assert wheel.turn_seconds == pytest.approx(TURN)


def test_thousands_whose_time_is_over_end_in_parts_the_oldest_first() -> None:
    ended: list[int] = []
    soon: list[Callable[[], None]] = []
    deadlines: Deadlines[int] = Deadlines(1.0, ended.append, soon.append)
    count = 2 * EXPIRED_PER_TURN + 1
    for thing in range(count):
        deadlines.start(thing, 0.0)
    deadlines.start(count, 0.5)
    deadlines.expire(1.0)
    for turns in (1, 2, 3):
        assert ended == list(range(min(turns * EXPIRED_PER_TURN, count)))
        deadlines.expire(1.0)  # the next look comes before all are ended: a turn ends no more for that
        assert len(ended) == min(turns * EXPIRED_PER_TURN, count)
        waiting = soon.copy()
        soon.clear()
        for call in waiting:
            call()
    assert (len(deadlines), soon) == (1, [])
    deadlines.expire(1.5)
    assert len(deadlines) == 0


@given(
    st.sampled_from([0.5, 2.5, 10.0, 40.0, 200.0]),
    st.sampled_from([0.5, 2.5, 10.0, 40.0, 200.0]),
    st.integers(0, 2000),
)
def test_a_wheel_whose_times_change_stays_spread_and_pings_each_once_an_interval(
    before: float, after: float, skipped: int
) -> None:
    pinged: list[int] = []
    wheel: PingWheel[int] = PingWheel(before, before, pinged.append, lambda _: None)
    turns = round(before / wheel.turn_seconds)
    for _ in range(skipped % turns):
        wheel.turn()
    slots = {}
    for thing in range(turns):
        slots[thing] = wheel.add(thing)
        wheel.turn()
    slots.update(wheel.set_times(after, after))
    assert sorted(slots) == list(range(turns))
    new_turns = round(after / wheel.turn_seconds)
    pinged.clear()
    most = 0
    for _ in range(new_turns):
        seen = len(pinged)
        wheel.turn()
        most = max(most, len(pinged) - seen)
    assert sorted(pinged) == list(range(turns)), "each once"
    assert most <= -(-turns // new_turns), "spread"
    for thing, slot in slots.items():
        wheel.remove(thing, slot)
    assert not any(wheel._slots)
