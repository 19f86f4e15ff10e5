"""A Redis that is far away: everything works, only later."""

from __future__ import annotations

import asyncio
import time

import pytest

from freeim import ImHelper
from tests.faults.outage import ASK
from tests.faults.proxy import Proxy
from tests.node.harness import running
from tests.servers import RedisServer


@pytest.mark.parametrize("milliseconds", [1, 20, 200])
async def test_with_a_slow_redis_all_works_and_a_message_takes_half_a_round_trip(
    redis_server: RedisServer, milliseconds: int
) -> None:
    round_trip = milliseconds / 1000
    with Proxy(redis_server.port, round_trip) as proxy, ImHelper(proxy.url) as helper:
        async with running(redis_server, redis_url=proxy.url, node="a", nodes=("a",)) as run:
            began = time.monotonic()
            peers = await asyncio.gather(*(run.connect(client) for client in range(1, 31)))
            assert time.monotonic() - began < 3 + 6 * round_trip, "many connect in a few round trips together"
            for number in range(3):
                # Join and send without a pause: what follows a join that has returned reaches the client.
                await asyncio.to_thread(helper.join_chan, 1, f"room {number}")
                await asyncio.to_thread(helper.send_chan_message, 0, f"room {number}", number)
            assert [await peers[0].next() for _ in range(3)] == ["0", "1", "2"]
            await asyncio.to_thread(helper.leave_chan, 1, "room 0")
            await asyncio.to_thread(helper.send_chan_message, 0, "room 0", "gone")
            assert await peers[0].fence() == []
            began = time.monotonic()
            assert await peers[1].fence() == []
            assert time.monotonic() - began < 2 + round_trip
            assert (await run.http(ASK))[0] == 200
            run.node._session.beat_now()
            assert run.node._session.gaps == 0
            assert len(run.online) == 30
