"""The connections to Redis are cut, refused, or lead nowhere for a while."""

from __future__ import annotations

import asyncio
import time

import pytest

from freeim import ImHelper, RedisUnavailable
from tests.faults.outage import Readiness, served_again
from tests.faults.proxy import Proxy
from tests.node.harness import direct, running, until
from tests.node.test_reconcile import deliver_to, memberships, three_connections
from tests.servers import RedisServer


@pytest.mark.parametrize("how", ["reset", "client kill"])
async def test_a_cut_is_mended_within_6_s_and_without_an_event(redis_server: RedisServer, how: str) -> None:
    with Proxy(redis_server.port) as proxy:
        async with running(redis_server, redis_url=proxy.url) as run, run.events() as events:
            peers = await three_connections(run)
            before = run.online, run.share, memberships(run)
            await events.heard()
            for gaps in range(1, 4):
                if how == "reset":
                    proxy.cut()
                else:
                    redis_server.command("CLIENT", "KILL", "TYPE", "normal", "LADDR", f"127.0.0.1:{redis_server.port}")
                await until(lambda gaps=gaps: run.node._session.gaps == gaps, "it has noticed")  # type: ignore[misc]
                await served_again(run, *peers)
                assert all(peer.is_open for peer in peers)
            await until(lambda: run.node._session.up, "the session is up")
            assert (run.online, run.share, memberships(run)) == before
            await deliver_to(run, peers)
            assert await events.heard() == []


async def test_while_connections_are_refused_ready_says_so_and_helpers_raise(redis_server: RedisServer) -> None:
    with Proxy(redis_server.port) as proxy, ImHelper(proxy.url) as helper:
        async with running(redis_server, redis_url=proxy.url) as run, Readiness(run) as readiness:
            peers = await three_connections(run)
            assert helper.has_online(1)
            lost = time.monotonic()
            proxy.refuse()
            proxy.cut()
            with pytest.raises(RedisUnavailable):
                await asyncio.to_thread(helper.has_online, 1)
            await asyncio.sleep(2)
            back = time.monotonic()
            proxy.refuse(False)
            served = await served_again(run, *peers)
            assert await asyncio.to_thread(helper.has_online, 1)
            await readiness.ready_after(served)
        readiness.told_the_truth(lost, back, grace=0.2)


async def test_packets_that_are_lost_for_some_seconds_are_no_gap_and_nothing_is_lost(redis_server: RedisServer) -> None:
    with Proxy(redis_server.port) as proxy, ImHelper(proxy.url) as helper:
        async with running(redis_server, redis_url=proxy.url) as run, Readiness(run) as readiness:
            peers = await three_connections(run)
            assert helper.has_online(1)
            lost = time.monotonic()
            proxy.freeze()
            run.node._session.beat_now()  # so that a beat is under way all the time
            for number in range(20):
                run.publish(direct([1, 2], number))
            began = time.monotonic()
            with pytest.raises(RedisUnavailable, match="did not answer in time"):
                await asyncio.to_thread(helper.has_online, 1)
            assert time.monotonic() - began < 8
            await asyncio.sleep(2)
            back = time.monotonic()
            proxy.thaw()
            assert [await peer.fence() for peer in peers] == [[str(number) for number in range(20)]] * 3
            served = time.monotonic()
            assert run.node._session.gaps == 0
            await readiness.ready_after(served)
        readiness.told_the_truth(lost, back, grace=0.2)
