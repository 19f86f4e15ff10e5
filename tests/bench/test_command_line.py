"""Which scenarios run, and how large."""

from __future__ import annotations

import pytest

from bench.__main__ import FULL_LATENCY, chosen, parse, settings_of
from bench.scenarios import LONG, SCENARIOS


def test_the_long_scenarios_run_when_asked_for() -> None:
    assert not set(LONG) & set(chosen(parse([])))
    assert chosen(parse(["--full"])) == list(SCENARIOS)
    assert chosen(parse(["soak", "direct"])) == ["soak", "direct"]


@pytest.mark.parametrize(
    ("args", "latency", "soak"),
    [
        ([], 10_000, 600),
        (["--full"], FULL_LATENCY, 600),
        (["--full", "--quick"], 500, 3),
        (["--full", "--soak", "60", "--latency-connections", "30000"], 30_000, 60),
        (["--connections", "2000"], 2000, 600),
    ],
)
def test_sizes(args: list[str], latency: int, soak: float) -> None:
    settings = settings_of(parse(args), "redis://")
    assert (settings.latency_connections, settings.soak) == (latency, soak)


@pytest.mark.parametrize(
    "args", [["nothing"], ["--soak", "0"], ["--latency-connections", "0"], ["--connections", "20000"]]
)
def test_what_cannot_be_measured_is_refused(args: list[str]) -> None:
    with pytest.raises(SystemExit):
        parse(args)
