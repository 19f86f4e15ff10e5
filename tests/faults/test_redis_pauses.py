"""Redis is frozen for a while: nobody answers, but the sockets stay up."""

from __future__ import annotations

import asyncio
import time

import pytest

from freeim import ImHelper, RedisUnavailable
from tests.faults.outage import Readiness, served_again
from tests.node.harness import running, until
from tests.node.test_reconcile import deliver_to, memberships, three_connections
from tests.servers import RedisServer


def raises_in_time(helper: ImHelper) -> None:
    began = time.monotonic()
    with pytest.raises(RedisUnavailable, match="did not answer in time"):
        helper.send_message(0, 1, "x")
    assert 1.5 < time.monotonic() - began < 8


@pytest.mark.parametrize("seconds", [10, pytest.param(18, marks=pytest.mark.slow, id="longer than the lease")])
async def test_terminals_stay_and_no_event_is_published_when_redis_pauses(
    own_redis_server: RedisServer, seconds: float
) -> None:
    redis = own_redis_server
    with ImHelper(redis.url) as helper:
        async with (
            running(redis, node="a", nodes=("a",)) as run,
            run.events() as events,
            Readiness(run) as readiness,
        ):
            peers = await three_connections(run)
            before = run.online, run.share, memberships(run)
            assert helper.send_message(0, 1, "x").silent == ()
            await events.heard()
            lost = time.monotonic()
            redis.pause()
            try:
                await asyncio.to_thread(raises_in_time, helper)
                await asyncio.sleep(lost + seconds - time.monotonic())
                back = time.monotonic()
            finally:
                redis.resume()
            served = await served_again(run, *peers)
            assert all(peer.is_open for peer in peers)
            await until(lambda: run.node._session.up, "the session is up")
            assert (run.online, run.share, memberships(run)) == before
            await deliver_to(run, peers)
            assert await events.heard() == []
            await readiness.ready_after(served)
        readiness.told_the_truth(lost, back)
