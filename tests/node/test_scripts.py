"""Redis may forget its scripts at any time: they are sent again, and what is sent twice comes out right."""

from __future__ import annotations

import asyncio

import pytest

from freeim.scripts import load_script
from tests.node.harness import Running, running, until
from tests.servers import RedisServer


def forget_all_but_close(server: RedisServer) -> None:
    """Leave Redis as another node does that has closed a connection since the scripts were lost."""
    server.command("SCRIPT", "FLUSH")
    server.command("SCRIPT", "LOAD", load_script("close").text)


async def until_idle(run: Running) -> None:
    """Wait until Redis has answered everything, what the answers led to included."""
    await run.settled()
    while run.node._session._writer._stream.waiting:  # type: ignore[union-attr]
        await run.settled()
    await run.settled()


async def test_a_node_goes_on_after_redis_forgot_the_scripts(redis_server: RedisServer) -> None:
    async with running(redis_server) as run, run.events() as events:
        peer = await run.connect(1)
        redis_server.command("SCRIPT", "FLUSH")
        other = await run.connect(2)
        assert run.online == {"1": "1", "2": "1"}
        redis_server.command("SCRIPT", "FLUSH")
        await peer.close()
        await other.close()
        assert [channel for channel, _ in await events.next(4)] == [run.names.event_online] * 2 + [
            run.names.event_offline
        ] * 2
        assert run.online == {}


async def test_a_terminal_that_leaves_while_its_opening_is_sent_again_leaves_no_ghost(
    own_redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(own_redis_server) as run, run.events() as events:
        connections = run.node._connections
        send_open = connections._send_open

        def send_and_lose(connection: object, token: str) -> None:
            own_redis_server.pause()  # so that the close is sent before the answer to the opening is read
            send_open(connection, token)  # type: ignore[arg-type]
            raw.cut()

        monkeypatch.setattr(connections, "_send_open", send_and_lose)
        raw = await run.raw()
        forget_all_but_close(own_redis_server)
        raw.send(run.request(run.token(1)))
        try:
            await until(lambda: connections._last_number == 1 and connections.accepted == 0)
            await asyncio.sleep(0)  # the close is sent at the end of the turn
        finally:
            own_redis_server.resume()
        await until_idle(run)
        assert run.online == {}
        assert run.share == {}
        # It was counted for a moment, so both events have been published; or it never was.
        heard = [channel for channel, _ in await events.heard()]
        assert heard in ([], [run.names.event_online, run.names.event_offline])


async def test_a_terminal_that_leaves_while_it_is_put_back_leaves_no_ghost(
    own_redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(own_redis_server) as run:
        raw = await run.raw_client(1)
        peer = await run.connect(2)
        presence, run_open = run.node._presence, run.node._presence._run_open
        lost: list[str] = []

        def put_back_and_lose(*args: object) -> None:
            if not lost:
                forget_all_but_close(own_redis_server)
                own_redis_server.pause()
                raw.cut()
                lost.append("client 1")
            run_open(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(presence, "_run_open", put_back_and_lose)
        own_redis_server.flush()
        try:
            await until(lambda: lost and run.node._connections.accepted == 1)
            await asyncio.sleep(0)
        finally:
            own_redis_server.resume()
        await until_idle(run)
        await until(lambda: run.online == {"2": "1"} and len(run.share) == 1, "client 2 alone")
        assert peer.is_open


async def test_when_redis_is_back_without_its_scripts_all_presence_is_back_with_it(
    own_redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(own_redis_server) as run:
        for client in range(1, 51):
            await run.connect(client)
        under_way: list[int] = []
        reread_all = run.node._bus.reread_all

        def look(tracking: bool) -> None:
            # The comparison says that it has finished.
            under_way.append(len(run.node._session._writer._stream.waiting))  # type: ignore[union-attr]
            reread_all(tracking)

        monkeypatch.setattr(run.node._bus, "reread_all", look)
        own_redis_server.stop()
        await until(lambda: not run.node._session.up)
        own_redis_server.start()
        await run.is_back()
        assert under_way[-1] == 0
        assert run.online == {str(client): "1" for client in range(1, 51)}
