"""Terminals that stall or read slowly, by the hundred: they are cut, and cost the others and the machine little."""

from __future__ import annotations

import asyncio

import pytest

from tests.faults.nodes import connect_all, tell, tell_channel
from tests.load.node import loaded_node
from tests.membership.terminals import Ended, Terminal
from tests.servers import RedisServer

pytestmark = pytest.mark.slow  # on each Python the same

MIB = 1 << 20
OTHERS, SLOW = range(1, 901), range(901, 1001)
"""A tenth of all reads slowly, every second of these not at all."""
SIZE = 64 << 10
MESSAGES = 16 * MIB // SIZE
"""For each of those who are slow."""
NODE_LIMIT = 24 * MIB
KERNEL_EACH = 700 << 10
"""Bytes that the kernel may hold for one who does not read, at both ends: measured are 200 KiB, and ten times as many
without the limit on the send buffer."""


def in_the_kernel(name: str) -> int:
    """Return the bytes that the kernel holds in the sockets of a node's port, at both ends."""
    port = f":{int(name.rpartition(':')[2]):04X}"
    total = 0
    with open("/proc/net/tcp", encoding="ascii") as table:
        for line in table:
            _, local, remote, _, queues, *_ = line.split()
            if local.endswith(port) or remote.endswith(port):
                total += sum(int(part, 16) for part in queues.split(":"))
    return total


async def sip(terminal: Terminal) -> None:
    """Read a little now and then: a tenth of what is sent."""
    assert terminal.transport is not None
    while not terminal.transport.is_closing():
        terminal.transport.resume_reading()
        await asyncio.sleep(0)
        if not terminal.transport.is_closing():
            terminal.transport.pause_reading()
        await asyncio.sleep(0.2)


async def rest(terminal: Terminal) -> tuple[list[int], int]:
    """Read all that is left; return the numbers of the messages, and the close code."""
    got = []
    try:
        while True:
            got.append(int((await terminal.next(60)).strip('"').split()[0]))
    except Ended as ended:
        return got, ended.args[0]


async def test_a_tenth_that_reads_slowly_or_not_at_all_is_cut_and_counted_and_the_others_get_everything(
    own_redis_server: RedisServer,
) -> None:
    redis = own_redis_server
    with loaded_node(redis, "--node-queue-limit", str(NODE_LIMIT), "--close-timeout", "60") as node:
        others = await connect_all(redis, node.name, OTHERS, "quick")
        slow = await connect_all(redis, node.name, SLOW, "slow")
        for terminal in slow.values():
            assert terminal.transport is not None
            terminal.transport.pause_reading()
        sipping = [asyncio.create_task(sip(slow[client])) for client in SLOW if client % 2]
        memory = node.memory()
        waited, held, most = 0.0, 0, memory
        for number in range(MESSAGES):
            tell_channel(redis, [node.name], "slow", f"{number} " + "x" * SIZE)
            tell(redis, node.name, 1 + number * 7 % len(OTHERS), f"to one {number}")
            assert await others[1 + number * 7 % len(OTHERS)].next() == f'"to one {number}"'
            if number % 8 == 0:
                tell_channel(redis, [node.name], "quick", number)
                for terminal in others.values():
                    assert await terminal.next() == str(number)
                waited = max(waited, (await node.metrics())("queue_memory_bytes"))
                held, most = max(held, in_the_kernel(node.name)), max(most, node.memory())
        found = await node.metrics()
        assert found("slow_connections_cut_total", limit="connection") >= len(SLOW) // 2, "all who stall at least"
        cut = sum(found.labelled("slow_connections_cut_total").values())
        assert found("closes_total", by="node", code="4002") == cut == sum(found.labelled("closes_total").values())
        assert found("slow_dropped_bytes_total") > cut * MIB / 2
        assert 0 < waited <= NODE_LIMIT
        assert most - memory < NODE_LIMIT + 16 * MIB
        assert held < len(SLOW) * KERNEL_EACH
        assert found("connections") == len(OTHERS) + len(SLOW), "those who were cut have not answered yet"

        # Whoever reads on finds whole messages in order, and then the reason.
        for task in sipping:
            task.cancel()
        for client, terminal in slow.items():
            assert terminal.transport is not None
            if terminal.transport.is_closing():
                continue
            terminal.transport.resume_reading()
            got, code = await rest(terminal)
            assert code == 4002
            assert got == list(range(len(got)))
            if not client % 2:
                assert len(got) * SIZE < MIB, "that is what the kernel and the node had taken"
            await terminal.close()
