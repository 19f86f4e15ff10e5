"""Redis has no memory left, or cuts a node off for which too much waits."""

from __future__ import annotations

import asyncio

import pytest
from websockets.exceptions import InvalidStatus

from freeim import ImHelper, RedisUnavailable
from tests.faults.outage import ASK, served_again
from tests.node.harness import direct, event, running, told, until
from tests.node.test_reconcile import ALL_EVENTS, cut, deliver_to, gap, memberships, on_call, three_connections
from tests.servers import RedisServer


@pytest.mark.usefixtures("quick")
async def test_without_memory_messages_go_on_and_nobody_can_connect_or_join(
    own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "freeim")
    redis = own_redis_server
    with ImHelper(redis.url) as helper:
        async with running(redis, node="a", nodes=("a",)) as run, run.events() as events:
            peers = await three_connections(run)
            late = await run.connect(4)
            assert await late.fence() == []
            before = memberships(run)
            await events.heard()
            token = run.token(9, seconds=60)
            redis.command("CONFIG", "SET", "maxmemory", 1)
            await until(lambda: run.node._session.refused, "a beat was refused", 30)
            status, _, body = await run.http(ASK)
            assert status == 503
            assert b"Redis refuses to write: " in body

            beats = run.node._presence._beats
            await until(lambda: run.node._presence._beats > beats + 5, "for longer than it would bear silence")
            assert run.node._session.gaps == 0
            await deliver_to(run, peers)
            assert helper.send_message(0, 1, "published").silent == ()
            assert await peers[0].next() == '"published"'
            with pytest.raises(RedisUnavailable, match="used memory") as caught:
                helper.join_chan(1, "elsewhere")
            assert caught.value.maybe_sent is False
            with pytest.raises(RedisUnavailable, match="used memory"):
                helper.prev_connect_server(1)
            with pytest.raises(InvalidStatus, match="503") as refusal:
                await run.connect_with(token, 9)
            assert refusal.value.response.body == b"Redis refuses to write at the moment\n"
            assert redis.command("EXISTS", run.names.token(token)) == 1, "it can be used once there is memory"

            await late.close()
            assert await events.next() == [(run.names.event_offline, event(4, 0))]
            assert run.online == {"1": "1", "2": "2"}

            # A gap, and the end of the lease, which cannot be renewed: neither stops the messages.
            await cut(run)
            redis.command("DEL", run.names.alive(run.node._presence.epoch), run.names.lease("a"))
            await served_again(run, *peers)
            await until(lambda: run.node._session.up, "the session is up")
            await deliver_to(run, peers)
            assert (await run.http(ASK))[0] == 503
            assert all(peer.is_open for peer in peers)

            redis.command("CONFIG", "SET", "maxmemory", 0)
            await until(lambda: not run.node._session.refused, "a beat was answered", 30)
            assert (await run.http(ASK))[0] == 200
            nine = await run.connect_with(token, 9)
            assert await nine.fence() == []
            assert run.online == {"1": "1", "2": "2", "9": "1"}
            assert memberships(run) == before
            assert await events.heard() == [(run.names.event_online, event(9, 1))]
            lines = told(caplog)
            assert sum("Redis refuses to write (" in line for line in lines) == 1
            assert lines.count("Redis writes again") == 1


@pytest.mark.usefixtures("quick")
async def test_what_closed_during_a_gap_without_memory_is_taken_out_once_there_is_some(
    own_redis_server: RedisServer,
) -> None:
    async with running(own_redis_server) as run, run.events() as events:
        first, second, third = await three_connections(run)
        await events.heard()
        own_redis_server.command("CONFIG", "SET", "maxmemory", 1)
        await until(lambda: run.node._session.refused, "a beat was refused", 30)
        async with gap(run, lambda: cut(run)):
            await first.close()
            await until(lambda: len(run.node._connections.living) == 2)
        await served_again(run, second, third)
        assert run.online == {"1": "1", "2": "2"}, "it was not compared"
        own_redis_server.command("CONFIG", "SET", "maxmemory", 0)
        assert await events.next() == [(run.names.event_offline, event(1, 0))]
        assert run.online == {"2": "2"}


async def test_what_could_not_be_put_back_for_want_of_memory_is_put_back_by_the_next_beat(
    own_redis_server: RedisServer,
) -> None:
    redis = own_redis_server
    async with running(redis) as run, run.events() as events:
        await three_connections(run)
        await events.heard()

        async def give_memory() -> None:
            redis.command("CONFIG", "SET", "maxmemory", 0)

        async def take_memory() -> None:
            redis.command("CONFIG", "SET", "maxmemory", 1)

        epoch = run.node._presence.epoch
        redis.command("DEL", run.names.share(epoch), run.names.online, run.names.alive(epoch))
        on_call(run, "PING", give_memory, after=True)
        on_call(run, "HKEYS", take_memory, after=True)
        run.node._session.beat_now()
        await until(lambda: not run.node._presence.complete, "nothing could be put back")
        assert await events.heard() == []
        run.node._session.beat_now()
        assert sorted(payload for _, payload in await events.next(3)) == ALL_EVENTS
        assert run.online == {"1": "1", "2": "2"}


async def test_a_node_that_redis_cuts_off_for_its_output_buffer_goes_on_and_gets_nothing_twice(
    own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    redis = own_redis_server
    redis.command("CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 0 0")
    async with running(redis, queue_limit=2**30) as run, run.events() as events:
        assert any("for which more than 1048576 bytes wait" in line for line in told(caplog, 30))
        peers = await three_connections(run)
        await events.heard()
        # Two messages to a pipeline fit; all of them at once are more than the sockets and the limit hold.
        size = 500_000
        texts = [f"{number:04}" + "x" * size for number in range(60)]
        link = run.node._session._reader
        assert link is not None
        reader = link._transport
        assert reader is not None
        reader.pause_reading()  # a node that is busy with something else
        await asyncio.to_thread(run.publish_all, [direct([1, 2], text) for text in texts])
        reader.resume_reading()
        await until(lambda: run.node._session.gaps == 1, "Redis has cut it off")
        await served_again(run, *peers)
        for peer in peers:
            assert peer.is_open
            numbers = [int(text[1:5]) for text in peer.seen if len(text) > size]
            assert numbers == sorted(set(numbers)), "in order, and nothing twice"
            assert len(numbers) < len(texts)
            peer.seen.clear()
        await until(lambda: run.node._session.up, "the session is up")
        await deliver_to(run, peers)
        assert await events.heard() == []
