"""What ``--bus stream`` costs: the helper, Redis and the node, against pub/sub; and what a kept message weighs."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import cast

import redis

from bench.outcome import Figure, Outcome, ratios
from bench.publisher import text
from bench.stand import QUIET, Settings, Stand, stand
from freeim import ImHelper, Raw, envelope
from freeim.names import Names

CONNECTIONS = 100
"""All sent here is for one client: more would only take time to connect."""


def run(settings: Settings) -> Outcome:
    """Send the same messages with either kind of bus in turn; what is sent is delivered and verified."""
    settings = replace(settings, connections=min(CONNECTIONS, settings.connections))
    calls = settings.many(5000)
    outcome = Outcome("stream", f"{calls} messages of {settings.size} bytes to one client")
    spent: dict[str, list[tuple[float, float, float]]] = {"pubsub": [], "stream": []}
    weights = []
    with (
        redis.Redis.from_url(settings.url) as client,
        stand(settings, {}, outcome) as plain,
        stand(settings, {}, outcome, (*QUIET, "--bus", "stream")) as kept,
    ):
        for number in range(settings.rounds):
            settings.progress(f"stream: round {number + 1} of {settings.rounds}")
            for kind, here in (("pubsub", plain), ("stream", kept)):
                spent[kind].append(_send(here, client, outcome, calls))
            weights.append(_weigh(kept, client, calls))
    figures = []
    for at, (name, meaning) in enumerate(
        (
            ("helper", "CPU of send_message, with a stream / without"),
            ("redis", "CPU of Redis for a message, with a stream / without"),
            ("node", "CPU of the node for a message, with a stream / without"),
        )
    ):
        values = ratios([each[at] for each in spent["stream"]], [each[at] for each in spent["pubsub"]])
        figures.append(Figure(f"stream_{name}_ratio", "lower", meaning, values))
    figures.append(Figure("stream_memory_ratio", "lower", "memory of a message that waits / its payload", weights))
    outcome.figures = figures
    return outcome


def _redis_cpu(client: redis.Redis) -> float:
    info = client.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


def _send(here: Stand, client: redis.Redis, outcome: Outcome, calls: int) -> tuple[float, float, float]:
    """Send messages one by one; return the CPU seconds of this process, of Redis and of the node."""
    stream = here.next_stream()
    messages = [Raw(text(stream, number, here.settings.size)) for number in range(1, calls + 1)]
    own = 0.0
    with ImHelper(here.settings.url, prefix=here.names.prefix) as helper:
        helper.prev_connect_server(1)  # so that the list of nodes has been read

        def send() -> None:
            nonlocal own
            own = time.process_time()
            for message in messages:
                helper.send_message(0, 1, message)
            own = time.process_time() - own

        before = _redis_cpu(client)
        node, _ = here.round(outcome, send, [1], calls)
        return own, _redis_cpu(client) - before, node


def _weigh(here: Stand, client: redis.Redis, calls: int) -> float:
    """Publish to a node that does not run; return the memory of a message there, by the bytes of its payload."""
    payload = envelope.direct(0, [1], envelope.direct_tail(text(1, 1, here.settings.size), False))
    prefix = f"{here.names.prefix}away"
    with ImHelper(here.settings.url, prefix=prefix, nodes=["a"], bus="stream") as helper, helper.batch() as batch:
        for _ in range(calls):
            batch.send_message(0, 1, Raw(text(1, 1, here.settings.size)))
    key = Names(prefix).stream("a")
    weight = int(cast("int", client.memory_usage(key, samples=0)))
    client.delete(key)
    return weight / calls / len(payload)
