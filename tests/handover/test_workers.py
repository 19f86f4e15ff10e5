"""A group of workers is handed over worker by worker, and its supervisor ends with the last of them."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.cli.command import free_ports, is_running
from tests.handover.pairs import Place
from tests.membership.terminals import Ended, Terminal
from tests.servers import RedisServer

pytestmark = pytest.mark.slow  # processes, on each Python the same

WORKERS = 2


class Group(Place):
    """Two workers on consecutive ports, each with a socket of its own."""

    def __init__(self, redis: RedisServer) -> None:
        super().__init__(redis, "--workers", str(WORKERS), "--drain", "0.5", port=free_ports(WORKERS))
        self.path = str(Path(self.path).with_name("{index}.sock"))
        self.args = tuple(self.path if text.endswith("node.sock") else text for text in self.args)

    async def connect(self, client: int) -> Terminal:
        """Connect to the worker that the client belongs to."""
        return await Terminal.connect(f"127.0.0.1:{self.port + client % WORKERS}", self.token(client))


async def test_a_second_group_takes_over_worker_by_worker_and_the_first_ends_with_code_0(
    redis_server: RedisServer,
) -> None:
    with Group(redis_server) as group:
        old = group.start(plain=True)
        await asyncio.to_thread(old.banner)
        terminals = [await group.connect(client) for client in range(1, 9)]
        new = group.start(plain=True)
        for client in range(10, 210):  # throughout
            await (await group.connect(client)).close()
            await asyncio.sleep(0.01)
        await asyncio.to_thread(new.banner)
        assert await asyncio.to_thread(old.wait) == 0
        assert old.stderr.count("has been handed over") == WORKERS
        assert "starting it again" not in old.stderr
        for terminal in terminals:
            try:
                await terminal.next()
            except Ended as ended:
                assert ended.args[0] == 1012
            await terminal.close()
        await asyncio.sleep(0.5)
        for client in (1, 2):
            await (await group.connect(client)).close()
        new.tell(signal.SIGTERM)
        assert await asyncio.to_thread(new.wait) == 0
        assert group.files() == []


async def test_a_worker_that_crashed_is_not_started_again_where_the_new_group_has_its_place(
    redis_server: RedisServer,
) -> None:
    with Group(redis_server) as group:
        # The crashed one is started again once the new group serves.
        old = group.start(change="import freeim.supervisor as s\nvars(s).update(FIRST_PAUSE=6.0)")
        first, second = await asyncio.to_thread(old.worker_ids, WORKERS)
        await asyncio.to_thread(old.banner)
        os.kill(first, signal.SIGKILL)
        await asyncio.to_thread(old.logged, "was killed by SIGKILL; starting it again")
        new = group.start(plain=True)
        await asyncio.to_thread(new.banner)
        assert await asyncio.to_thread(old.wait) == 0
        assert not is_running(second)
        assert "another process serves the node" in old.stderr
        for client in (1, 2):
            await (await group.connect(client)).close()
