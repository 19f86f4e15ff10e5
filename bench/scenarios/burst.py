"""A hundred messages at once to a channel of everybody."""

from __future__ import annotations

from bench.outcome import Outcome
from bench.scenarios.deliveries import measure
from bench.stand import Settings


def run(settings: Settings) -> Outcome:
    """Measure the CPU of a delivery against a bare send for each message."""
    meaning = "CPU of a bare send / CPU of a delivery by the node, 100 messages at once to everybody"
    return measure("burst", settings, settings.connections, 100, meaning, together=True)
