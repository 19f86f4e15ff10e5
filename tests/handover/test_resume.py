"""A hand-over with --resume-window: who is away is waited for no longer than who was sent away."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from tests.faults.nodes import Events, no_ghosts
from tests.handover.pairs import GRACE, Place, serving
from tests.membership.terminals import NAMES
from tests.node.harness import direct, join, until
from tests.node.resuming import announcement
from tests.servers import RedisServer


async def resume(place: Place, client: int, last_id: str = "") -> tuple[ClientConnection, dict[str, Any]]:
    """Connect and ask for resuming; return the announcement too."""
    socket = await connect(
        f"ws://{place.name}/ws?token={place.token(client)}&resume={last_id}", compression=None, proxy=None
    )
    first = await socket.recv()
    assert isinstance(first, str)
    return socket, announcement(first)


async def test_who_is_away_in_a_hand_over_comes_back_to_the_new_process_and_is_told_that_it_missed_something(
    redis_server: RedisServer,
) -> None:
    with serving(redis_server, "--resume-window", "300", "--drain", "1") as (place, old):
        ids = {}
        for client in (1, 2):
            socket, said = await resume(place, client)
            assert said["missed"] is False
            ids[client] = said["id"]
            join(redis_server, NAMES, client, "room")
            socket.transport.abort()
        await asyncio.sleep(0.3)
        assert redis_server.hash(NAMES.online) == {"1": "1", "2": "1"}, "they are away, and counted"
        async with Events(redis_server) as events:
            place.start().banner()
            # Nobody is connected; those who are away go at once.
            assert await asyncio.to_thread(old.wait, 20) == 0
            assert events.offline == []
            place.tell(direct([1], "nobody keeps it"))
            socket, said = await resume(place, 1, ids[1])
            assert said["missed"] is True
            assert said["id"].partition(".")[0] != ids[1].partition(".")[0]
            place.tell(direct([1], "x"))
            assert json.loads(await socket.recv()) == "x"
            await until(lambda: events.offline, "the one that did not come back", 30)
            await asyncio.sleep(GRACE)
            assert events.offline == [(2, 0)]
        no_ghosts(redis_server, [1], "room")
        await socket.close()
