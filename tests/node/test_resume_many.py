"""Ten thousand clients that are away, in a node that is a process: what they cost, and where it ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from freeim.names import Names
from tests.cli.command import Server
from tests.node.harness import channel_message, direct, head, until
from tests.node.scrape import Scrape, fetch
from tests.servers import RedisServer, free_port

CLIENTS = 10_000
AT_ONCE = 200
NAMES = Names("im_v2_ws")
MANY = {"seconds": 60.0}


class Many:
    """The node, and what is done to it."""

    def __init__(self, redis: RedisServer, server: Server, port: int, metrics: str) -> None:
        self.redis = redis
        self.server = server
        self.port = port
        self.metrics = metrics

    def scrape(self) -> Scrape:
        return Scrape(fetch(self.metrics)[0].decode())

    async def settled(self, condition: Callable[[Scrape], Any], what: str) -> Scrape:
        return await until(lambda: condition(found := self.scrape()) and found, what, **MANY)  # type: ignore[no-any-return]

    @property
    def resident(self) -> int:
        with open(f"/proc/{self.server.process.pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def publish(self, payloads: list[str]) -> None:
        with self.redis.wire() as wire:
            for payload in payloads:
                wire("PUBLISH", NAMES.server(f"127.0.0.1:{self.port}"), payload)

    async def come_and_go(self, first: int, count: int, query: str = "&resume=") -> None:
        """Let clients connect and vanish."""
        with self.redis.wire() as wire:
            for start in range(first, first + count, AT_ONCE):
                clients = range(start, min(start + AT_ONCE, first + count))
                for client in clients:
                    token = json.dumps({"Item1": client, "Item2": None})
                    wire("SET", NAMES.token(f"t{client}"), token, "EX", 60)
                await asyncio.gather(*[self._visit(client, query) for client in clients])

    async def _visit(self, client: int, query: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(head(f"/ws?token=t{client}{query}"))
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        if query:
            await reader.readuntil(b"}")
        writer.transport.abort()


@pytest.fixture
def start(own_redis_server: RedisServer) -> Iterator[Callable[..., Many]]:
    servers = []

    def start(*options: str) -> Many:
        port = free_port()
        server = Server("--bind", f"127.0.0.1:{port}", "--redis-url", own_redis_server.url, *options)
        servers.append(server)
        found = re.search(r"http://\S+", server.banner())
        assert found is not None
        return Many(own_redis_server, server, port, found[0])

    yield start
    for server in servers:
        server.__exit__(None, None, None)


@pytest.mark.timeout(180)
async def test_ten_thousand_clients_that_are_away_cost_what_the_page_says(start: Callable[..., Many]) -> None:
    many = start("--resume-window", "600", "--log-level", "warning")
    # Those that leave at once show what the node keeps of them in any case: arenas, the tables' room.
    await many.come_and_go(1, CLIENTS, "")
    await many.settled(lambda found: not found("connections"), "all have left")
    before = many.resident
    await many.come_and_go(1, CLIENTS)
    await many.settled(lambda found: found("resume_away") == CLIENTS, "all are away")
    each = (many.resident - before) / CLIENTS
    print(f"{each:.0f} bytes for each that is away")
    assert each < 3072, "AWAY_COST of freeim/node/resume.py"
    payload = "x" * 1000
    many.publish([channel_message(None, payload) for _ in range(100)])
    found = await many.settled(lambda found: found("messages_total", kind="broadcast") == 100, "heard")
    frames = 100 * (1000 + 2 + 4 + 150)
    assert found("resume_memory_bytes") == CLIENTS * 3072 + frames + 100 * CLIENTS * 16, "a shared frame counts once"
    assert (many.resident - before) / CLIENTS < 3072 + 100 * 16 + 1000
    assert many.redis.command("HLEN", NAMES.online) == CLIENTS


@pytest.mark.timeout(180)
async def test_beyond_their_share_of_the_limit_the_oldest_are_ended_early(start: Callable[..., Many]) -> None:
    most = 1000
    limit = most * 3072 * 2
    many = start("--resume-window", "600", "--node-resume-buffer", str(limit), "--log-level", "warning")
    await many.come_and_go(1, most + 500)
    found = await many.settled(lambda found: found("resume_away_ended_total", reason="limit") == 500, "500 have ended")
    assert found("resume_away") == most
    await until(lambda: many.redis.command("HLEN", NAMES.online) == most, "Redis counts as many")
    many.publish([direct([client], "x" * 5000) for client in range(501, most + 501)])
    found = await many.settled(lambda found: found("messages_total", kind="direct") == most, "heard")
    assert limit // 2 < found("resume_memory_bytes") <= limit == found("resume_memory_limit_bytes")
    assert found("resume_away") == most, "messages are forgotten, and nobody is put offline for them"


@pytest.mark.timeout(180)
async def test_a_storm_of_losses_ends_with_its_window_and_leaves_nothing(start: Callable[..., Many]) -> None:
    many = start("--resume-window", "1", "--log-level", "warning")
    began = time.monotonic()
    await many.come_and_go(1, 3000)
    found = await many.settled(lambda found: found("resume_away_ended_total", reason="window") == 3000, "all are over")
    assert time.monotonic() - began > 1
    assert [found(name) for name in ("resume_away", "clients", "resume_memory_bytes")] == [0, 0, 0]
    await until(lambda: many.redis.command("EXISTS", NAMES.online) == 0, "Redis counts nobody")
