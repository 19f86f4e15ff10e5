"""After every gap Redis and the node are brought to the same state, and nothing is told that did not happen."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

import freeim.clock
import freeim.node.session
from freeim.node.link import RedisLink
from freeim.scripts import load_script
from tests.node.harness import SECONDS, Peer, Running, bounded, channel_message, event, running, told, until
from tests.servers import RedisServer

LINKS = ["reader", "writer", "both"]


async def cut(run: Running, links: str = "both") -> None:
    """Let Redis cut the node's connections, and no other."""
    session = run.node._session
    assert session._reader is not None
    assert session._writer is not None
    wanted = {"reader": [session._reader], "writer": [session._writer], "both": [session._reader, session._writer]}
    ids = [await bounded(link.call("CLIENT", "ID")) for link in wanted[links]]
    gaps = session.gaps
    for connection_id in ids:
        run.server.command("CLIENT", "KILL", "ID", connection_id)
    await until(lambda: session.gaps == gaps + 1, "the node has noticed")


@asynccontextmanager
async def gap(run: Running, lose: Callable[[], Any]) -> AsyncIterator[None]:
    """Lose Redis, and keep the node from connecting again until the end of the block."""
    session, gate = run.node._session, asyncio.Event()
    connect = session._connect

    async def wait_and_connect() -> None:
        await gate.wait()
        await connect()

    session._connect = wait_and_connect  # type: ignore[method-assign]
    lost = lose()
    if lost is not None:
        await lost
    await until(lambda: not session.up, "the node has noticed")
    try:
        yield
    finally:
        gate.set()
        session._connect = connect  # type: ignore[method-assign]
    await run.is_back()


def on_call(run: Running, word: str, act: Callable[[], Awaitable[None]], *, after: bool = False) -> None:
    """Do something once, just before the node sends a command, or just after it has got the reply."""
    session = run.node._session
    call = session.call

    async def watched(*args: str | bytes | int) -> Any:
        if args[0] != word:
            return await call(*args)
        session.call = call  # type: ignore[method-assign]
        if not after:
            await act()
        reply = await call(*args)
        if after:
            await act()
        return reply

    session.call = watched  # type: ignore[method-assign]


def bury(run: Running) -> None:
    """Take the node out as another would that found it dead."""
    names, epoch = run.names, run.node._presence.epoch
    run.server.command("DEL", names.alive(epoch))
    keys = [names.share(epoch), names.online, names.list_chan, names.shares, names.alive(epoch)]
    script = load_script("close").text
    while run.server.command("EVAL", script, len(keys), *keys, names.prefix, names.event_offline, epoch) > 0:
        pass


def memberships(run: Running) -> dict[str, dict[str, str]]:
    """Return all that Redis knows of memberships."""
    wanted = (run.names.chan(""), run.names.client(""), run.names.list_chan)
    return {key: run.server.hash(key) for key in sorted(run.keys()) if key.startswith(wanted)}


async def three_connections(run: Running) -> list[Peer]:
    """Connect client 1 once and client 2 twice; both are in the room, 2 is in the hall too."""
    peers = [await run.connect(client) for client in (1, 2, 2)]
    run.join(1, "room")
    run.join(2, "room", "hall")
    for peer in peers:
        assert await peer.fence() == []
    return peers


async def deliver_to(run: Running, peers: list[Peer]) -> None:
    """Show that the terminals of `three_connections` get what is theirs, once, and nothing else."""
    for channel in ("room", "hall", "elsewhere"):
        run.publish(channel_message(channel, channel))
    run.publish(channel_message(None, "all"))
    assert [await peer.fence() for peer in peers] == [
        ['"room"', '"all"'],
        ['"room"', '"hall"', '"all"'],
        ['"room"', '"hall"', '"all"'],
    ]


ALL_EVENTS = sorted([event(1, 1), event(2, 1), event(2, 2)])


# ---- nothing was lost


@pytest.mark.parametrize("links", LINKS)
async def test_after_a_cut_all_are_served_as_before_and_no_event_is_published(
    redis_server: RedisServer, links: str
) -> None:
    async with running(redis_server) as run, run.events() as events:
        peers = await three_connections(run)
        await events.heard()
        before = run.online, run.share, memberships(run)
        for _ in range(3):
            gaps = run.node._session.gaps
            await cut(run, links)
            await until(lambda: run.node._session.up, "back")
            await deliver_to(run, peers)
            assert run.node._session.gaps == gaps + 1
        await run.settled()
        assert (run.online, run.share, memberships(run)) == before
        assert await events.heard() == []
        assert redis_server.subscribers(run.names.server(run.node.name)) == 1


