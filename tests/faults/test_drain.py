"""A node that is told to stop sends its terminals away one after the other: they shall not come back as a storm."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter

from tests.faults.nodes import DEFAULT, connect_all, start, tell_channel
from tests.membership.terminals import Ended, Terminal
from tests.servers import RedisServer, free_port

MANY = 400
DRAIN = 4.0
PARTS = 8


async def test_sigterm_sends_everybody_away_with_1012_spread_evenly_over_the_drain_time(
    redis_server: RedisServer,
) -> None:
    name, loop = f"127.0.0.1:{free_port()}", asyncio.get_running_loop()
    with start(redis_server, name, [name], "--drain", str(DRAIN), "--close-timeout", "1", program=DEFAULT) as node:
        node.banner()
        terminals = await connect_all(redis_server, name, range(1, MANY + 1), "room")
        served = 0

        async def end(terminal: Terminal) -> float:
            nonlocal served
            try:
                while True:
                    assert await terminal.next() == '"still here"'
                    served += 1
            except Ended as ended:
                assert ended.args == (1012,)
            return loop.time()

        ending = [asyncio.ensure_future(end(terminal)) for terminal in terminals.values()]
        node.tell(signal.SIGTERM)
        await asyncio.sleep(DRAIN / 2)
        tell_channel(redis_server, [name], "room", "still here")
        ends = sorted(await asyncio.gather(*ending))
        for terminal in terminals.values():
            await terminal.close()
        assert await asyncio.to_thread(node.wait) == 0
    # Counted from the first: a busy machine may take its time to begin, and may be late now and then.
    assert 0.7 * DRAIN < ends[-1] - ends[0] < 3 * DRAIN
    parts = Counter(int((at - ends[0]) / DRAIN * PARTS) for at in ends)
    assert max(parts.values()) < 3 * MANY / PARTS, f"no storm: {sorted(parts.items())}"
    assert 0.1 * MANY < served < 0.9 * MANY, "who has not been sent away yet is served"
