"""The silent half-death: everything looks connected, and nothing arrives. It is found within 30 s."""

from __future__ import annotations

import time

import pytest

from tests.faults.outage import ASK, served_again
from tests.faults.proxy import Proxy
from tests.node.harness import Running, running, told, until
from tests.node.test_reconcile import deliver_to, memberships, three_connections
from tests.servers import RedisServer

FOUND_SECONDS = 30.0


async def subscription_is_gone(redis: RedisServer, within: float) -> None:
    with Proxy(redis.port) as proxy:
        async with running(redis, redis_url=proxy.url) as run, run.events() as events:
            peers = await three_connections(run)
            before = run.online, run.share, memberships(run)
            await events.heard()
            began = time.monotonic()
            proxy.half()
            redis.wait_subscribers(run.names.server(run.node.name), 0)
            assert run.publish("lost") == 0, "nobody hears"
            await until(lambda: run.node._session.gaps == 1, "it is found", within)
            assert time.monotonic() - began < within
            await served_again(run, *peers)
            assert all(peer.is_open for peer in peers)
            await until(lambda: run.node._session.up, "the session is up")
            assert (run.online, run.share, memberships(run)) == before
            await deliver_to(run, peers)
            assert await events.heard() == []


@pytest.mark.usefixtures("quick")
async def test_a_subscription_that_is_gone_though_its_socket_is_up_is_found(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    await subscription_is_gone(redis_server, FOUND_SECONDS)
    assert any("does not hear its own channel" in line for line in told(caplog, 30))


@pytest.mark.slow
async def test_with_the_default_beat_a_subscription_that_is_gone_is_found_within_30_s(
    redis_server: RedisServer,
) -> None:
    await subscription_is_gone(redis_server, FOUND_SECONDS)


async def moves_to(run: Running, other: RedisServer, began: float) -> None:
    """Show that a node has moved to another, empty Redis in time, and brought everything along."""
    wire, run.server, run.wire = run.wire, other, other.wire()
    wire.close()
    await until(lambda: run.node._session.gaps == 1 and run.node._session.up, "it has moved", FOUND_SECONDS)
    assert time.monotonic() - began < FOUND_SECONDS
    assert run.online == {"1": "1", "2": "2"}


async def test_both_connections_on_a_server_that_its_address_no_longer_leads_to_are_found(
    redis_server: RedisServer, own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with Proxy(redis_server.port) as proxy:
        async with running(redis_server, redis_url=proxy.url) as run:
            peers = await three_connections(run)
            before = memberships(run)
            began = time.monotonic()
            proxy.lead(own_redis_server.port)  # the old one runs on, and both connections stand
            await moves_to(run, own_redis_server, began)
            assert memberships(run) == before
            assert any("another Redis is the master now" in line for line in told(caplog, 30))
            await served_again(run, *peers)
            await deliver_to(run, peers)


@pytest.mark.usefixtures("quick")
async def test_while_the_address_leads_to_a_replica_or_nowhere_the_node_stays_where_it_is(
    redis_server: RedisServer, own_redis_server: RedisServer
) -> None:
    own_redis_server.command("REPLICAOF", "127.0.0.1", redis_server.port)
    with Proxy(redis_server.port) as proxy:
        async with running(redis_server, redis_url=proxy.url) as run:
            peers = await three_connections(run)
            proxy.lead(own_redis_server.port)
            beats = run.node._presence._beats
            await until(lambda: run.node._presence._beats > beats + 3, "some looks")
            proxy.refuse()
            await until(lambda: run.node._presence._beats > beats + 6, "some more")
            assert run.node._session.gaps == 0
            await deliver_to(run, peers)
            proxy.refuse(False)
            proxy.lead(redis_server.port)


async def test_two_connections_that_lead_to_two_servers_are_not_taken(
    redis_server: RedisServer, own_redis_server: RedisServer
) -> None:
    with Proxy(redis_server.port) as proxy:
        async with running(redis_server, redis_url=proxy.url) as run:
            peers = await three_connections(run)
            proxy.lead(redis_server.port, own_redis_server.port)
            proxy.cut()
            await until(lambda: "led to two servers" in run.node._session.problem, "it is noticed")
            assert not run.node._session.up
            proxy.lead(redis_server.port)
            await served_again(run, *peers)
            await until(lambda: run.node._session.up, "the session is up")
            await deliver_to(run, peers)


@pytest.mark.usefixtures("quick")
async def test_a_master_that_becomes_a_replica_is_left_and_ready_says_so(
    redis_server: RedisServer, own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(own_redis_server) as run:
        peers = await three_connections(run)
        own_redis_server.command("CONFIG", "SET", "replica-read-only", "no")  # no write fails, all of them are lost
        own_redis_server.command("REPLICAOF", "127.0.0.1", redis_server.port)
        await until(lambda: run.node._session.gaps == 1, "it is found", FOUND_SECONDS)
        assert (await run.http(ASK))[0] == 503
        await until(lambda: "it is a replica" in run.node._session.problem, "it is refused again")
        own_redis_server.command("REPLICAOF", "NO", "ONE")
        await served_again(run, *peers)
        assert all(peer.is_open for peer in peers)
        await until(lambda: run.node._session.up, "the session is up")
