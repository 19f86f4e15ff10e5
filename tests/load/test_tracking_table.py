"""More clients than Redis can track: every message reaches whom it should, before the node notices and afterwards."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from tests.faults.nodes import ask, connect_all, tell_channel
from tests.load.node import LoadedNode, loaded_node, redis_info
from tests.membership.terminals import NAMES, Terminal
from tests.node.harness import join, leave
from tests.servers import RedisServer

pytestmark = pytest.mark.slow  # on each Python the same

KEYS = 100
"""That Redis has room for."""
CLIENTS = 300

_numbers = itertools.count()


async def membership_holds(redis: RedisServer, node: LoadedNode, terminals: dict[int, Terminal]) -> None:
    """Let one after another join and leave a channel, and show that it gets just what is sent in between."""
    for client in (1, 150, 299):
        mark = f"{next(_numbers)}"
        join(redis, NAMES, client, "side")
        tell_channel(redis, [node.name], "side", f"in {mark}")
        assert await terminals[client].next() == f'"in {mark}"'
        leave(redis, NAMES, client, "side")
        tell_channel(redis, [node.name], "side", f"out {mark}")
        tell_channel(redis, [node.name], "room", f"fence {mark}")
        for terminal in terminals.values():
            assert await terminal.next() == f'"fence {mark}"'


async def test_messages_are_right_before_the_node_gives_tracking_up_and_after_it_and_it_says_so_everywhere(
    own_redis_server: RedisServer,
) -> None:
    redis = own_redis_server
    redis.command("CONFIG", "SET", "tracking-table-max-keys", KEYS)
    with loaded_node(redis) as node:
        assert "by client, with CLIENT TRACKING" in node.banner
        terminals = await connect_all(redis, node.name, range(1, CLIENTS + 1), "room")
        assert (await node.metrics())("redis_tracking") == 1
        rounds = 0
        async with asyncio.timeout(60):
            while (await node.metrics())("redis_tracking"):
                await membership_holds(redis, node, terminals)
                rounds += 1
        assert rounds, "it has not been looked at while the table was too small"
        assert f"more clients than tracking-table-max-keys ({KEYS}) in this Redis" in node.log
        assert ask(node.name) == (200, "ready, without CLIENT TRACKING: channel messages cost a look-up each\n")
        await membership_holds(redis, node, terminals)

        # It stays so until it connects again; then Redis is asked anew, and may have more room.
        redis.command("CONFIG", "SET", "tracking-table-max-keys", 0)
        redis.kill_clients("pubsub")
        await node.metrics_until(lambda found: found("redis_tracking") and found("redis_up"), "it asks Redis anew")
        assert ask(node.name) == (200, "ready\n")
        await membership_holds(redis, node, terminals)
        assert redis_info(redis, "tracking_total_keys") == CLIENTS


async def test_a_node_that_starts_where_redis_refuses_to_track_says_so_in_its_banner(
    own_redis_server: RedisServer,
) -> None:
    redis = own_redis_server
    redis.command("ACL", "SETUSER", "default", "-client")
    with loaded_node(redis) as node:
        assert "by channel, as FreeIM does it (CLIENT TRACKING was refused" in node.banner
        assert (await node.metrics())("redis_tracking") == 0
