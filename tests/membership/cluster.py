"""Nodes as processes on one Redis."""

from __future__ import annotations

import contextlib
import urllib.request
from collections.abc import Iterator
from typing import Any

from tests.membership.processes import Helper
from tests.servers import RedisServer, free_port


@contextlib.contextmanager
def nodes_on(
    redis: RedisServer, count: int = 2, *, barrier: bool = True, round_trip: float = 0.0
) -> Iterator[list[str]]:
    """Run nodes and give their names, in the order of the partition.

    Args:
        redis: Their Redis.
        count: How many.
        barrier: See `freeim.Node`.
        round_trip: Seconds that each command of a node takes longer.
    """
    with contextlib.ExitStack() as stack:
        url = redis.unix_url
        if round_trip:
            proxy = stack.enter_context(Helper("delay_proxy", target=redis.port, round_trip=round_trip))
            url = f"redis://127.0.0.1:{proxy.answer()['port']}"
        names = [f"127.0.0.1:{free_port()}" for _ in range(count)]
        running = []
        for name in names:
            options: dict[str, Any] = {"bind": name, "node": name, "nodes": names, "redis_url": url}
            running.append(stack.enter_context(Helper("node_process", options=options, barrier=barrier)))
        for helper in running:
            helper.answer()
        yield names
        for helper in running:
            assert helper.end() == 0


def readiness(node: str) -> str:
    """Return what a node says about itself under /ready."""
    with urllib.request.urlopen(f"http://{node}/ready", timeout=10) as response:
        body: bytes = response.read()
    return body.decode()


@contextlib.contextmanager
def redis_without(how: str) -> Iterator[RedisServer]:
    """Run a Redis on which nodes have to do without CLIENT TRACKING: it has no ``CLIENT``, or no ``RESP3``."""
    with RedisServer(args=("--rename-command", "HELLO", "") if how == "RESP3" else ()) as server:
        if how == "CLIENT":
            server.command("ACL", "SETUSER", "default", "-client")
        yield server
