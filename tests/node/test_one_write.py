"""A burst leaves in few writes: messages that arrive in one read from Redis go out in one send(2) per connection."""

from __future__ import annotations

from tests.node.harness import channel_message, direct, running
from tests.servers import RedisServer

BURST = 100


async def test_a_burst_reaches_each_receiver_in_order_and_in_few_writes(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        peers = [await run.connect(client) for client in (1, 2, 3)]
        run.join(1, "room")
        run.join(2, "room")
        for peer in peers:
            await peer.fence()
        fanout = run.node._connections.fanout
        before = fanout.writes
        run.publish_all(
            channel_message("room", number) if number % 2 else direct([1, 2, 3], number) for number in range(BURST)
        )
        # The server may hand the pipeline on in several parts, but never in 100 of them.
        in_room = [str(number) for number in range(BURST)]
        assert await peers[0].fence() == in_room
        assert await peers[1].fence() == in_room
        assert await peers[2].fence() == in_room[::2]
        fences = len(peers)
        assert fanout.writes - before - fences <= 5 * len(peers)


async def test_one_message_to_one_receiver_is_one_write(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        peer = await run.connect(1)
        await run.connect(2)
        before = run.node._connections.fanout.writes
        run.publish(direct([1], "hi"))
        assert await peer.next() == '"hi"'
        assert run.node._connections.fanout.writes - before == 1
