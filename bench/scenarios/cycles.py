"""Connections that come and go, a hundred thousand times: nothing of them may stay behind."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

import redis

from bench import tokens
from bench.metrics import Watched
from bench.outcome import Figure, Outcome
from bench.processes import Crowd, Node
from bench.stand import QUIET, Settings, run_names

CYCLES = 100_000
AT_ONCE = 1_000
WARM_UP = 0.1
"""Of the cycles: what memory is compared with."""
SETTLE_SECONDS = 20.0


def run(settings: Settings) -> Outcome:
    """Open and close connections, and compare descriptors, memory and Redis with what they were."""
    at_once = min(AT_ONCE, settings.connections)
    turns = max(2, settings.many(CYCLES) // at_once)
    warm = max(1, round(WARM_UP * turns))
    outcome = Outcome("cycles", f"{turns * at_once:,} connections, {at_once} at a time, that open and close")
    with contextlib.ExitStack() as stack:
        client, names = stack.enter_context(run_names(settings.url))
        watched = Watched()
        node = stack.enter_context(Node(settings.url, names.prefix, options=(*QUIET, *watched.options)))
        crowd = stack.enter_context(Crowd(at_once))
        keys = _keys(client, names.prefix)
        state = before = _State()
        for turn in range(turns):
            if turn % 10 == 0:
                settings.progress(f"cycles: {turn * at_once:,} of {turns * at_once:,}")
            # Other clients in each turn: what is left of one would not hide behind itself.
            crowd.first = 1 + turn * at_once
            issued = tokens.issue(client, names, at_once, crowd.first)
            outcome.check_opened(crowd.connect([node.port], issued), at_once)
            crowd.close()
            if turn + 1 in (warm, turns):
                until = time.monotonic() + SETTLE_SECONDS
                while watched.look()("sockets") and time.monotonic() < until:
                    time.sleep(0.05)
                state = _State.of(node, client)
                before = state if turn + 1 == warm else before
        outcome.faults.update(
            {
                "descriptors left": max(0, state.descriptors - before.descriptors),
                "keys left": len(_keys(client, names.prefix) - keys),
                "tracked keys left": max(0, state.tracked - before.tracked),
                "sockets left": int(watched.look()("sockets")),
            }
        )
        outcome.faults += {}  # without those that are 0
    grown = "memory at the end / after the first tenth"
    outcome.figures = [
        Figure("cycles_memory_ratio", "lower", f"the node's {grown}", [state.memory / before.memory]),
        Figure("cycles_redis_ratio", "lower", f"Redis's {grown}", [state.redis_memory / before.redis_memory]),
        Figure("cycles_memory", "lower", "memory of the node at the end", [state.memory / (1 << 20)], "MiB"),
    ]
    return outcome


def _keys(client: redis.Redis, prefix: str) -> set[bytes]:
    return set(client.scan_iter(f"{prefix}*", count=1000))


class _State:
    """What there is of a node at one moment."""

    descriptors = tracked = 0
    memory = redis_memory = 1

    @classmethod
    def of(cls, node: Node, client: redis.Redis) -> _State:
        found = cls()
        info: Any = client.info("everything")
        found.descriptors = len(os.listdir(f"/proc/{node.pid}/fd"))
        found.memory, found.redis_memory = node.memory(), info["used_memory"]
        found.tracked = info["tracking_total_keys"]
        return found
