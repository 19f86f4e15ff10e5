"""Messages to one client each, chosen at random, as fast as Redis hands them over."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence

from bench.outcome import Figure, Outcome, ratios
from bench.publisher import Publisher, text
from bench.stand import Settings, Stand, stand


def run(settings: Settings) -> Outcome:
    """Measure the CPU of a message, Redis's reply parsed and the client found, against a bare send."""
    messages = settings.many(40_000)
    outcome = Outcome(
        "direct", f"{messages} messages of {settings.size} bytes among {settings.connections} connections"
    )
    node, bare, spent, seconds = [], [], [], []
    with stand(settings, {}, outcome) as here:
        for number in range(settings.rounds):
            settings.progress(f"direct: round {number + 1} of {settings.rounds}")
            cpu, wall = _node_round(here, outcome, messages, number)
            node.append(cpu)
            spent.append(cpu / messages * 1e6)
            seconds.append(wall)
            bare.append(_bare_round(here, outcome, messages, number))
    outcome.figures = [
        Figure("direct_ratio", "higher", "CPU of a bare send / CPU of a message to one client", ratios(bare, node)),
        Figure("direct_cpu", "lower", "CPU of the node for a message to one client", spent, "µs"),
        Figure("direct_rate", "higher", "messages a second, by the clock", [messages / s for s in seconds], "/s"),
    ]
    return outcome


def messages_to(publishers: Sequence[Publisher], stream: int, receivers: list[int], size: int) -> Iterator[bytes]:
    """Make the commands that send to these clients, each with a sequence of its own.

    Args:
        publishers: One for each node, in the order of the nodes' list.
        stream: The number in the payloads.
        receivers: Client ids, one a message.
        size: Bytes of a message.
    """
    sequences: Counter[int] = Counter()
    for client in receivers:
        sequences[client] += 1
        message = text(stream, sequences[client], size, to=client)
        yield publishers[client % len(publishers)].to_clients([client], message)


def _node_round(here: Stand, outcome: Outcome, messages: int, seed: int) -> tuple[float, float]:
    dice = random.Random(seed)
    receivers = [dice.randint(1, here.settings.connections) for _ in range(messages)]
    # Made first: Python is slower than the node.
    commands = list(messages_to([here.publisher], here.next_stream(), receivers, here.settings.size))
    cpu, tally = here.round(outcome, lambda: here.publisher.send(commands), receivers)
    return cpu, tally.seconds


def _bare_round(here: Stand, outcome: Outcome, messages: int, seed: int) -> float:
    line = f"random {messages} {here.next_stream()} {seed}"
    # Who gets how many does not matter for the sum; the generator checks that each gets what is meant for it.
    return here.bare_round(outcome, lambda: here.yardstick.ask(line), [1] * messages)[0]
