"""More than a node can handle, as fast as Redis takes it: what waits, what is dropped, and is all accounted for?"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import redis

from bench import tokens
from bench.metrics import Watched
from bench.outcome import Figure, Outcome
from bench.pacer import Pacer
from bench.processes import Crowd, Node
from bench.stand import QUIET, Settings, run_names

MESSAGES = 500_000
SIZE = 1024
CLIENTS = 1_000
AT_ONCE = 1e9
"""Messages a second that are due: all of them at once."""
OUTPUT_LIMIT = "pubsub 256mb 128mb 30"
"""What docs/deployment.md tells to give Redis."""


def run(settings: Settings) -> Outcome:
    """Flood a node with the usual bound, and one whose bound is so small that it must drop."""
    messages, count = settings.many(MESSAGES), min(CLIENTS, settings.connections)
    small = messages * SIZE // 32
    outcome = Outcome("flood", f"{messages:,} messages of {SIZE} bytes to one of {count} connections each, all at once")
    with run_names(settings.url) as (client, _):
        with _output_limit(client, OUTPUT_LIMIT):
            _flood(settings, outcome, messages, count, "flood", (), "with the usual --bus-queue-limit")
        options = ("--bus-queue-limit", str(small))
        # To drop takes longer than to let wait: where cores are few Redis would cut the node off.
        with _output_limit(client, "pubsub 0 0 0"):
            _flood(settings, outcome, messages, count, "flood_bound", options, f"with --bus-queue-limit {small}")
    return outcome


def _flood(
    settings: Settings, outcome: Outcome, messages: int, count: int, name: str, options: tuple[str, ...], how: str
) -> None:
    with contextlib.ExitStack() as stack:
        client, names = stack.enter_context(run_names(settings.url))
        watched = Watched()
        node = stack.enter_context(Node(settings.url, names.prefix, options=(*QUIET, *watched.options, *options)))
        crowd = stack.enter_context(Crowd(count))
        pacer = stack.enter_context(Pacer(settings.url, names, [node.node]))
        settings.progress(f"{name}: {how}")
        outcome.check_opened(crowd.connect([node.port], tokens.issue(client, names, count)), count)
        crowd.begin(SIZE)
        memory, start = node.memory(), time.monotonic()
        pacer.start(AT_ONCE, messages / AT_ONCE, range(1, count + 1), 1, size=SIZE)
        look, waited, most, handled = watched.look(), 0.0, 0, -1.0
        while handled < messages:
            look = watched.look()
            waited, most = max(waited, look("bus_queue_bytes", waits_for="node")), max(most, node.memory())
            handled = look("messages_total", kind="direct") + look("dropped_messages_total", reason="bus_queue")
            if look("bus_gaps_total"):
                # Redis has cut it off: what is lost, nobody counts.
                outcome.expected += messages
                outcome.faults.update({f"gap {how}": 1})
                return
            time.sleep(0.25)  # a look costs the node milliseconds
        seconds = time.monotonic() - start
        sent = pacer.finish().messages
        dropped = int(look("dropped_messages_total", reason="bus_queue"))
        tally = outcome.check_some(crowd.settle(sent - dropped))
    outcome.expected += sent
    outcome.received += tally.frames + dropped
    if waited < 0.9 * look("bus_queue_limit_bytes") and not options:
        outcome.faults.update({"dropped below the bound": dropped})
    outcome.faults += {}  # without those that are 0
    outcome.figures += [
        Figure(f"{name}_rate", "", f"messages a second that are delivered or dropped, {how}", [sent / seconds], "/s"),
        Figure(f"{name}_dropped", "", f"share of the messages that are dropped, {how}", [dropped / sent]),
        Figure(f"{name}_waited", "", "memory of what waited at most", [waited / (1 << 20)], "MiB"),
        Figure(f"{name}_memory", "lower", "what the node's memory grew by", [(most - memory) / (1 << 20)], "MiB"),
    ]


@contextlib.contextmanager
def _output_limit(client: redis.Redis, limit: str) -> Iterator[None]:
    """Let so much wait in Redis for the node, and afterwards as much as before."""
    name = "client-output-buffer-limit"
    before: Any = client.config_get(name)
    client.config_set(name, limit)
    try:
        yield
    finally:
        client.config_set(name, before[name])
