"""Redis is killed, and started again: empty, with its data, or with an older state of it."""

from __future__ import annotations

import asyncio
import time

import pytest

from freeim import ImHelper, RedisUnavailable
from tests.faults.outage import Readiness, served_again
from tests.node.harness import Running, running, until
from tests.node.test_reconcile import deliver_to, memberships, three_connections
from tests.servers import RedisServer

KEEPS_ALL = ("--appendonly", "yes", "--appendfsync", "always")


def raises_in_time(helper: ImHelper) -> None:
    began = time.monotonic()
    with pytest.raises(RedisUnavailable, match="Redis cannot be reached"):
        helper.send_message(0, 1, "x")
    assert time.monotonic() - began < 8


# After 5 s the pauses between attempts have reached their limit.
@pytest.mark.parametrize(("kept", "outage"), [("nothing", 5), ("all", 1)])
async def test_terminals_stay_and_are_served_within_6_s_of_the_restart_of_redis(kept: str, outage: float) -> None:
    with RedisServer(args=KEEPS_ALL if kept == "all" else ()) as redis, ImHelper(redis.url) as helper:
        async with running(redis, node="a", nodes=("a",)) as run, Readiness(run) as readiness:
            peers = await three_connections(run)
            before = run.online, run.share, memberships(run)
            assert helper.send_message(0, 1, "x").silent == ()
            await asyncio.sleep(0.3)
            lost = time.monotonic()
            redis.stop()
            await asyncio.to_thread(raises_in_time, helper)
            await asyncio.sleep(lost + outage - time.monotonic())
            back = time.monotonic()
            redis.start()
            served = await served_again(run, *peers)
            assert all(peer.is_open for peer in peers)
            await run.is_back()
            assert (run.online, run.share, memberships(run)) == before
            await deliver_to(run, peers)
            assert await asyncio.to_thread(helper.has_online, 1)
            await readiness.ready_after(served)
        readiness.told_the_truth(lost, back)


async def test_an_older_state_of_redis_is_brought_up_to_date(own_redis_server: RedisServer) -> None:
    redis = own_redis_server
    async with running(redis) as run:
        first, second, third = await three_connections(run)
        redis.command("SAVE")
        late = await run.connect(4)
        run.join(4, "hall")
        await third.close()
        await until(lambda: run.online == {"1": "1", "2": "1", "4": "1"})
        assert await late.fence() == []
        redis.stop()
        redis.start()
        assert run.online == {"1": "1", "2": "2"}, "this is the older state"
        await served_again(run, first, second, late)
        await run.is_back()
        assert run.online == {"1": "1", "2": "1", "4": "1"}
        assert len(run.share) == 3
        assert redis.hash(run.names.chan("hall")) == {"2": "0", "4": "0"}
        assert redis.hash(run.names.list_chan) == {"room": "2", "hall": "2"}


async def test_nodes_that_lost_redis_together_do_not_come_back_together(own_redis_server: RedisServer) -> None:
    redis = own_redis_server
    names = ("a", "b", "c", "d")
    runs = [Running(redis, node=name, nodes=names) for name in names]
    attempts: list[float] = []

    async def refuse(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attempts.append(time.monotonic())
        writer.close()

    for run in runs:
        await run.node.start()
    try:
        redis.stop()
        lost = time.monotonic()
        async with await asyncio.start_server(refuse, "127.0.0.1", redis.port):
            await asyncio.sleep(5)
        each = len(attempts) / len(runs)
        assert 4 <= each <= 20, "more and more seldom"
        late = [when for when in attempts if when > lost + 1]
        assert late
        together = [b for b, d in zip(late, late[3:], strict=False) if d - b < 0.03]
        # Without jitter these are all; one may be where this machine was busy.
        assert len(together) < len(late) / len(runs), "attempts of all at the same moment"
    finally:
        redis.start()
        for run in runs:
            await run.node.stop()