async def test_client_kill_of_everybody_is_one_gap_without_an_event(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        peers = await three_connections(run)
        for gaps, kind in enumerate(("pubsub", "normal"), 1):
            assert redis_server.kill_clients(kind) >= 1
            await until(lambda gaps=gaps: run.node._session.gaps == gaps and run.node._session.up, "back")  # type: ignore[misc]
            async with run.events() as events:
                await deliver_to(run, peers)
                assert await events.heard() == []


async def test_a_gap_is_told_once_and_so_is_its_end(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "freeim")
    async with running(redis_server) as run:
        await three_connections(run)
        caplog.clear()
        await cut(run)
        await run.is_back()
        lines = told(caplog)
        assert len(lines) == 2
        assert lines[0].startswith("Redis lost (")
        assert lines[1] == "Redis is back; presence and memberships have been compared"


# ---- what happens during the gap


@pytest.mark.parametrize("links", LINKS)
async def test_joins_and_leaves_made_during_the_gap_are_respected(redis_server: RedisServer, links: str) -> None:
    async with running(redis_server) as run, run.events() as events:
        peers = await three_connections(run)
        await events.heard()
        async with gap(run, lambda: cut(run, links)):
            run.leave(1, "room")
            run.leave(2, "hall")
            run.join(1, "new")
        for channel in ("room", "hall", "new"):
            run.publish(channel_message(channel, channel))
        assert [await peer.fence() for peer in peers] == [['"new"'], ['"room"'], ['"room"']]
        assert redis_server.hash(run.names.client(1)) == {"new": "0"}
        assert redis_server.hash(run.names.chan("room")) == {"2": "0"}
        assert await events.heard() == []


async def test_connections_that_closed_during_the_gap_are_taken_out_once(redis_server: RedisServer) -> None:
    async with running(redis_server) as run, run.events() as events:
        first, second, third = await three_connections(run)
        await events.heard()
        async with gap(run, lambda: cut(run)):
            await first.close()
            await second.close()
            await until(lambda: len(run.node._connections.living) == 1)
            assert run.online == {"1": "1", "2": "2"}
        heard = await events.next(2)
        assert sorted(heard) == sorted([(run.names.event_offline, event(1, 0)), (run.names.event_offline, event(2, 1))])
        assert run.online == {"2": "1"}
        assert len(run.share) == 1
        assert memberships(run) == {
            run.names.chan("room"): {"2": "0"},
            run.names.chan("hall"): {"2": "0"},
            run.names.client(2): {"room": "0", "hall": "0"},
            run.names.list_chan: {"room": "1", "hall": "1"},
        }
        await cut(run)
        await until(lambda: run.node._session.up)
        assert await third.fence() == []
        assert await events.heard() == []


async def test_a_connection_that_closes_while_redis_is_being_compared_is_taken_out_once(
    redis_server: RedisServer,
) -> None:
    async with running(redis_server) as run, run.events() as events:
        first, *_ = await three_connections(run)
        await events.heard()

        async def close() -> None:
            assert not run.node._session.up
            await first.close()
            await until(lambda: len(run.node._connections.living) == 2)

        async with gap(run, lambda: cut(run)):
            on_call(run, "PING", close)  # the share has been read, the session is not up yet
        assert await events.next() == [(run.names.event_offline, event(1, 0))]
        assert run.online == {"2": "2"}
        assert len(run.share) == 2


async def test_a_connection_that_opens_and_closes_while_redis_is_being_compared_leaves_no_ghost(
    redis_server: RedisServer,
) -> None:
    async with running(redis_server) as run, run.events() as events:
        await run.connect(1)
        await events.heard()

        async def open_and_close() -> None:
            await run.connect(9)
            (connection,) = run.node._bus.router.clients[b"9"].connections
            terminal, transport = connection.owner, connection.transport
            # Its end and the reply to HKEYS are in one turn of the loop.
            run.node._connections.gone(terminal)
            transport.abort()

        redis_server.command("DEL", run.names.alive(run.node._presence.epoch))
        on_call(run, "HKEYS", open_and_close, after=True)
        run.node._session.beat_now()
        heard = await events.next(2)
        assert heard == [(run.names.event_online, event(9, 1)), (run.names.event_offline, event(9, 0))]
        await run.settled()
        assert run.online == {"1": "1"}
        assert len(run.share) == 1


async def test_a_terminal_that_waits_for_its_channels_when_redis_is_lost_gets_its_101_after_the_gap(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(redis_server) as run, run.events() as events:
        run.join(7, "room")
        monkeypatch.setattr(run.node._session, "read", lambda *_: None)  # HKEYS is not answered
        connecting = asyncio.ensure_future(run.connect(7))
        await until(lambda: run.node._connections.living, "Redis has counted it")
        async with gap(run, lambda: cut(run)):
            monkeypatch.undo()
            assert not connecting.done()
        peer = await asyncio.wait_for(connecting, SECONDS)
        run.publish(channel_message("room", "hi"))
        assert await peer.fence() == ['"hi"']
        assert await events.heard() == [(run.names.event_online, event(7, 1))]


# ---- Redis has lost everything


async def assert_all_is_back(run: Running, peers: list[Peer], expected: dict[str, dict[str, str]]) -> None:
    """Show that all that a node writes stands in Redis again, and that it serves."""
    names, name, epoch = run.names, run.node.name, run.node._presence.epoch
    assert run.online == {"1": "1", "2": "2"}
    assert len(run.share) == 3
    assert memberships(run) == expected
    assert run.server.hash(names.shares) == {epoch: name}
    assert run.server.command("GET", names.lease(name)) == epoch.encode()
    assert run.server.command("GET", names.alive(epoch)) == name.encode()
    assert 0 < run.server.command("PTTL", names.alive(epoch)) <= 15_000
    assert json.loads(run.server.command("GET", names.nodes))["nodes"] == list(run.node.nodes)
    assert run.server.hash(names.urls) == {name: "wss://im.example.com"}
    await deliver_to(run, peers)


async def test_flushall_brings_presence_memberships_and_the_list_of_nodes_back(redis_server: RedisServer) -> None:
    async with (
        running(redis_server, node="a", nodes=("a",), public_url="wss://im.example.com") as run,
        run.events() as events,
    ):
        peers = await three_connections(run)
        await events.heard()
        before = memberships(run)
        for _ in range(3):
            redis_server.flush()
            heard = await events.next(3)
            assert {channel for channel, _ in heard} == {run.names.event_online}
            assert sorted(payload for _, payload in heard) == ALL_EVENTS
            await assert_all_is_back(run, peers, before)
        assert run.node._session.gaps == 0
        assert await events.heard() == []


async def test_a_lease_that_runs_out_while_connections_are_put_back_costs_no_channels(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(redis_server, node="a", nodes=("a",), public_url="wss://im.example.com") as run:
        peers = await three_connections(run)
        before = memberships(run)
        run_open, alive = run.node._presence._run_open, run.names.alive(run.node._presence.epoch)

        def too_late(*args: Any) -> None:
            monkeypatch.undo()
            redis_server.command("DEL", alive)
            run_open(*args)

        monkeypatch.setattr(run.node._presence, "_run_open", too_late)
        redis_server.flush()
        await until(lambda: len(run.share) == 3, "all are put back")
        await assert_all_is_back(run, peers, before)


async def test_a_second_flushall_while_the_first_is_being_mended_is_mended_too(redis_server: RedisServer) -> None:
    async with running(redis_server, node="a", public_url="wss://im.example.com") as run, run.events() as events:
        peers = await three_connections(run)
        await events.heard()
        before = memberships(run)

        async def flush() -> None:
            await run.settled()  # all has been put back once
            generation = run.node._bus._generation
            redis_server.flush()
            await until(lambda: run.node._bus._generation > generation, "the node has heard of it")

        on_call(run, "PING", flush)
        redis_server.flush()
        assert sorted(payload for _, payload in await events.next(6)) == sorted(ALL_EVENTS * 2)
        await assert_all_is_back(run, peers, before)


async def test_a_flushall_while_a_gap_is_being_mended_is_mended_too(redis_server: RedisServer) -> None:
    async with running(redis_server, node="a", public_url="wss://im.example.com") as run, run.events() as events:
        peers = await three_connections(run)
        await events.heard()
        before = memberships(run)

        async def flush() -> None:
            generation = run.node._bus._generation
            redis_server.flush()
            await until(lambda: run.node._bus._generation > generation, "the node has heard of it")

        async with gap(run, lambda: cut(run)):
            on_call(run, "PING", flush)
        assert sorted(payload for _, payload in await events.next(3)) == ALL_EVENTS
        await assert_all_is_back(run, peers, before)


async def test_a_redis_that_comes_back_empty_is_filled_again(own_redis_server: RedisServer) -> None:
    options: dict[str, Any] = {"node": "a", "nodes": ("a",), "public_url": "wss://im.example.com"}
    async with running(own_redis_server, **options) as run:
        peers = await three_connections(run)
        before = memberships(run)
        async with gap(run, own_redis_server.stop):
            assert (await run.http(run.request("0" * 128)))[0] == 503
            own_redis_server.start()
            events = await run.events().__aenter__()
        try:
            heard = await events.next(3)
            assert {channel for channel, _ in heard} == {run.names.event_online}
            assert sorted(payload for _, payload in heard) == ALL_EVENTS
            await assert_all_is_back(run, peers, before)
            assert await events.heard() == []
        finally:
            await events.__aexit__()


async def test_memberships_come_back_though_one_was_being_read_when_redis_died(own_redis_server: RedisServer) -> None:
    async with running(own_redis_server, node="a", public_url="wss://im.example.com") as run:
        peers = await three_connections(run)
        before = memberships(run)
        own_redis_server.pause()
        run.node._bus.on_invalidate([run.names.client(client).encode() for client in (1, 2)])
        reader = run.node._session._reader
        assert reader is not None
        await until(lambda: len(reader._stream.waiting) == 2 and not reader._out, "both are being read")
        own_redis_server.stop()
        own_redis_server.start()
        await run.is_back()
        assert run.node._session.gaps == 1
        await assert_all_is_back(run, peers, before)


async def test_an_entry_of_the_share_that_redis_lost_is_put_back_with_its_channels(redis_server: RedisServer) -> None:
    async with running(redis_server) as run, run.events() as events:
        peers = await three_connections(run)
        await events.heard()
        before = memberships(run)
        # As after a failover that lost the last writes. (A Client hash that changes is read again, so it stays.)
        number = next(number for number, value in run.share.items() if value.startswith("1 "))
        redis_server.command("HDEL", run.names.share(run.node._presence.epoch), number)
        redis_server.command("HDEL", run.names.online, "1")
        redis_server.command("HDEL", run.names.chan("room"), "1")
        redis_server.command("HSET", run.names.list_chan, "room", 1)
        await cut(run, "writer")
        await run.is_back()
        assert await events.heard() == [(run.names.event_online, event(1, 1))]
        assert run.online == {"1": "1", "2": "2"}
        assert number in run.share
        assert memberships(run) == before
        await deliver_to(run, peers)


async def test_an_entry_of_the_share_without_a_connection_is_taken_out(redis_server: RedisServer) -> None:
    async with running(redis_server) as run, run.events() as events:
        peers = await three_connections(run)
        await events.heard()
        # As after a failover to a replica that had missed a close.
        redis_server.command("HSET", run.names.share(run.node._presence.epoch), "999", '5 {"Item1":5,"Item2":"m"}')
        redis_server.command("HSET", run.names.online, "5", 1)
        run.join(5, "room")
        await cut(run)
        await run.is_back()
        assert await events.heard() == [(run.names.event_offline, event(5, 0))]
        assert run.online == {"1": "1", "2": "2"}
        assert redis_server.hash(run.names.list_chan) == {"room": "2", "hall": "1"}
        await deliver_to(run, peers)


# ---- a life that ended


async def test_a_life_that_ended_is_revived_by_the_next_opening(redis_server: RedisServer) -> None:
    async with running(redis_server) as run, run.events() as events:
        peers = await three_connections(run)
        await events.heard()
        redis_server.command("DEL", run.names.alive(run.node._presence.epoch))
        began = time.monotonic()
        await run.connect(3)
        assert time.monotonic() - began < 2, "it did not wait for the next beat"
        assert await events.heard() == [(run.names.event_online, event(3, 1))], "nobody else had been lost"
        assert redis_server.command("EXISTS", run.names.alive(run.node._presence.epoch)) == 1
        assert run.online == {"1": "1", "2": "2", "3": "1"}
        await deliver_to(run, peers)


async def test_many_that_open_while_the_life_has_ended_are_all_let_in_once(redis_server: RedisServer) -> None:
    async with running(redis_server) as run, run.events() as events:
        redis_server.command("DEL", run.names.alive(run.node._presence.epoch))
        peers = await asyncio.gather(*(bounded(run.connect(client)) for client in range(1, 31)))
        assert len(peers) == 30
        assert run.online == {str(client): "1" for client in range(1, 31)}
        heard = await events.heard()
        assert sorted(payload for _, payload in heard) == sorted(event(client, 1) for client in range(1, 31))


async def test_a_terminal_that_leaves_before_the_life_is_revived_leaves_no_trace(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(redis_server) as run, run.events() as events:
        redis_server.command("DEL", run.names.alive(run.node._presence.epoch))
        asked = asyncio.Event()
        beat_now = run.node._session.beat_now
        monkeypatch.setattr(run.node._session, "beat_now", asked.set)
        raw = await run.raw()
        raw.send(run.request(run.token(7)))
        await bounded(asked.wait())
        raw.cut()
        await until(lambda: run.node._connections.accepted == 0, "it has gone")
        monkeypatch.undo()
        beat_now()
        await run.connect(8)
        assert await events.heard() == [(run.names.event_online, event(8, 1))]
        assert run.online == {"8": "1"}
        assert len(run.share) == 1


async def test_a_terminal_that_waits_for_the_life_to_be_revived_is_let_in_after_a_gap(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(redis_server) as run, run.events() as events:
        redis_server.command("DEL", run.names.alive(run.node._presence.epoch))
        asked = asyncio.Event()
        monkeypatch.setattr(run.node._session, "beat_now", asked.set)
        began = time.monotonic()
        connecting = asyncio.ensure_future(run.connect(7))
        await bounded(asked.wait())
        await cut(run)
        await asyncio.wait_for(connecting, SECONDS)
        assert time.monotonic() - began < 3, "it did not wait for the next beat"
        assert run.online == {"7": "1"}
        assert await events.heard() == [(run.names.event_online, event(7, 1))]


async def test_a_life_that_ended_is_revived_by_the_next_beat_without_an_event(redis_server: RedisServer) -> None:
    async with running(redis_server) as run, run.events() as events:
        peers = await three_connections(run)
        await events.heard()
        names, epoch = run.names, run.node._presence.epoch
        redis_server.command("DEL", names.alive(epoch), names.lease(run.node.name), names.shares)
        run.node._session.beat_now()
        await until(lambda: redis_server.command("EXISTS", names.alive(epoch)), "revived")
        await run.settled()
        assert redis_server.hash(names.shares) == {epoch: run.node.name}
        assert redis_server.command("GET", names.lease(run.node.name)) == epoch.encode()
        assert await events.heard() == []
        await deliver_to(run, peers)


async def test_a_node_that_was_buried_alive_comes_back_with_one_online_each(redis_server: RedisServer) -> None:
    async with running(redis_server) as run, run.events() as events:
        await three_connections(run)
        await events.heard()
        bury(run)
        heard = await events.heard()
        assert {channel for channel, _ in heard} == {run.names.event_offline}
        assert len(heard) == 3
        assert run.online == {}
        assert run.share == {}
        run.node._session.beat_now()
        assert sorted(payload for _, payload in await events.next(3)) == ALL_EVENTS
        assert run.online == {"1": "1", "2": "2"}
        await run.settled()
        assert len(run.share) == 3


# ---- a node that slept


def sleep_past_the_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Move the clock of the lease as far as a sleep of 20 s would."""
    real = time.clock_gettime
    moved = SimpleNamespace(clock_gettime=lambda clock: real(clock) + 20.0)
    monkeypatch.setattr(freeim.clock, "time", moved)


async def test_a_node_that_slept_past_its_lease_restores_before_it_hears_the_leaves_of_its_burial(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(redis_server) as run, run.events() as events:
        peers = await three_connections(run)
        before = memberships(run)
        await events.heard()
        sleep_past_the_lease(monkeypatch)
        bury(run)  # its invalidations are the first that the node hears
        heard = await events.next(6)
        assert sorted(payload for _, payload in heard[3:]) == ALL_EVENTS
        assert [channel for channel, _ in heard] == [run.names.event_offline] * 3 + [run.names.event_online] * 3
        await deliver_to(run, peers)
        assert memberships(run) == before
        assert run.online == {"1": "1", "2": "2"}


async def test_the_answer_to_a_beat_from_before_the_sleep_does_no_harm(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(redis_server) as run, run.events() as events:
        peers = await three_connections(run)
        before = memberships(run)
        await events.heard()
        session, beat = run.node._session, run.node.beat
        answered, woken = asyncio.Event(), asyncio.Event()

        async def beat_and_sleep() -> None:
            await beat()
            answered.set()
            await woken.wait()

        monkeypatch.setattr(run.node, "beat", beat_and_sleep)
        session.beat_now()
        await bounded(answered.wait())
        await run.heard_all()  # the probe of this beat is not what is kept back
        read: list[bytes] = []
        handle = RedisLink._handle

        def note(link: RedisLink, data: bytes, **how: bool) -> None:
            read.append(data)
            handle(link, data, **how)

        monkeypatch.setattr(RedisLink, "_handle", note)
        sleep_past_the_lease(monkeypatch)
        bury(run)
        leaves = [run.names.client(client).encode() for client in (1, 2)]
        await until(lambda: all(leave in b"".join(read) for leave in leaves), "they are kept back")
        assert session._held
        monkeypatch.setattr(run.node, "beat", beat)
        woken.set()
        heard = await events.next(6)
        assert sorted(payload for _, payload in heard[3:]) == ALL_EVENTS
        await deliver_to(run, peers)
        assert memberships(run) == before


async def test_a_node_that_slept_past_its_lease_and_was_not_buried_loses_no_message(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(redis_server) as run, run.events() as events:
        peers = await three_connections(run)
        await events.heard()
        sleep_past_the_lease(monkeypatch)
        await deliver_to(run, peers)
        assert not run.node._session._held
        assert run.node._session.gaps == 0
        assert await events.heard() == []


# ---- silence


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that notices silence within half a second."""
    monkeypatch.setattr(freeim.node.session, "BEAT_INTERVAL", 0.1)
    monkeypatch.setattr(freeim.node.session, "SILENCE_LIMIT", 0.5)


@pytest.mark.usefixtures("impatient")
async def test_a_redis_that_does_not_answer_is_lost_and_taken_up_again(
    own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(own_redis_server) as run, run.events() as events:
        peers = await three_connections(run)
        await events.heard()
        own_redis_server.pause()
        try:
            await until(lambda: not run.node._session.up, "noticed")
            assert any("no answer for" in line for line in told(caplog))
            status, headers, _ = await run.http(run.request("0" * 128))
            assert status == 503
            assert "retry-after" in headers
        finally:
            own_redis_server.resume()
        await run.is_back()
        assert all(peer.is_open for peer in peers)
        await deliver_to(run, peers)
        assert await events.heard() == []


@pytest.mark.usefixtures("impatient")
async def test_a_subscription_that_went_silent_is_noticed_and_renewed(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis_server) as run, run.events() as events:
        peers = await three_connections(run)
        await events.heard()
        channel = run.names.server(run.node.name)
        reader = run.node._session._reader
        assert reader is not None
        reader._write(b"*2\r\n$11\r\nUNSUBSCRIBE\r\n$%d\r\n%s\r\n" % (len(channel), channel.encode()))
        await until(lambda: redis_server.subscribers(channel) == 0, "silent")
        await run.is_back()
        assert any("does not hear its own channel" in line for line in told(caplog))
        await deliver_to(run, peers)
        assert await events.heard() == []


@pytest.mark.usefixtures("impatient")
async def test_a_healthy_bus_is_not_taken_for_silent(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis_server) as run:
        beats = run.node._presence._beats
        await until(lambda: run.node._presence._beats >= beats + 12, "well over the limits")
        assert told(caplog, 30) == []
        assert run.node._session.gaps == 0


async def test_a_reader_that_is_lost_while_the_writer_connects_is_connected_again(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(redis_server) as run, run.events() as events:
        peers = await three_connections(run)
        await events.heard()
        session = run.node._session
        clients = redis_server.command("CLIENT", "LIST").count(b"\n")
        connect = RedisLink.connect
        losses = 0

        async def connect_badly(link: RedisLink, address: Any) -> None:
            nonlocal losses
            if not link._subscribes and losses < 2:
                losses += 1
                reader = session._reader
                assert reader is not None
                reader_id = await reader.call("CLIENT", "ID")
                redis_server.command("CLIENT", "KILL", "ID", reader_id)
                await until(lambda: not reader.alive)
            await connect(link, address)

        monkeypatch.setattr(RedisLink, "connect", connect_badly)
        await cut(run)
        await run.is_back()
        assert losses == 2
        await deliver_to(run, peers)
        assert await events.heard() == []
        try:
            await until(lambda: redis_server.command("CLIENT", "LIST").count(b"\n") == clients, "none is left over")
        finally:
            redis_server.kill_clients("normal")  # with one left over this loop could not be closed
