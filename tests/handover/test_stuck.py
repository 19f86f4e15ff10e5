"""A successor that asks, and then neither reads nor ends."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest

from freeim._core import Connection, Fanout
from freeim.node import successor
from freeim.node.handover_messages import Ask, encode
from tests.node.harness import Running, running, until
from tests.servers import RedisServer, free_port


def ask(run: Running, path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    node = run.node
    sock.send(encode(Ask("ab" * 16, 1, "1", node.name, node.options.bind, run.names.prefix, "/ws", "int", ())))
    sock.setblocking(False)
    return sock


async def test_a_successor_that_reads_nothing_does_not_keep_others_away_for_good(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(successor, "START_SECONDS", 0.5)
    path = str(tmp_path / "node.sock")
    async with running(redis_server, handover=path, bind=f"127.0.0.1:{free_port()}") as run:
        fanout = Fanout(lambda *_: None, lambda *_: None, 2**20, 2**30)
        for number in range(50_000):  # more than fits into a socket that nobody reads
            run.node._bus.router.attach(b"%d" % number, Connection(fanout, number, "{}", None))
        stuck = ask(run, path)
        await until(lambda: run.node._presence.stance == "offered", "it was offered the name")
        await until(lambda: run.node._presence.stance == "back", "it was given up")
        second = ask(run, path)
        answer = await asyncio.get_running_loop().sock_recv(second, 65536)
        assert json.loads(answer.partition(b"\n")[0])["type"] == "offer"
        stuck.close()
        second.close()
