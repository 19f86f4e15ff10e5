"""Every scenario in a small size: nothing is lost, and the report has the figures. Speed is not looked at."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest

from bench import report
from bench.outcome import Figure, Outcome
from bench.processes import BenchError
from bench.scenarios import SCENARIOS, latency
from bench.stand import Settings
from bench.tally import Tally


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_loses_nothing_and_has_its_figures(name: str, bench_url: str) -> None:
    rounds = 1 if name == "idle" else 2  # it waits for pings
    settings = Settings(bench_url, connections=200, fifty=300, soak=2.0, rounds=rounds, repeat=0.1)
    outcome = SCENARIOS[name](settings)
    assert not outcome.faults
    assert outcome.received == outcome.expected > 0
    assert outcome.complete
    assert outcome.figures
    where = report.describe(settings)
    found = json.loads(report.as_json(where, [outcome]))["outcomes"][0]["figures"]
    for figure in outcome.figures:
        assert len(figure.values) in (rounds, 1)  # memory, say, is measured once
        assert all(math.isfinite(value) for value in figure.values)
        assert found[figure.name]["median"] == figure.median
    outcome.busiest = outcome.sender = 0.5  # of small sizes nobody asks whether they can be quoted
    outcome.slow = ""
    page = report.as_markdown(where, [outcome])
    assert all(f"`{figure.name}`" in page for figure in outcome.figures)


def test_latency_spreads_its_connections_over_nodes(bench_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "PER_PROCESS", 100)
    outcome = latency.run(Settings(bench_url, connections=50, latency=250, rounds=1, repeat=0.1))
    assert outcome.complete
    assert "250 connections" in outcome.size


def test_churn_and_soak_need_some_connections(bench_url: str) -> None:
    for name in ("churn", "soak"):
        with pytest.raises(BenchError, match="ten connections"):
            SCENARIOS[name](Settings(bench_url, connections=9))


def test_a_part_that_may_not_be_quoted_is_left_out_and_says_why(bench_url: str) -> None:
    outcome = Outcome("x", "2 messages")
    good, slow = (Outcome(name, "", [Figure(f"{name}_ratio", "lower", "", [1.0])]) for name in ("good", "slow"))
    good.check(Tally(frames=1, seconds=1.0), 1)
    slow.check(Tally(frames=1, seconds=1.0), 1)
    slow.sender = 0.9
    outcome.absorb(good)
    outcome.absorb(slow)
    assert outcome.objection is None
    assert [figure.name for figure in outcome.figures] == ["good_ratio"]
    assert outcome.left_out == ["slow: the sender was busy for 90% of the time: it may have been the bottleneck"]
    where = report.describe(Settings(bench_url))
    assert f"**Left out:** {outcome.left_out[0]}." in report.as_markdown(where, [outcome])


def test_a_part_that_lost_a_message_takes_all_figures_along() -> None:
    outcome = Outcome("x", "2 messages")
    part = Outcome("part", "")
    part.check(Tally(frames=1, seconds=1.0), 2)
    outcome.absorb(part)
    assert outcome.objection == "1 of 2 arrived (no other fault)"


def test_clients_that_come_and_go_may_lack_messages_and_nothing_else() -> None:
    outcome = Outcome("x", "1 message")
    outcome.check_some(Tally(frames=7, faults=Counter(lost=3)))
    assert outcome.complete
    outcome.check_some(Tally(frames=7, faults=Counter(duplicates=1)))
    assert not outcome.complete


def test_a_scenario_that_lost_a_message_has_no_figures() -> None:
    outcome = Outcome("x", "1 message", [Figure("x_ratio", "higher", "", [1.0])], expected=2, received=1)
    assert not outcome.complete
    assert outcome.objection == "1 of 2 arrived (no other fault)"


def test_a_scenario_with_a_busy_generator_has_no_figures() -> None:
    outcome = Outcome("x", "1 message", [Figure("x_ratio", "higher", "", [1.0])], busiest=0.86)
    assert outcome.complete
    assert outcome.objection is not None
    assert "bottleneck" in outcome.objection


@pytest.mark.parametrize(("server_cpu", "quoted"), [(1.9, True), (1.0, False)])
def test_a_busy_generator_is_no_objection_where_the_server_never_waited_for_it(server_cpu: float, quoted: bool) -> None:
    outcome = Outcome("x", "1 message")
    outcome.check(Tally(frames=1, busy=0.95, seconds=2.0), 1, server_cpu)
    assert (outcome.objection is None) == quoted


def test_the_median_and_the_spread_are_those_of_the_rounds() -> None:
    figure = Figure("x", "lower", "", [3.0, 1.0, 2.0, 9.0, 2.5])
    assert figure.median == 2.5
    assert figure.spread == (1.0, 9.0)
