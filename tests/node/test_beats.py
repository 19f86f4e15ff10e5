"""When a node renews its lease."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest

import freeim.node.session
from tests.node.harness import running, until
from tests.servers import RedisServer

INTERVAL = 0.5


async def test_a_beat_that_was_answered_late_does_not_put_off_the_next(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeim.node.session, "BEAT_INTERVAL", INTERVAL)
    async with running(redis_server) as run:
        beats: list[float] = []
        beat = run.node.beat

        async def late() -> None:
            beats.append(time.monotonic())
            await asyncio.sleep(0.9 * INTERVAL)
            await beat()

        monkeypatch.setattr(run.node, "beat", late)
        await until(lambda: len(beats) == 8)
        gaps = [later - earlier for earlier, later in itertools.pairwise(beats)]
        assert min(gaps) > 0.8 * INTERVAL, "none is hurried"
        # The better half: a busy machine may hold some of them up.
        assert sorted(gaps)[3] < 1.5 * INTERVAL
