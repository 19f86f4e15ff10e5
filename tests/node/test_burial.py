"""What a killed node left in Redis is taken out by its successor, however much it is."""

from __future__ import annotations

from freeim.names import Names
from tests.node.harness import Running
from tests.servers import RedisServer, encode_command

MANY = 3000
"""Far more than one script takes: a big hash that shrinks has long runs of empty buckets."""


async def test_a_dead_predecessor_of_any_size_is_taken_out_once(redis_server: RedisServer) -> None:
    names = Names("im_v2_ws")
    with redis_server.wire() as wire:
        commands: list[tuple[str, ...]] = [("HSET", names.shares, "dead", "127.0.0.1:6001")]
        for client in map(str, range(1, MANY + 1)):
            commands += [
                ("HSET", names.share("dead"), client, f'{client} {{"Item1":{client},"Item2":"m{client}"}}'),
                ("HINCRBY", names.online, client, "1"),
                ("HSET", names.chan("room"), client, "0"),
                ("HSET", names.client(client), "room", "0"),
                ("HINCRBY", names.list_chan, "room", "1"),
            ]
        wire.sock.sendall(b"".join(map(encode_command, commands)))
        for _ in commands:
            wire.read()
    running = Running(redis_server, bind="127.0.0.1:0", node="127.0.0.1:6001")
    async with running.events() as events, running:
        heard = await events.heard()
        assert sorted(heard) == sorted(
            (names.event_offline, f'{{"Item1":{client},"Item2":"m{client}","Item3":0}}')
            for client in range(1, MANY + 1)
        )
        assert running.online == {}
        assert running.keys() == {
            names.nodes,
            names.shares,
            names.lease("127.0.0.1:6001"),
            names.alive(running.node._presence.epoch),
        }
        assert list(redis_server.hash(names.shares)) == [running.node._presence.epoch]
