"""A node that stops: 1012 to everybody, Offline for each, nothing left in Redis and no socket left open."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from tests.node.harness import running, until
from tests.servers import RedisServer


async def test_a_clean_stop_closes_everybody_with_1012_and_leaves_only_the_list_of_nodes(
    redis_server: RedisServer,
) -> None:
    async with running(redis_server) as run, run.events() as events:
        peers = [await run.connect(client) for client in (1, 2, 2, 3)]
        run.join(2, "room")
        run.join(3, "room", "other")
        await events.heard()
        began = time.monotonic()
        await run.node.stop()
        assert time.monotonic() - began < 2
        for peer in peers:
            assert await peer.ended() == (1012, "service restart")
        heard = await events.heard()
        assert {channel for channel, _ in heard} == {run.names.event_offline}
        assert sorted(payload for _, payload in heard) == [
            '{"Item1":1,"Item2":"m","Item3":0}',
            '{"Item1":2,"Item2":"m","Item3":0}',
            '{"Item1":2,"Item2":"m","Item3":1}',
            '{"Item1":3,"Item2":"m","Item3":0}',
        ]
        assert run.keys() == {run.names.nodes}
        assert redis_server.subscribers(run.names.server(run.node.name)) == 0


async def test_a_peer_that_does_not_answer_delays_the_stop_by_the_close_timeout(redis_server: RedisServer) -> None:
    async with running(redis_server, close_timeout=0.3) as run, run.events() as events:
        raw = await run.raw_client(1)
        began = time.monotonic()
        await run.node.stop()
        assert 0.25 < time.monotonic() - began < 2
        assert await raw.closed_with() == (1012, "service restart")
        assert [channel for channel, _ in await events.heard()] == [run.names.event_online, run.names.event_offline]
        assert run.keys() == {run.names.nodes}


async def test_requests_that_are_under_way_when_the_node_has_stopped_are_refused_with_503(
    own_redis_server: RedisServer,
) -> None:
    async with running(own_redis_server) as run:
        begun, looked_up = await run.raw(), await run.raw()
        begun.send(b"GET /ws HTTP/1.1\r\n")
        token = run.token(1)
        own_redis_server.pause()
        try:
            looked_up.send(run.request(token))
            await until(lambda: len([each for each in run.node._connections._handshakes.things() if each.begun]) == 2)
            stopping = asyncio.ensure_future(run.node.stop())
            for raw in (begun, looked_up):
                assert (await raw.response())[0] == 503
                assert await raw.rest() == b"this node stops; connect again\n"
        finally:
            own_redis_server.resume()
        await stopping
        assert own_redis_server.command("EXISTS", run.names.token(token)) == 1


async def test_a_stop_closes_what_has_not_become_a_websocket_yet(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        silent = await run.raw()
        refused = await run.raw()
        refused.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await refused.response())[0] == 404
        await until(lambda: run.node._connections.accepted == 2)
        await run.node.stop()
        assert await silent.rest() == b""
        await until(lambda: run.node._connections.accepted == 0, "every socket is closed")


async def test_a_terminal_that_is_opening_while_the_node_stops_is_refused_or_closed(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(redis_server, close_timeout=2) as run:
        held: list[tuple[Any, ...]] = []
        read = run.node._session.read
        monkeypatch.setattr(run.node._session, "read", lambda *args: held.append(args))
        counted = await run.raw()
        counted.send(run.request(run.token(1)))
        await until(lambda: run.node._connections.living, "Redis has counted it")
        looked_up = await run.raw()
        hold_writes: list[tuple[Any, ...]] = []
        send_open = run.node._connections._send_open
        monkeypatch.setattr(run.node._connections, "_send_open", lambda *args: hold_writes.append(args))
        looked_up.send(run.request(run.token(2)))
        await until(lambda: hold_writes, "its token was read")
        began = time.monotonic()
        stopping = asyncio.ensure_future(run.node.stop())
        await until(lambda: run.node._connections.draining)
        monkeypatch.undo()
        for args in hold_writes:
            send_open(*args)
        for args in held:
            read(*args)
        assert (await looked_up.response())[0] == 503
        assert (await counted.response())[0] == 101
        assert await counted.answer_close() == (1012, "service restart")
        await stopping
        assert time.monotonic() - began < 1.5
        assert run.keys() == {run.names.nodes}


async def test_a_stop_with_a_drain_time_closes_one_after_the_other(redis_server: RedisServer) -> None:
    async with running(redis_server, drain=0.6) as run:
        peers = [await run.connect(client) for client in range(1, 7)]
        ends: list[float] = []
        began = time.monotonic()

        async def note_end(peer: Any) -> None:
            assert await peer.ended() == (1012, "service restart")
            ends.append(time.monotonic() - began)

        await asyncio.gather(run.node.stop(), *map(note_end, peers))
        assert max(ends) - min(ends) > 0.3
        assert run.keys() == {run.names.nodes}


async def test_a_stop_without_redis_ends_in_time(own_redis_server: RedisServer) -> None:
    async with running(own_redis_server) as run:
        peer = await run.connect(1)
        own_redis_server.stop()
        await until(lambda: not run.node._session.up)
        began = time.monotonic()
        await run.node.stop()
        assert time.monotonic() - began < 2
        assert await peer.ended() == (1012, "service restart")


async def test_a_stop_while_redis_is_frozen_ends_in_time(own_redis_server: RedisServer) -> None:
    async with running(own_redis_server) as run:
        peer = await run.connect(1)
        own_redis_server.pause()
        try:
            began = time.monotonic()
            await run.node.stop()
            assert time.monotonic() - began < 5
            assert await peer.ended() == (1012, "service restart")
        finally:
            own_redis_server.resume()


async def test_a_second_stop_does_nothing(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        await run.node.stop()
        await run.node.stop()
