"""A node that loses Redis: what is published meanwhile arrives once, and in its order."""

from __future__ import annotations

import asyncio
import logging

import pytest

from freeim import ImHelper, RedisUnavailable
from tests.faults.proxy import Proxy
from tests.faults.sentinels import watched
from tests.node.harness import Peer, Running, direct, running, told, until
from tests.node.resuming import resumer
from tests.servers import RedisServer
from tests.stream.publishers import Publishers, on_stream

KEEPS_ALL = ("--appendonly", "yes", "--appendfsync", "always")


async def member(run: Running, client: int = 1, channel: str = "room") -> Peer:
    peer = await run.connect(client)
    run.join(client, channel)
    assert await peer.fence() == []
    return peer


async def more_are_sent(publishers: Publishers, count: int) -> None:
    sent = publishers.count()
    await until(lambda: publishers.count() >= sent + count, f"{count} more messages", 30)


async def is_back_after(run: Running, gaps: int) -> None:
    """Wait until the session has been lost once more than `gaps` times, and is up again."""
    await until(lambda: run.node._session.gaps > gaps and run.node._session.up, "Redis is back", 30)


async def last_of(helper: ImHelper, peer: Peer) -> list[str]:
    """Publish a last message, and return what came before it."""
    await asyncio.to_thread(helper.send_message, 0, peer.client, "the last")
    await until(lambda: peer.seen and peer.seen[-1] == '"the last"', "the last message", 30)
    return peer.seen[:-1]


async def test_with_cut_connections_each_message_of_several_publishers_arrives_once_in_order(
    redis_server: RedisServer,
) -> None:
    with Proxy(redis_server.port) as proxy, ImHelper(redis_server.url) as helper:
        async with running(redis_server, **on_stream(redis_url=proxy.url)) as run:
            peer = await member(run)
            with Publishers(redis_server.url, 1, "room") as publishers:
                for _ in range(6):
                    await more_are_sent(publishers, 50)
                    gaps = run.node._session.gaps
                    await asyncio.to_thread(proxy.cut)
                    await is_back_after(run, gaps)
            publishers.all_came_once_in_order(await last_of(helper, peer))
            assert publishers.count() > 300
            assert run.node._stream is not None
            assert run.node._stream.caught_up > 0
            assert run.node._stream.position.lost == 0


async def test_with_connections_refused_for_seconds_nothing_is_lost(redis_server: RedisServer) -> None:
    with Proxy(redis_server.port) as proxy, ImHelper(redis_server.url) as helper:
        async with running(redis_server, **on_stream(redis_url=proxy.url)) as run:
            peer = await member(run)
            with Publishers(redis_server.url, 1, "room", pause=0.001) as publishers:
                await until(lambda: publishers.count() > 50)
                await asyncio.to_thread(proxy.refuse)
                await asyncio.to_thread(proxy.cut)
                await asyncio.sleep(2)
                await asyncio.to_thread(proxy.refuse, False)
                await run.is_back()
            publishers.all_came_once_in_order(await last_of(helper, peer))


async def test_what_is_in_a_stream_is_read_in_parts_and_large_messages_get_nobody_cut(
    redis_server: RedisServer,
) -> None:
    redis_server.command("CONFIG", "SET", "client-output-buffer-limit", "pubsub 4mb 2mb 5")
    try:
        with Proxy(redis_server.port) as proxy, ImHelper(redis_server.url) as helper:
            async with running(redis_server, **on_stream(redis_url=proxy.url, queue_limit=2**28)) as run:
                peer = await member(run)
                await asyncio.to_thread(proxy.refuse)
                await asyncio.to_thread(proxy.cut)
                await until(lambda: not run.node._session.up)

                def publish() -> None:
                    for number in range(300):
                        helper.send_message(0, 1, f"{number:03} {'x' * 100_000}")

                await asyncio.to_thread(publish)
                await asyncio.to_thread(proxy.refuse, False)
                await run.is_back()
                texts = await last_of(helper, peer)
                assert [int(text[1:4]) for text in texts] == list(range(300))
                assert run.node._session.gaps == 1, "Redis cut the node for asking for too much"
    finally:
        redis_server.command("CONFIG", "SET", "client-output-buffer-limit", "pubsub 32mb 8mb 60")


@pytest.mark.parametrize("tracking", [True, False])
async def test_a_redis_that_is_killed_and_restarted_with_its_data_loses_nothing_that_it_took(tracking: bool) -> None:
    args = KEEPS_ALL if tracking else (*KEEPS_ALL, "--rename-command", "CLIENT", "")
    with RedisServer(args=args) as redis, ImHelper(redis.url, nodes=["a"], bus="stream") as helper:
        async with running(redis, **on_stream()) as run:
            assert run.node._session.tracking is tracking
            peer = await member(run)
            with Publishers(redis.url, 1, "room") as publishers:
                for _ in range(2):
                    await more_are_sent(publishers, 100)
                    gaps = run.node._session.gaps
                    await asyncio.to_thread(redis.stop)
                    await asyncio.sleep(0.5)
                    await asyncio.to_thread(redis.start)
                    await is_back_after(run, gaps)
            publishers.all_came_once_in_order(await last_of(helper, peer))


