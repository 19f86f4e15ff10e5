"""One message after another to a tenth of the connections: the others must cost nothing."""

from __future__ import annotations

from bench.outcome import Outcome
from bench.scenarios.deliveries import measure
from bench.stand import Settings


def run(settings: Settings) -> Outcome:
    """Measure the CPU of a delivery against a bare send to as many."""
    meaning = "CPU of a bare send / CPU of a delivery by the node, one message at a time to a tenth of the connections"
    members = max(1, settings.connections // 10)
    return measure("room", settings, members, settings.many(200), meaning, together=False)
