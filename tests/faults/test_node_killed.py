"""A node that is killed: its peers, or its successor, take out all that it had counted, once."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest

from freeim.limits import raise_descriptor_limit
from tests.faults.nodes import (
    BURIED_SECONDS,
    DEFAULT,
    LEASE,
    SHORT,
    Events,
    connect_all,
    no_ghosts,
    nodes_on,
    start,
    tell_channel,
)
from tests.node.harness import Running, until
from tests.servers import RedisServer, encode_command

MANY = 5000
LIVING = 50


@pytest.fixture(autouse=True)
def many_descriptors() -> None:
    assert raise_descriptor_limit() > MANY + 500


async def kill_one_of_three(redis: RedisServer, program: tuple[str, ...], within: float) -> None:
    with nodes_on(redis, 3, program=program) as nodes:
        first, second, third = nodes
        dying = await connect_all(redis, first, range(3, 3 * MANY + 1, 3), "room")
        living = await connect_all(redis, second, range(1, 3 * LIVING, 3), "room")
        living |= await connect_all(redis, third, range(2, 3 * LIVING, 3), "room")
        assert len(dying) == MANY
        async with Events(redis) as events:
            nodes[first].tell(signal.SIGKILL)
            await events.some(MANY, within)
            await asyncio.sleep(LEASE)  # time for a second one of any of them
            assert sorted(events.offline) == [(client, 0) for client in sorted(dying)], "once each"
            assert events.online == []
        no_ghosts(redis, living, "room")
        tell_channel(redis, nodes, "room", "still here")
        for terminal in living.values():
            assert await terminal.next() == '"still here"'
        for terminal in (*dying.values(), *living.values()):
            await terminal.close()


async def test_the_peers_of_a_killed_node_take_its_5000_connections_out_once(redis_server: RedisServer) -> None:
    await kill_one_of_three(redis_server, SHORT, BURIED_SECONDS)


@pytest.mark.slow
async def test_a_killed_node_is_taken_out_within_40_seconds(redis_server: RedisServer) -> None:
    await kill_one_of_three(redis_server, DEFAULT, 40)


async def test_a_fresh_node_of_the_same_name_starts_clean_at_once(redis_server: RedisServer) -> None:
    with nodes_on(redis_server, 1, program=DEFAULT) as nodes:
        [(name, node)] = nodes.items()
        dying = await connect_all(redis_server, name, range(1, MANY + 1), "room")
        async with Events(redis_server) as events:
            node.tell(signal.SIGKILL)
            node.wait()
            began = time.monotonic()
            with start(redis_server, name, [name], program=DEFAULT) as fresh:
                fresh.banner()
                # The lease of the dead one would have lasted 15 s; this is Python's start and 50 scripts.
                assert time.monotonic() - began < 12
                await events.some(MANY, 5)
                assert sorted(events.offline) == [(client, 0) for client in sorted(dying)]
                no_ghosts(redis_server, (), "room")
                back = await connect_all(redis_server, name, [1])
                await until(lambda: events.online == [(1, 1)], "the first one is counted again")
                await back[1].close()
        for terminal in dying.values():
            await terminal.close()


async def test_two_that_bury_the_same_node_at_the_same_moment_take_it_out_once(redis_server: RedisServer) -> None:
    first, second = (Running(redis_server, node=name, nodes=("a", "b", "c")) for name in "ab")
    names = first.names
    async with first, second, first.events() as events:
        commands: list[tuple[str, ...]] = [("HSET", names.shares, "dead", "c")]
        for client in map(str, range(2, 3 * MANY, 3)):
            commands.append(("HSET", names.share("dead"), client, f'{client} {{"Item1":{client},"Item2":"m"}}'))
            commands.append(("HINCRBY", names.online, client, "1"))
        first.wire.sock.sendall(b"".join(map(encode_command, commands)))
        for _ in commands:
            first.wire.read()
        taken = await asyncio.gather(*(run.node._presence.bury("dead") for run in (first, second)))
        assert sum(taken) == MANY
        assert all(taken), "both took part"
        assert len(await events.heard()) == MANY
        assert first.online == {}
        assert "dead" not in redis_server.hash(names.shares)
