"""What a dead node leaves behind may be more than can be taken out while its successor starts."""

from __future__ import annotations

import asyncio

import pytest

import freeim.node.burial
import freeim.node.session
from freeim.names import Names
from tests.faults.proxy import Proxy
from tests.node.harness import Running, direct, event, token_json, until
from tests.servers import RedisServer, encode_command

MANY = 50_000
RECOVERY_LIMIT = 2.0
ROUND_TRIP = 0.01
"""Seconds. 500 scripts one after the other take more than twice as long as the start may."""
NAMES = Names("im_v2_ws")
NAME = "127.0.0.1:6001"


def leave_behind(redis: RedisServer) -> None:
    """Write what a node with many connections has in Redis when it is killed, as the open script does."""
    commands: list[tuple[str | int, ...]] = [("HSET", NAMES.shares, "dead", NAME)]
    for client in range(1, MANY + 1):
        commands.append(("HSET", NAMES.share("dead"), client, f"{client} {token_json(client, 'm')}"))
        commands.append(("HINCRBY", NAMES.online, client, 1))
        commands.append(("HSET", NAMES.chan("room"), client, 0))
        commands.append(("HSET", NAMES.client(client), "room", 0))
    commands.append(("HSET", NAMES.list_chan, "room", MANY))
    with redis.wire() as wire:
        for start in range(0, len(commands), 1000):
            some = commands[start : start + 1000]
            wire.sock.sendall(b"".join(map(encode_command, some)))
            for _ in some:
                wire.read()


async def test_the_successor_of_a_node_with_50000_connections_serves_before_all_are_taken_out(
    own_redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis = own_redis_server
    monkeypatch.setattr(freeim.node.session, "RECOVERY_LIMIT", RECOVERY_LIMIT)
    monkeypatch.setattr(freeim.node.burial, "BEAT_INTERVAL", RECOVERY_LIMIT / 4)
    await asyncio.to_thread(leave_behind, redis)
    with Proxy(redis.port, ROUND_TRIP) as proxy:
        run = Running(redis, redis_url=proxy.url, node=NAME)
        async with run.events() as events, run:
            left = redis.hash(NAMES.share("dead"))
            assert len(left) > MANY / 2, "it serves already"
            # Who comes back before it has been taken out is online all the time, and stays a member.
            back = int(next(reversed(left.values())).split()[0])
            peer = await run.connect(back)
            assert run.online[str(back)] in ("1", "2")
            await until(lambda: "dead" not in redis.hash(NAMES.shares), "all are taken out", 90)
            assert run.online == {str(back): "1"}
            offline = [payload for channel, payload in await events.heard() if channel == NAMES.event_offline]
            assert len(offline) == len(set(offline)) == MANY, "once each"
            assert run.node._session.gaps == 0
            stayed = event(back, 1) in offline  # it had two connections for a moment
            assert redis.hash(NAMES.chan("room")) == ({str(back): "0"} if stayed else {})
            assert redis.hash(NAMES.list_chan) == ({"room": "1"} if stayed else {})
            run.publish(direct([back], "hi"))
            assert await peer.next() == '"hi"'
