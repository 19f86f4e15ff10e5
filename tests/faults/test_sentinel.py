"""Redis fails over under Sentinels: nodes and helpers follow, and what the new master has lost is put back."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time

import pytest
from redis.sentinel import Sentinel

from freeim import AsyncImHelper, Event, ImHelper, RedisUnavailable
from freeim.node.sentinel import ask_sentinels
from freeim.redis_url import parse_redis_url
from tests.faults.outage import ASK, Readiness, served_again
from tests.faults.sentinels import watched
from tests.node.harness import Running, bounded, refused, told, until
from tests.node.test_reconcile import deliver_to, memberships, three_connections
from tests.servers import RedisServer, free_port


def move_to(run: Running, server: RedisServer) -> None:
    """From here on the test looks at another server."""
    run.wire.close()
    run.server, run.wire = server, server.wire()


async def test_node_and_helpers_follow_a_failover_within_6_s_of_the_promotion() -> None:
    with watched(3) as redis, ImHelper(redis.url) as helper:
        async with (
            AsyncImHelper(redis.url) as async_helper,
            Running(redis.master, redis_url=redis.url, node="a", nodes=("a",)) as run,
            Readiness(run) as readiness,
        ):
            heard: list[Event] = []
            with helper.event_bus(heard.append, heard.append) as bus:
                peers = await three_connections(run)
                helper.join_chan(1, "by helper")
                before = run.online, run.share, memberships(run)
                await until(lambda: len(heard) == 3, "the bus hears")
                redis.wait_replicated()
                lost = time.monotonic()
                redis.master.stop()
                for send in (helper.send_message, lambda *args: asyncio.run(async_send(redis.url, *args))):
                    began = time.monotonic()
                    with pytest.raises(RedisUnavailable):
                        await asyncio.to_thread(send, 0, 1, "x")
                    assert time.monotonic() - began < 8
                await asyncio.to_thread(redis.wait_failover)
                back = time.monotonic()
                move_to(run, redis.replica)
                served = await served_again(run, *peers)
                await until(lambda: run.node._session.up, "the session is up")
                assert all(peer.is_open for peer in peers)
                assert (run.online, run.share, memberships(run)) == before
                await deliver_to(run, peers)
                assert helper.send_message(0, 1, "sync").silent == ()
                assert (await async_helper.send_message(0, 1, "async")).silent == ()
                assert [await peers[0].next() for _ in range(2)] == ['"sync"', '"async"']
                await until(lambda: bus.subscribed, "the bus has followed")
                await run.connect(5)
                await until(lambda: [each.client_id for each in heard] == [1, 2, 2, 5], "and hears; nothing else came")
                await readiness.ready_after(served)
        readiness.told_the_truth(lost, back - 1.0)


async def async_send(url: str, sender: int, receiver: int, message: str) -> None:
    async with AsyncImHelper(url) as helper:
        await helper.send_message(sender, receiver, message)


@pytest.mark.usefixtures("quick")
async def test_an_isolated_old_master_is_left_and_what_the_new_one_never_got_is_put_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with watched(1) as redis:
        async with Running(redis.master, redis_url=redis.url) as run:
            peers = await three_connections(run)
            redis.wait_replicated()
            redis.isolate_master()
            began = time.monotonic()
            # All that happens now is lost in the failover.
            late = await run.connect(4)
            run.join(4, "hall")
            run.leave(1, "room")
            await peers.pop().close()
            await until(lambda: run.online == {"1": "1", "2": "1", "4": "1"})
            assert await late.fence() == []
            assert (await run.http(ASK))[0] == 200, "both connections stand, and are answered"
            move_to(run, redis.replica)
            await until(lambda: run.node._session.gaps == 1, "it is found", 30)
            assert time.monotonic() - began < 30
            assert any("another Redis is the master now" in line for line in told(caplog, 30))
            await until(lambda: run.node._session.up, "it has moved")
            assert redis.master.command("ROLE")[0] == b"master", "the old one still lives"
            await until(lambda: run.online == {"1": "1", "2": "1", "4": "1"})
            await run.settled()
            assert len(run.share) == 3
            # The leave is lost, as the write that it was; what the node knows of client 4 is not.
            assert redis.replica.hash(run.names.chan("room")) == {"1": "0", "2": "0"}
            assert redis.replica.hash(run.names.chan("hall")) == {"2": "0", "4": "0"}
            await served_again(run, *peers, late)
            assert all(peer.is_open for peer in (*peers, late))


async def test_of_sentinels_that_disagree_the_newest_counts_and_one_that_is_silent_holds_up_nobody() -> None:
    with watched(1) as redis, contextlib.ExitStack() as stack:
        [right] = redis.watching
        redis.master.stop()
        await asyncio.to_thread(redis.wait_failover)
        stale = redis.stale(stack)
        for ports in ((stale.port, right.port), (right.port, stale.port), (free_port(), right.port)):
            url = f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in ports)}/mymaster"
            found = await bounded(ask_sentinels(parse_redis_url(url)))
            assert (found.host, found.port) == ("127.0.0.1", redis.replica.port)
        right.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        url = f"redis+sentinel://127.0.0.1:{right.port},127.0.0.1:{stale.port}/mymaster"
        assert (await ask_sentinels(parse_redis_url(url))).port == redis.master.port, "the only one that answers"
        assert time.monotonic() - began < 4


async def test_a_node_says_what_is_wrong_with_its_sentinels(redis_server: RedisServer) -> None:
    with watched(1) as redis:
        [sentinel] = redis.watching
        good = f"127.0.0.1:{sentinel.port}"
        for url, problem in (
            (f"redis+sentinel://{good}/other", "No such master with that name"),
            (
                f"redis+sentinel://127.0.0.1:{free_port()}/mymaster",
                "Redis at 'mymaster' of the Sentinels 127.0.0.1:.* no Sentinel names a master",
            ),
            (f"redis+sentinel://127.0.0.1:{redis_server.port}/mymaster", "unknown command"),
            (f"redis://{good}", "this is a Sentinel, whose URL is"),
            (redis.replica.url, "it is a replica"),
        ):
            await refused(Running(redis_server, redis_url=url).node, RedisUnavailable, problem)
        with ImHelper(f"redis+sentinel://{good}/other", nodes=["a"]) as helper:
            with pytest.raises(RedisUnavailable, match="No master found for 'other'") as caught:
                helper.send_message(0, 1, "x")
            assert caught.value.maybe_sent is False


def test_a_client_of_redis_py_that_asks_sentinels_can_be_given_to_a_helper() -> None:
    with watched(1) as redis:
        login = {"username": "node", "password": "secret"}
        asking = Sentinel([("127.0.0.1", redis.watching[0].port)])
        client = asking.master_for("mymaster", **login)
        heard: list[Event] = []
        with ImHelper(client, nodes=["a"]) as helper, helper.event_bus(heard.append) as bus:
            assert bus.wait_subscribed(5)
            assert helper.send_message(0, 1, "x").silent == ("a",)
        client.connection_pool.disconnect()
        asking.sentinels[0].close()


async def test_helpers_leave_a_master_that_has_become_a_replica() -> None:
    with watched(1) as redis, ImHelper(redis.url, nodes=["a"]) as helper:
        async with AsyncImHelper(redis.url, nodes=["a"]) as async_helper:
            helper.prev_connect_server(1)
            await async_helper.prev_connect_server(1)
            before = connections_of_helpers(redis.master)
            assert len(before) == 2
            redis.master.command("REPLICAOF", "127.0.0.1", redis.replica.port)
            with pytest.raises(RedisUnavailable, match="read only replica"):
                helper.prev_connect_server(1)
            with pytest.raises(RedisUnavailable, match="read only replica"):
                await async_helper.prev_connect_server(1)
            await until(lambda: not before & connections_of_helpers(redis.master), "they have left")
            redis.master.command("REPLICAOF", "NO", "ONE")
            helper.prev_connect_server(1)
            await async_helper.prev_connect_server(1)


def connections_of_helpers(server: RedisServer) -> set[bytes]:
    return {line.split()[0] for line in server.command("CLIENT", "LIST").splitlines() if b" user=node " in line}