async def test_without_tracking_what_waits_for_the_members_of_its_channel_outlives_a_cut(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts as handled, and is not read again: so it must not be dropped with the look-up of the members."""
    with Proxy(redis_server.port) as proxy, ImHelper(redis_server.url) as helper:
        async with running(redis_server, **on_stream(redis_url=proxy.url)) as run:
            run.node._bus.fall_back()
            peer = await member(run)
            session, stream = run.node._session, run.node._stream
            assert stream is not None
            asked: list[object] = []

            def never_answer(_callback: object, *args: object) -> None:
                asked.append(args)

            with monkeypatch.context() as patched:
                patched.setattr(session, "send", never_answer)
                for number in range(3):
                    helper.send_chan_message(0, "room", number)
                await until(lambda: stream.position.number == 3 and asked, "the node asks for the members")
            await asyncio.to_thread(proxy.cut)
            await run.is_back()
            assert await last_of(helper, peer) == ["0", "1", "2"]


async def test_what_is_published_on_an_empty_redis_before_the_node_is_back_arrives(
    own_redis_server: RedisServer,
) -> None:
    redis = own_redis_server
    with ImHelper(redis.url, nodes=["a"], bus="stream") as helper, Proxy(redis.port) as proxy:
        async with running(redis, **on_stream(redis_url=proxy.url)) as run:
            peer = await member(run)
            for number in range(20):
                helper.send_message(0, 1, number)
            assert await peer.fence() == [str(number) for number in range(20)]
            await asyncio.to_thread(proxy.refuse)
            await asyncio.to_thread(redis.stop)
            await asyncio.to_thread(redis.start)
            for number in range(10):
                helper.send_message(0, 1, f"new {number}")
            await asyncio.to_thread(proxy.refuse, False)
            assert await last_of(helper, peer) == [f'"new {number}"' for number in range(10)]
            helper.send_message(0, 1, "live")
            await until(lambda: peer.seen[-1] == '"live"')
            assert len(peer.seen) == 12


async def test_a_redis_whose_clock_is_behind_takes_nothing_new_for_old(
    own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a failover to a machine with another clock: the ids there are smaller than those that are known."""
    redis = own_redis_server
    caplog.set_level(logging.INFO, "freeim")
    with ImHelper(redis.url, nodes=["a"], bus="stream") as helper, Proxy(redis.port) as proxy:
        async with running(redis, **on_stream(redis_url=proxy.url)) as run:
            peer = await member(run)
            helper.send_message(0, 1, "by the old clock")
            assert await peer.next() == '"by the old clock"'
            await asyncio.to_thread(proxy.refuse)
            await asyncio.to_thread(redis.stop)
            await asyncio.to_thread(redis.start)
            names = run.names
            redis.command("SET", names.sent("a"), 1)
            redis.command("XADD", names.stream("a"), "5-1", "n", 1, "m", direct([1], "lost with the old clock"))
            await asyncio.to_thread(proxy.refuse, False)
            await run.is_back()
            for number in (2, 3):
                redis.command("SET", names.sent("a"), number)
                payload = direct([1], f"by the new clock {number}")
                redis.command("XADD", names.stream("a"), f"5-{number}", "n", number, "m", payload)
                redis.command("PUBLISH", names.server("a"), f"__FreeIM__(Stream)5-{number} {number} {payload}")
            await until(lambda: len(peer.seen) >= 2, f"both; there are {peer.seen}")
            assert peer.seen == ['"by the new clock 2"', '"by the new clock 3"']
            assert any("has lost messages of this node's stream" in line for line in told(caplog, logging.WARNING))


async def test_after_a_failover_all_that_the_new_master_has_arrives() -> None:
    with watched(1) as redis, ImHelper(redis.url) as helper:
        async with running(redis.master, **on_stream(redis_url=redis.url)) as run:
            peer = await member(run)
            for number in range(20):
                helper.send_message(0, 1, f"old {number}")
            assert len(await peer.fence()) == 20
            redis.wait_replicated()
            await asyncio.to_thread(redis.master.stop)
            await asyncio.to_thread(redis.wait_failover)
            sent = []
            for number in range(200):
                try:
                    await asyncio.to_thread(helper.send_message, 0, 1, number)
                except RedisUnavailable as error:
                    assert not error.maybe_sent
                else:
                    sent.append(str(number))
                await asyncio.sleep(0.005)
            assert len(sent) > 100
            await until(lambda: peer.seen and peer.seen[-1] == sent[-1], "the last one", 20)
            assert peer.seen == sent


async def test_what_was_trimmed_is_counted_exactly_and_told(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with Proxy(redis_server.port) as proxy, ImHelper(redis_server.url) as helper:
        async with running(redis_server, **on_stream(redis_url=proxy.url, stream_length=100)) as run:
            peer = await member(run)
            helper.send_message(0, 1, "first")
            assert await peer.next() == '"first"'
            await asyncio.to_thread(proxy.refuse)
            await asyncio.to_thread(proxy.cut)
            await until(lambda: not run.node._session.up)
            for number in range(1000):
                helper.send_message(0, 1, number)
            await asyncio.to_thread(proxy.refuse, False)
            texts = await last_of(helper, peer)
            kept = len(texts)
            assert 100 <= kept < 1000, "Redis trims whole nodes of the stream, and keeps the length at least"
            assert texts == [str(number) for number in range(1000 - kept, 1000)]
            assert run.node._stream is not None
            assert run.node._stream.position.lost == 1000 - kept
            assert f"{1000 - kept} messages to this node are lost" in " ".join(told(caplog, logging.WARNING))


async def test_a_flush_of_redis_loses_nothing_that_comes_after_it(redis_server: RedisServer) -> None:
    with ImHelper(redis_server.url, nodes=["a"], bus="stream") as helper:
        async with running(redis_server, **on_stream()) as run:
            peer = await member(run)
            for number in range(30):
                helper.send_message(0, 1, number)
                if number == 15:
                    redis_server.command("FLUSHALL")
            await until(lambda: len(peer.seen) == 30, f"all; there are {peer.seen}")
            assert peer.seen == [str(number) for number in range(30)]


async def test_a_plain_publish_is_heard_while_the_node_is_there_and_not_kept(redis_server: RedisServer) -> None:
    async with running(redis_server, **on_stream()) as run:
        peer = await member(run)
        run.publish(direct([1], "plain"))
        assert await peer.next() == '"plain"'
        assert not redis_server.command("EXISTS", run.names.stream("a"))
    assert run.publish(direct([1], "to nobody")) == 0
    async with running(redis_server, **on_stream()) as run:
        peer = await run.connect(1)
        assert await peer.fence() == []


async def test_the_position_is_written_while_messages_come_and_nothing_when_none_do(
    redis_server: RedisServer,
) -> None:
    with ImHelper(redis_server.url) as helper:
        async with running(redis_server, **on_stream(stream_grace=0)) as run:
            key = run.names.position("a")
            for number in range(300):
                helper.send_message(0, 1, number)
            assert run.node._stream is not None
            await until(lambda: (redis_server.command("GET", key) or b"").endswith(b" 300"), "the position is written")
            assert redis_server.command("XLEN", run.names.stream("a")) <= 101, "what is behind it is forgotten"
            await asyncio.sleep(0.3)
            assert run.node._stream._timers[0] is None, "an idle node wakes up for nothing"


@pytest.mark.parametrize("kept", [True, False])
async def test_what_a_full_queue_drops_is_read_from_the_stream_and_is_lost_only_where_it_was_trimmed(
    redis_server: RedisServer, kept: bool
) -> None:
    with ImHelper(redis_server.url, nodes=["a"], bus="stream") as helper:
        options = on_stream(bus_queue_limit=100_000, queue_limit=2**28, resume_window=60.0)
        async with running(redis_server, **options) as run:
            terminal, peer, bus = await resumer(run, 1), await run.connect(2), run.node._bus
            reader = run.node._session._reader
            assert reader is not None
            reader._gate = lambda: False  # as after a standstill, until the next beat has been answered
            for number in range(60):
                await asyncio.to_thread(helper.send_message, 0, [1, 2], f"{number:03} {'x' * 10_000}")
            if not kept:
                redis_server.command("XTRIM", run.names.stream("a"), "MAXLEN", 10)
            reader._gate = None
            reader.go_on()
            await until(lambda: peer.seen and peer.seen[-1].startswith('"059'), "the last of them", 30)
            numbers = [int(text[1:4]) for text in peer.seen]
            assert run.node._stream is not None
            lost = run.node._stream.position.lost
            assert numbers == sorted(set(numbers))
            # What it dropped first it has begun to read before the rest was published.
            assert len(numbers) == 60 if kept else numbers[-10:] == [*range(50, 60)] and lost > 0
            assert (lost, bus.count_lost()) == (60 - len(numbers), 0)
            await terminal.fence()
            await (await terminal.lose()).connect()
            assert terminal.missed is not kept
