"""How long single messages take at a steady rate, from the moment at which each was due."""

from __future__ import annotations

import dataclasses
import random
import time
from collections import Counter

from bench.outcome import Figure, Outcome, ratios
from bench.publisher import text
from bench.stand import Settings, Stand, stand
from bench.tally import Tally

RATES = (1_000, 10_000)
SECONDS = 2.0


def run(settings: Settings) -> Outcome:
    """Measure times from publishing to arrival at several rates, in turn with the yardstick at the same."""
    seconds = SECONDS * settings.repeat
    outcome = Outcome("latency", f"{seconds:g} s at each rate among {settings.connections} connections")
    with stand(dataclasses.replace(settings, pause=0.0), {}, outcome) as here:
        for rate in RATES:
            node, bare = [], []
            for number in range(settings.rounds):
                settings.progress(f"latency: {rate} a second, round {number + 1} of {settings.rounds}")
                node.append(_node_round(here, outcome, rate, seconds, number))
                bare.append(_bare_round(here, outcome, rate, seconds, number))
            outcome.figures += _figures(rate, [tally for tally, _ in node], bare)
            late = [lag for _, lag in node]
            meaning = f"99.0% are published no later than this after they were due, at {rate:,} a second"
            outcome.figures.append(Figure(f"latency_{rate}_sender_p99", "lower", meaning, late, "ms"))
    return outcome


def _figures(rate: int, node: list[Tally], bare: list[Tally]) -> list[Figure]:
    figures = []
    for name, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999)):
        times = [tally.quantile(share) * 1e3 for tally in node]
        others = [tally.quantile(share) * 1e3 for tally in bare]
        meaning = f"{share:.1%} arrive within this time, at {rate:,} a second"
        figures += [
            Figure(
                f"latency_{rate}_{name}_ratio",
                "lower",
                "the next figure / that of the yardstick",
                ratios(times, others),
            ),
            Figure(f"latency_{rate}_{name}", "lower", meaning, times, "ms"),
        ]
    return figures


def _node_round(here: Stand, outcome: Outcome, rate: int, seconds: float, seed: int) -> tuple[Tally, float]:
    dice = random.Random(seed)
    receivers = [dice.randint(1, here.settings.connections) for _ in range(max(1, int(rate * seconds)))]
    stream, size = here.next_stream(), here.settings.size
    lags: list[float] = []

    def send() -> None:
        sequences: Counter[int] = Counter()
        start = time.monotonic_ns()
        sent = 0
        while sent < len(receivers):
            due = min(len(receivers), (time.monotonic_ns() - start) * rate // 1_000_000_000 + 1)
            commands = []
            for number in range(sent, due):
                client = receivers[number]
                sequences[client] += 1
                # The time at which it was due, not at which it is sent: what lags may not hide it.
                at = start + number * 1_000_000_000 // rate
                message = text(stream, sequences[client], size, to=client, at=at)
                commands.append(here.publisher.to_clients([client], message))
            now = (time.monotonic_ns() - start) / 1e6
            lags.extend(now - number * 1e3 / rate for number in range(sent, due))
            here.publisher.send(commands)
            sent = due
            time.sleep(max(0.0, (start + sent * 1_000_000_000 // rate - time.monotonic_ns()) / 1e9))

    tally = here.round(outcome, send, receivers)[1]
    return tally, sorted(lags)[int(0.99 * len(lags))]


def _bare_round(here: Stand, outcome: Outcome, rate: int, seconds: float, seed: int) -> Tally:
    count = max(1, int(rate * seconds))
    line = f"paced {rate} {seconds} 1 {here.next_stream()} {seed}"
    return here.bare_round(outcome, lambda: here.yardstick.ask(line), [1] * count)[1]
