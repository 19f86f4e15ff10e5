"""Messages come faster than a node can handle them: it reads them all, and knows to the message what it lost."""

from __future__ import annotations

import asyncio
import math
import time

import pytest

from freeim.envelope import force_offline
from freeim.errors import CloseCode
from tests.faults.nodes import connect_all
from tests.load.node import LoadedNode, loaded_node
from tests.membership.terminals import NAMES, Ended, Terminal
from tests.node.harness import channel_message, direct, join, until
from tests.servers import RedisServer, encode_command

pytestmark = pytest.mark.slow  # on each Python the same

MIB = 1 << 20
ABSENT = ", ".join(str(1000 + number) for number in range(160))
"""Receivers who are not here. Written with blanks, as FreeIM's helper does not, they take a node more than a tenth of a
millisecond: it handles some thousands of these messages a second."""


def payload(number: int) -> bytes:
    """Return a message of 1 KiB to client 1 and others; what a terminal gets of it is short."""
    return b'{"Item1": 0, "Item2": [1, %b], "Item3": "%d", "Item4": false}' % (ABSENT.encode(), number)


def flood(redis: RedisServer, channel: str, numbers: range, rate: float) -> None:
    """Publish so many messages a second, or as many as Redis takes."""
    commands = [encode_command(("PUBLISH", channel, payload(number))) for number in numbers]
    start = time.monotonic()
    with redis.wire(60) as wire:
        for first in range(0, len(commands), 200):
            time.sleep(max(0.0, start + first / rate - time.monotonic()))
            wire.sock.sendall(b"".join(commands[first : first + 200]))
            for _ in commands[first : first + 200]:
                assert wire.read() == 1


async def flooded(redis: RedisServer, node: LoadedNode, numbers: range, rate: float = math.inf) -> float:
    """Flood a node; return how much waited in it at most, as far as its metrics told."""
    sending = asyncio.ensure_future(asyncio.to_thread(flood, redis, node.channel, numbers, rate))
    most = 0.0
    while True:
        done = sending.done()
        waits = (await node.metrics())("bus_queue_bytes", waits_for="node")
        most = max(most, waits)
        if done and not waits:
            await sending
            return most
        await asyncio.sleep(0.02)


async def received(terminal: Terminal, last: str) -> list[int]:
    """Return what a terminal has got up to a text, which is published now."""
    got = []
    while (text := await terminal.next(60)) != last:
        got.append(int(text))
    return got


def end(redis: RedisServer, node: LoadedNode) -> None:
    redis.command("PUBLISH", node.channel, direct([1], "end"))


async def test_a_flood_below_the_bound_is_read_in_time_and_nothing_is_lost(own_redis_server: RedisServer) -> None:
    redis = own_redis_server
    redis.command("CONFIG", "SET", "client-output-buffer-limit", f"pubsub {16 * MIB} 0 0")
    sent, most = 0, 0.0
    with loaded_node(redis) as node:
        terminals = await connect_all(redis, node.name, [1])
        for rate in (20_000, 30_000, 45_000, math.inf):  # how much is too much for it depends on the machine
            most = await flooded(redis, node, range(sent, sent + 32_000), rate)
            sent += 32_000
            if most > 10 * MIB:
                break
        end(redis, node)
        assert await received(terminals[1], '"end"') == list(range(sent))
        found = await node.metrics()
        assert found("bus_gaps_total") == 0, "Redis has not cut it off"
        assert found.labelled("dropped_messages_total") == {}
        assert most > 10 * MIB, "nothing was tested: the node kept up"
        assert most < found("bus_queue_limit_bytes")


async def test_a_flood_above_the_bound_loses_what_the_counter_says_and_memory_stays_bounded(
    own_redis_server: RedisServer,
) -> None:
    redis = own_redis_server
    redis.command("CONFIG", "SET", "client-output-buffer-limit", "pubsub 0 0 0")
    limit, messages = 8 * MIB, 100_000
    with loaded_node(redis, "--bus-queue-limit", str(limit)) as node:
        joining, leaving = range(2, 22), range(22, 42)
        terminals = await connect_all(redis, node.name, [1, *joining, *leaving])
        before = node.memory("VmHWM")
        flooding = asyncio.ensure_future(flooded(redis, node, range(messages)))
        # In the middle of it: what Redis tells of a change is never dropped, nor is who is forced offline.
        await node.metrics_until(lambda found: found("dropped_messages_total", reason="bus_queue"), "it drops some")
        for client, other in zip(joining, leaving, strict=True):
            join(redis, NAMES, client, "room")
            redis.command("PUBLISH", node.channel, force_offline(other))
            await asyncio.sleep(0.02)  # so that they are spread over the flood
        most = await flooding
        end(redis, node)
        got = await received(terminals[1], '"end"')
        found = await node.metrics()
        dropped = found("dropped_messages_total", reason="bus_queue")
        assert len(got) + dropped == messages, "each message was either delivered or counted"
        assert got == sorted(set(got)), "in order, and none twice"
        assert got[-1] == messages - 1, "the oldest are dropped, not the newest"
        assert found("bus_gaps_total") == 0
        assert most <= limit
        assert node.memory("VmHWM") - before < limit + 32 * MIB
        redis.command("PUBLISH", node.channel, channel_message("room", "joined"))
        for client in joining:
            assert await terminals[client].next() == '"joined"'
        for client in leaving:
            with pytest.raises(Ended) as ended:
                await terminals[client].next()
            assert ended.value.args == (CloseCode.GOING_AWAY,)
        await until(lambda: "more than --bus-queue-limit (8388608 bytes) waited" in node.log, "a line in the log", 20)
