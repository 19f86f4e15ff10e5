"""Many small rooms: one message to each, in random order, as fast as Redis hands them over."""

from __future__ import annotations

import random
from collections.abc import Sequence

from bench.outcome import Figure, Outcome, ratios
from bench.publisher import text
from bench.stand import Settings, Stand, stand
from freeim import ImHelper

OFFSETS = (0, 1, 3, 7, 12)
"""From a room's number to its members: all differences differ, so no two clients share more than one room."""
CHUNK = 500


def run(settings: Settings) -> Outcome:
    """Measure the CPU of a delivery against bare sends to as many connections at random."""
    count = settings.connections
    offsets = OFFSETS if count > 2 * OFFSETS[-1] else range(min(len(OFFSETS), count))
    deliveries = count * len(offsets)
    outcome = Outcome(
        "rooms",
        f"a message of {settings.size} bytes to each of {count} rooms of {len(offsets)} among {count} connections",
    )
    node, bare, seconds = [], [], []
    with stand(settings, {}, outcome) as here:
        settings.progress(f"rooms: {count} clients join {len(offsets)} rooms each")
        _join(here, offsets)
        _node_round(here, outcome, deliveries, settings.rounds)
        _bare_round(here, outcome, deliveries, settings.rounds)
        for number in range(settings.rounds):
            settings.progress(f"rooms: round {number + 1} of {settings.rounds}")
            cpu, wall = _node_round(here, outcome, deliveries, number)
            node.append(cpu / deliveries * 1e6)
            seconds.append(wall)
            bare.append(_bare_round(here, outcome, deliveries, number) / deliveries * 1e6)
    meaning = "CPU of a bare send to one at random / CPU of a delivery by the node, one message to each small room"
    outcome.figures = [
        Figure("rooms_ratio", "higher", meaning, ratios(bare, node)),
        Figure("rooms_cpu", "lower", "CPU of the node for a delivery", node, "µs"),
        Figure("rooms_rate", "higher", "deliveries a second, by the clock", [deliveries / s for s in seconds], "/s"),
    ]
    return outcome


def _join(here: Stand, offsets: Sequence[int]) -> None:
    count = here.settings.connections
    with ImHelper(here.settings.url, prefix=here.names.prefix, nodes=[here.node.node]) as helper:
        for start in range(0, count, CHUNK):
            with helper.batch() as batch:
                for place in range(start, min(start + CHUNK, count)):
                    batch.join_chan(place + 1, *(f"room{(place - offset) % count}" for offset in offsets))


def _node_round(here: Stand, outcome: Outcome, deliveries: int, seed: int) -> tuple[float, float]:
    count, size = here.settings.connections, here.settings.size
    first = here.next_streams(count)
    order = list(range(count))
    random.Random(seed).shuffle(order)
    commands = [here.publisher.to_channel(f"room{room}", text(first + room, 1, size)) for room in order]
    # The crowd is one process: it does not matter who is counted for a delivery.
    cpu, tally = here.round(outcome, lambda: here.publisher.send(commands), [1] * deliveries)
    return cpu, tally.seconds


def _bare_round(here: Stand, outcome: Outcome, deliveries: int, seed: int) -> float:
    line = f"random {deliveries} {here.next_stream()} {seed}"
    return here.bare_round(outcome, lambda: here.yardstick.ask(line), [1] * deliveries)[0]
