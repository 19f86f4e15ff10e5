"""A node that has so much to put back that it takes longer than its lease: it lives meanwhile, for its peers too."""

from __future__ import annotations

import asyncio

from freeim.limits import raise_descriptor_limit
from tests.faults.nodes import BEAT, LEASE, SHORT, Events, connect_all, nodes_on, pipeline
from tests.membership.terminals import NAMES
from tests.node.harness import until
from tests.servers import RedisServer

MANY = 3000
CHANNELS = [f"room{number}" for number in range(250)]
"""Of each client: so many that to put all back takes several leases, on a quick machine too."""

# So that it is one comparison: a beat waits behind all that is put back.
PATIENT = (*SHORT[:-1], SHORT[-1].replace(f"SILENCE_LIMIT={2 * BEAT}", "SILENCE_LIMIT=60"))


def join_all(redis: RedisServer, clients: list[int]) -> None:
    """Make all clients members of all channels."""
    nobody = [part for channel in CHANNELS for part in (channel, 0)]
    everybody = [part for client in clients for part in (client, 0)]
    pipeline(redis, [("HSET", NAMES.client(client), *nobody) for client in clients])
    pipeline(redis, [("HSET", NAMES.chan(channel), *everybody) for channel in CHANNELS])
    pipeline(redis, [("HSET", NAMES.list_chan, channel, len(clients)) for channel in CHANNELS])


async def test_a_node_that_puts_much_back_is_not_buried_by_its_peers_meanwhile(own_redis_server: RedisServer) -> None:
    redis = own_redis_server
    assert raise_descriptor_limit() > MANY + 500
    with nodes_on(redis, 2, program=PATIENT) as nodes:
        first, second = nodes
        clients = list(range(2, 2 * MANY + 1, 2))
        join_all(redis, clients)
        terminals = await connect_all(redis, first, clients)
        await asyncio.sleep(LEASE + 2 * BEAT)  # so that the peer trusts what it sees
        async with Events(redis) as events:
            redis.command("FLUSHALL")
            await until(lambda: redis.command("EXISTS", NAMES.lease(first)), "it has begun")
            [epoch] = [epoch for epoch, name in redis.hash(NAMES.shares).items() if name == first]
            while "connections back" not in nodes[first].stderr:
                assert redis.command("EXISTS", NAMES.alive(epoch)) == 1, "alive all the time"
                await asyncio.sleep(0.02)
            await asyncio.sleep(LEASE + 4 * BEAT)  # time for a burial
            assert events.offline == []
            assert sorted(events.online) == [(client, 1) for client in clients], "once each"
        assert "took out" not in nodes[second].stderr
        assert redis.hash(NAMES.list_chan) == dict.fromkeys(CHANNELS, str(MANY))
        for terminal in terminals.values():
            await terminal.close()
