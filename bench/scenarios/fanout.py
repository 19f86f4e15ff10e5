"""One message after another to a channel of everybody."""

from __future__ import annotations

from bench.outcome import Outcome
from bench.scenarios.deliveries import measure
from bench.stand import Settings


def run(settings: Settings) -> Outcome:
    """Measure the CPU of a delivery against a bare send."""
    meaning = "CPU of a bare send / CPU of a delivery by the node, one message at a time to everybody"
    return measure("fanout", settings, settings.connections, settings.many(20), meaning, together=False)
