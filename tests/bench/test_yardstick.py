"""The yardstick sends what it is told to, and the load generator finds no fault in it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from bench import tokens
from bench.processes import Crowd, Yardstick

COUNT = 50


@pytest.fixture
def yardstick() -> Iterator[Yardstick]:
    with Yardstick() as server:
        yield server


@pytest.fixture
def crowd(yardstick: Yardstick) -> Iterator[Crowd]:
    with Crowd(COUNT, per_process=20) as crowd:
        tally = crowd.connect([yardstick.port], tokens.for_yardstick(COUNT))
        assert (tally.living, tally.refused) == (COUNT, {})
        assert tally.histogram.total() == COUNT
        yield crowd


@pytest.mark.parametrize("size", [64, 125, 126, 5000])
def test_rounds_go_to_everybody_once_and_in_order(yardstick: Yardstick, crowd: Crowd, size: int) -> None:
    yardstick.ask(f"begin {size}")
    crowd.begin(size)
    yardstick.ask(f"rounds 10 0 {COUNT} 3")
    crowd.wait(frames_each=10)
    tally = crowd.watch(0.02)
    assert tally.frames == 10 * COUNT
    assert not +tally.faults
    assert crowd.complete(3, 10) == COUNT


def test_a_part_can_be_sent_to(yardstick: Yardstick, crowd: Crowd) -> None:
    crowd.begin(128)
    yardstick.ask("rounds 2 10 5 3")
    tally = crowd.watch(0.05)
    assert tally.frames == 10
    assert crowd.complete(3, 2) == 5


def test_random_messages_reach_whom_they_are_for(yardstick: Yardstick, crowd: Crowd) -> None:
    crowd.begin(128)
    yardstick.ask("random 500 3 1")
    tally = crowd.watch(0.05)
    assert tally.frames == 500
    assert not +tally.faults


@pytest.mark.parametrize(("count", "frames"), [(1, 100), (COUNT, 100 * COUNT)])
def test_paced_messages_come_at_their_rate(yardstick: Yardstick, crowd: Crowd, count: int, frames: int) -> None:
    crowd.begin(128)
    begin = time.monotonic()
    spent = yardstick.ask(f"paced 500 0.2 {count} 3 1")
    assert time.monotonic() - begin >= 0.198
    tally = crowd.watch(0.05)
    assert tally.frames == frames
    assert not +tally.faults
    assert 0 < spent["cpu_s"] <= spent["wall_s"]


def test_clients_of_a_large_run_have_their_numbers(yardstick: Yardstick) -> None:
    first = 99_990
    with Crowd(10, first=first) as crowd:
        tally = crowd.connect([yardstick.port], tokens.for_yardstick(first + 9)[first - 1 :])
        assert (tally.living, tally.refused) == (10, {})
        crowd.begin(128)
        yardstick.ask("random 100 3 1")
        tally = crowd.settle(100)
    assert tally.frames == 100
    assert not +tally.faults


def test_what_it_says_of_its_cpu_is_what_the_kernel_says(yardstick: Yardstick, crowd: Crowd) -> None:
    crowd.begin(128)
    cpu = yardstick.cpu()
    said = yardstick.ask(f"rounds 200 0 {COUNT} 3")["cpu_s"]
    assert said == pytest.approx(yardstick.cpu() - cpu, rel=0.1, abs=0.005)
    assert sum(yardstick.cpu_split()) == pytest.approx(yardstick.cpu(), abs=0.1)
    crowd.wait(frames_each=200)


def test_connections_that_close_are_forgotten(yardstick: Yardstick, crowd: Crowd) -> None:
    assert yardstick.ask("count") == {"count": COUNT}
    tally = crowd.close()
    assert tally.living == 0
    assert tally.closes == {1000: COUNT}
    assert yardstick.ask("count") == {"count": 0}
    assert yardstick.memory() > 0
