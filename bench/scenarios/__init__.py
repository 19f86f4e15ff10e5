"""The scenarios, a module each: ``run(settings)`` measures and returns an `Outcome`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bench.outcome import Outcome
from bench.scenarios import (
    burst,
    churn,
    cycles,
    direct,
    fanout,
    fifty,
    flood,
    helper,
    idle,
    latency,
    peers,
    room,
    rooms,
    slow,
    soak,
    steps,
    storm,
    stream,
)
from bench.stand import Settings

SCENARIOS: Final[dict[str, Callable[[Settings], Outcome]]] = {
    "fanout": fanout.run,
    "burst": burst.run,
    "room": room.run,
    "rooms": rooms.run,
    "direct": direct.run,
    "storm": storm.run,
    "idle": idle.run,
    "helper": helper.run,
    "churn": churn.run,
    "latency": latency.run,
    "slow": slow.run,
    "flood": flood.run,
    "cycles": cycles.run,
    "steps": steps.run,
    "fifty": fifty.run,
    "peers": peers.run,
    "stream": stream.run,
    "soak": soak.run,
}

LONG: Final = ("slow", "flood", "cycles", "steps", "fifty", "peers", "stream", "soak")
"""Those that run only when they are named, or with ``--full``."""
