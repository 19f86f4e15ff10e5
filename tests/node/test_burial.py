"""What a killed node left in Redis is taken out by its successor, however much it is, or by its peers, in good time."""

from __future__ import annotations

from typing import Any

from freeim.names import Names
from freeim.node.burial import LATE
from freeim.node.presence import LEASE_MS
from freeim.node.session import BEAT_INTERVAL
from tests.node.harness import Running, running
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


class Watched:
    """Another node's presence, as Redis has it, and the looks of a node at it."""

    def __init__(self, run: Running) -> None:
        self._run = run
        self._alive = run.names.alive("other")
        run.server.command("HSET", run.names.shares, "other", "b")
        run.server.command("HSET", run.names.share("other"), "1", '1 {"Item1":1,"Item2":"m"}')
        run.server.command("HSET", run.names.online, "1", 1)

    def live(self) -> None:
        self._run.server.command("SET", self._alive, "b")

    def die(self) -> None:
        self._run.server.command("DEL", self._alive)

    async def look(self, now: float, **options: Any) -> bool:
        """Let the node look at a time, and tell whether the other has been buried."""
        burier = self._run.node._burier
        await burier.beat(now, **{"broken": False, **options})
        if burier._burial is not None:
            await burier._burial
        return self._run.online == {}


async def unbroken(other: Watched, since: float) -> float:
    """Beat for as long as a node must before it trusts what it sees; return when it first does."""
    first_look = since + LEASE_MS / 1000
    while since < first_look - BEAT_INTERVAL:
        since += BEAT_INTERVAL
        assert not await other.look(since)
    return first_look


async def test_a_dead_node_is_buried_after_two_looks_of_an_unbroken_life(redis_server: RedisServer) -> None:
    async with running(redis_server, node="a", nodes=("a", "b")) as run:
        other = Watched(run)
        assert not await other.look(1000.0), "it has only just begun"
        now = await unbroken(other, 1000.0)
        assert not await other.look(now), "the first look"
        assert await other.look(now + BEAT_INTERVAL)
        assert "other" not in redis_server.hash(run.names.shares)


async def test_a_node_that_lives_again_between_two_looks_is_not_buried(redis_server: RedisServer) -> None:
    async with running(redis_server, node="a", nodes=("a", "b")) as run:
        other = Watched(run)
        assert not await other.look(1000.0)
        now = await unbroken(other, 1000.0)
        for _ in range(3):
            assert not await other.look(now)
            other.live()
            assert not await other.look(now + BEAT_INTERVAL)
            other.die()
            now += 2 * BEAT_INTERVAL
        assert not await other.look(now)
        assert await other.look(now + BEAT_INTERVAL), "and now it is dead"


async def test_a_node_whose_own_life_was_broken_waits_a_whole_lease_before_it_looks(redis_server: RedisServer) -> None:
    async with running(redis_server, node="a", nodes=("a", "b")) as run:
        other = Watched(run)
        assert not await other.look(1000.0)
        now = await unbroken(other, 1000.0)
        for pause, broken in ((LATE + 0.1, False), (BEAT_INTERVAL, True)):
            assert not await other.look(now), "a first look"
            now += pause
            assert not await other.look(now, broken=broken), "the second does not count"
            now = await unbroken(other, now)
        assert not await other.look(now)
        assert await other.look(now + LATE - 0.1), "a little late is no break"
