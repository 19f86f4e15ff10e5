"""What resuming costs the loop, where there is much of something: no step looks at all of it."""

from __future__ import annotations

import time
from typing import Any

from freeim._core import Connection, Fanout, Router
from freeim.config import Options
from freeim.node.resume import Resume


def _ignore(*_: Any) -> None:
    pass


class _Node:
    """So much of a node as `Resume` asks for."""

    def __init__(self) -> None:
        self.resume = Resume(Options(resume_window=60.0), lambda connection: self.resume.ended(connection))
        self.router = self.resume.router = Router(b"0", _ignore, _ignore, _ignore)
        self._fanout = Fanout(_ignore, _ignore, 2**20, 2**28)
        self._count = 0

    def connect(self, client: bytes) -> Connection:
        self._count += 1
        connection = Connection(self._fanout, self._count, "{}", None)
        self.router.attach(client, connection)
        self.resume.opens(connection, "")
        self.resume.begins(connection)
        return connection


async def test_a_client_that_loses_ten_thousand_connections_at_once_does_not_hold_the_node_up() -> None:
    node = _Node()
    connections = [node.connect(b"1") for _ in range(10_000)]
    log = node.router.clients[b"1"].log
    began = time.process_time()
    for connection in connections:
        assert node.resume.keeps(connection)
    assert time.process_time() - began < 1.0, "each looked at all others"
    assert node.resume.away == 16
    assert log is not None
    assert log.away == 16
    assert node.resume.ends["limit"] == 9_984


async def test_gaps_cost_the_same_however_many_may_come_back() -> None:
    node = _Node()
    for number in range(20_000):
        node.connect(b"%d" % number)
    began = time.process_time()
    for _ in range(1_000):
        node.resume.gap()
    assert time.process_time() - began < 0.2, "each looked at all clients"


async def test_a_gap_is_told_to_those_who_were_there_and_to_nobody_who_came_later() -> None:
    node = _Node()
    before = node.connect(b"1")
    node.resume.gap()
    after = node.connect(b"1")
    stays = node.resume._stays
    history = stays[before].history
    assert stays[before].serial <= history.broken < stays[after].serial
    node.resume.gap()
    fresh = node.connect(b"2")
    assert stays[fresh].history.broken < stays[fresh].serial
