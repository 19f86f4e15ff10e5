"""A node as a process with a port for its metrics, and what it takes of the machine and of Redis."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.faults.nodes import DEFAULT, start
from tests.membership.terminals import NAMES
from tests.node.scrape import Scrape, fetch
from tests.servers import RedisServer, free_port


class LoadedNode:
    """A node and the means to look at it from outside.

    Args:
        redis: Its Redis.
        args: Options of the node.
    """

    def __init__(self, redis: RedisServer, *args: str) -> None:
        self.redis = redis
        self.name = f"127.0.0.1:{free_port()}"
        self.channel = NAMES.server(self.name)
        self._admin = f"127.0.0.1:{free_port()}"
        self._process = start(redis, self.name, [self.name], "--admin-bind", self._admin, *args, program=DEFAULT)

    @property
    def log(self) -> str:
        return self._process.stderr

    @property
    def banner(self) -> str:
        return self._process.banner()

    async def metrics(self) -> Scrape:
        """Ask for its metrics."""
        page, _ = await asyncio.to_thread(fetch, f"http://{self._admin}/metrics")
        return Scrape(page.decode())

    async def metrics_until(self, condition: Callable[[Scrape], Any], what: str, seconds: float = 20.0) -> Scrape:
        """Ask for its metrics until a condition holds."""
        deadline = time.monotonic() + seconds
        while not condition(found := await self.metrics()):
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}; {self.log}"
            await asyncio.sleep(0.02)
        return found

    def memory(self, which: str = "VmRSS") -> int:
        """Return the bytes of memory that it has in RAM, or with ``VmHWM`` the most that it ever had."""
        status = Path(f"/proc/{self._process.process.pid}/status").read_text(encoding="ascii")
        [kib] = re.findall(rf"{which}:\s+(\d+) kB", status)
        return int(kib) << 10

    def descriptors(self) -> int:
        """Return how many files and sockets it has open."""
        return len(os.listdir(f"/proc/{self._process.process.pid}/fd"))

    def close(self) -> None:
        """End it at once."""
        self._process.__exit__()


@contextlib.contextmanager
def loaded_node(redis: RedisServer, *args: str) -> Iterator[LoadedNode]:
    """Start a node with these options, and end it."""
    node = LoadedNode(redis, *args)
    try:
        assert node.banner
        yield node
    finally:
        node.close()


def redis_info(redis: RedisServer, name: str) -> int:
    """Return a number of INFO."""
    [value] = re.findall(rf"^{name}:(\d+)", redis.command("INFO", "everything").decode(), re.MULTILINE)
    return int(value)
