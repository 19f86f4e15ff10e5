"""Terminals come and go by the thousand: nothing of them stays behind, in the node or in Redis."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import pytest

from freeim.names import new_token
from tests.faults.nodes import pipeline
from tests.load.node import LoadedNode, loaded_node, redis_info
from tests.membership.terminals import NAMES, Ended, Refused, Terminal
from tests.node.harness import close_payload, frame, token_json, until
from tests.node.scrape import Scrape
from tests.servers import RedisServer

pytestmark = pytest.mark.slow  # on each Python the same

AT_ONCE = 250
WARM_UP = 1_500
CYCLES = 5_000
GROWTH = 1_500_000
"""Bytes of memory that may come on top of what the first cycles took: 300 a cycle, a fifth of what a terminal takes."""

_clients = itertools.count(1)


async def cycle(redis: RedisServer, node: LoadedNode, count: int) -> None:
    """Let terminals of clients that nobody has seen before come and go: politely, by a reset, and refused."""
    tokens = {next(_clients): new_token() for _ in range(count)}
    commands: list[tuple[str | int, ...]] = []
    for client, token in tokens.items():
        commands.append(("SET", NAMES.token(token), token_json(client), "EX", 60))
        for channel in ("everybody", f"of {client}"):
            commands.append(("HSET", NAMES.chan(channel), client, 0))
            commands.append(("HSET", NAMES.client(client), channel, 0))
            commands.append(("HINCRBY", NAMES.list_chan, channel, 1))
    pipeline(redis, commands)
    terminals = await asyncio.gather(*(Terminal.connect(node.name, token) for token in tokens.values()))
    for number, terminal in enumerate(terminals):
        assert terminal.transport is not None
        if number % 2:
            terminal.transport.abort()
        else:
            terminal.transport.write(frame(8, close_payload(1000)))
            with contextlib.suppress(Ended):
                await terminal.next()
            terminal.transport.close()
        await terminal.lost
    for token in list(tokens.values())[: count // 10]:
        with contextlib.suppress(Refused):
            await Terminal.connect(node.name, token)


async def all_gone(node: LoadedNode) -> Scrape:
    return await node.metrics_until(
        lambda found: found("sockets") == found("connections") == found("clients") == 0, "all have gone"
    )


async def test_after_thousands_that_came_and_went_nothing_is_left_and_nothing_has_grown(
    own_redis_server: RedisServer,
) -> None:
    redis = own_redis_server
    with loaded_node(redis) as node:
        keys = redis.command("DBSIZE")
        for _ in range(WARM_UP // AT_ONCE):
            await cycle(redis, node, AT_ONCE)
        await all_gone(node)
        descriptors, memory = node.descriptors(), node.memory()
        used = redis_info(redis, "used_memory")
        for _ in range(CYCLES // AT_ONCE):
            await cycle(redis, node, AT_ONCE)
        found = await all_gone(node)
        assert node.descriptors() <= descriptors
        assert node.memory() - memory < GROWTH
        await until(lambda: redis_info(redis, "tracking_total_keys") == 0, "Redis tracks nobody any more")
        assert redis.command("DBSIZE") == keys
        assert redis_info(redis, "used_memory") - used < GROWTH
        opened = WARM_UP + CYCLES
        assert found("handshakes_total", result="101") == opened
        assert found("handshakes_total", result="401") == opened // 10
        assert sum(found.labelled("closes_total").values()) == opened
