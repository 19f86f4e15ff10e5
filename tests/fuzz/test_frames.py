"""Any bytes behind a good handshake: the node closes that connection or ignores them, and serves everybody else."""

from __future__ import annotations

import asyncio

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from tests.node.harness import Running, frame, running, until
from tests.servers import RedisServer

CLOSE_CODES = {1000, 1002, 1007, 1009}

frames = st.builds(
    frame,
    st.integers(0, 15),
    st.binary(max_size=200) | st.integers(4000, 4200).map(bytes),
    fin=st.booleans(),
    masked=st.integers(0, 9).map(bool),
    rsv=st.sampled_from([0, 0, 0, 0, 1, 4, 7]),
)
streams = st.lists(frames | st.binary(max_size=30), min_size=1, max_size=6).map(b"".join)


async def feed(run: Running, data: bytes) -> None:
    """Send bytes as a terminal, end it, and look at how the node ended it."""
    raw = await run.raw_client(1)
    raw.send(data)
    raw.writer.write_eof()
    try:
        answer = await raw.rest()
    except ConnectionResetError:
        answer = b""  # it sent more behind its own Close frame
    at = answer.rfind(b"\x88")
    if at >= 0 and len(answer) >= at + 4 and answer[at + 1] == len(answer) - at - 2:
        code = int.from_bytes(answer[at + 2 : at + 4], "big")
        assert code in CLOSE_CODES or 3000 <= code < 5000 or code in range(1001, 1015)
    raw.close()


async def test_any_frames_harm_nobody_else(redis_server: RedisServer) -> None:
    async with running(redis_server, close_timeout=0.5) as run:
        other = await run.connect(2)

        @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
        @given(streams)
        def attack(data: bytes) -> None:
            asyncio.run_coroutine_threadsafe(feed(run, data), loop).result(30)

        loop = asyncio.get_running_loop()
        await asyncio.to_thread(attack)
        assert await other.fence() == []
        await until(lambda: run.node._connections.accepted == 1, "all others are gone")
        await until(lambda: run.online == {"2": "1"}, "nobody else is online")
