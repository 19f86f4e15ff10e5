"""What a node says about a Redis whose settings can hurt it, and what it does about them."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from freeim.node.link import LinkLost
from tests.node.harness import Running, channel_message, direct, running, told, until
from tests.servers import RedisServer


def warnings(caplog: pytest.LogCaptureFixture, about: str) -> list[str]:
    return [line for line in told(caplog, logging.WARNING) if about in line]


async def beat(run: Running) -> None:
    """Let the node look at Redis once more."""
    beats = run.node._presence._beats
    run.node._session.beat_now()
    await until(lambda: run.node._presence._beats > beats, "a beat")
    await run.heard_all()


async def test_a_redis_that_may_evict_keys_is_warned_about_also_when_it_became_so_during_a_gap(
    own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(own_redis_server) as run:
        assert warnings(caplog, "evict") == []
        own_redis_server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        own_redis_server.kill_clients("normal")
        await until(lambda: warnings(caplog, "evict"), "the warning")
        await run.is_back()
    caplog.clear()
    async with running(own_redis_server):
        assert len(warnings(caplog, "set maxmemory-policy noeviction, not allkeys-lru")) == 1


async def test_a_tracking_table_that_is_nearly_full_is_warned_about_once(
    own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis_server.command("CONFIG", "SET", "tracking-table-max-keys", 20)
    async with running(own_redis_server) as run:
        for client in range(1, 15):
            await run.connect(client)
        await beat(run)
        assert warnings(caplog, "has room for") == []
        await run.connect(15)
        await beat(run)
        await beat(run)
        await until(lambda: warnings(caplog, "Redis tracks 15 keys and has room for 20"), "the warning")
        assert len(warnings(caplog, "has room for")) == 1
        assert run.node._session.tracking


async def test_with_more_clients_than_the_tracking_table_holds_all_are_served_by_channel(
    own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis_server.command("CONFIG", "SET", "tracking-table-max-keys", 20)
    async with running(own_redis_server) as run:
        peers = [await run.connect(client) for client in range(1, 61)]
        for client in range(1, 61):
            run.join(client, "room")
        await until(lambda: run.node._bus.idle_rereads >= 1000, "it reads for nothing")
        run.node._session.beat_now()
        await until(lambda: not run.node._session.tracking, "it gives tracking up")
        assert len(warnings(caplog, "more clients than tracking-table-max-keys (20)")) == 1
        run.publish(channel_message("room", "hi"))
        for peer in peers:
            assert await peer.fence() == ['"hi"']
        rereads = run.node._bus.idle_rereads
        run.join(1, "other")
        run.publish(channel_message("other", "ho"))
        assert await peers[0].fence() == ['"ho"']
        assert run.node._bus.idle_rereads == rereads, "it reads no more"
        assert "without CLIENT TRACKING" in (await run.http(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n"))[2].decode()


async def test_a_join_that_is_being_read_when_the_node_gives_tracking_up_counts(
    own_redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(own_redis_server) as run:
        peer = await run.connect(1)
        session = run.node._session
        held: list[Any] = []
        read = session.read
        monkeypatch.setattr(session, "read", lambda *args: held.append(args))
        run.join(1, "room")
        await until(lambda: held, "the node reads the membership again")
        run.publish(channel_message("room", "hi"))
        await run.heard_all()
        session.stop_tracking("a reason", run.node._bus.fall_back)
        monkeypatch.undo()
        for args in reversed(held):  # as if the join had come while Redis was being told
            read(*args)
        await until(lambda: not session.tracking, "it has given tracking up")
        assert await peer.fence() == ['"hi"']
        run.leave(1, "room")
        run.publish(channel_message("room", "not for you"))
        assert await peer.fence() == []


async def test_who_waits_for_an_answer_when_the_node_has_given_tracking_up_and_loses_redis_is_served_again(
    own_redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(own_redis_server) as run:
        peer = await run.connect(1)
        session = run.node._session
        held: list[Any] = []
        monkeypatch.setattr(session, "read", lambda *args: held.append(args))
        run.join(1, "room")
        await until(lambda: held, "the node reads the membership again")
        monkeypatch.undo()
        session.stop_tracking("a reason", run.node._bus.fall_back)
        await until(lambda: not session.tracking, "it has given tracking up")
        own_redis_server.command("ACL", "SETUSER", "default", "-client")
        session.lose(LinkLost("test"))
        await run.is_back()
        assert not session.tracking
        run.publish(channel_message("room", "hi"))
        assert await peer.fence() == ['"hi"']


async def test_messages_that_were_not_kept_for_a_client_whose_membership_was_read_are_told_as_a_number(
    own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(own_redis_server, bus_queue_limit=1) as run:
        peer, other = await run.connect(1), await run.connect(2)
        held = []
        read = run.node._session.read
        monkeypatch.setattr(run.node._session, "read", lambda *args: held.append(args))
        run.join(1, "room")
        await until(lambda: held, "the node reads the membership again")
        for number in range(5):
            run.publish(direct([1], number))
        run.publish(direct([2], "done"))
        assert await other.fence() == ['"done"']
        assert warnings(caplog, "are lost for them") == []
        monkeypatch.undo()
        for args in held:
            read(*args)
        await until(lambda: run.node._bus.router.pending_count == 0, "it has been read")
        assert await peer.fence() == ["0"], "one is kept, whatever its size"
        await beat(run)
        await until(lambda: warnings(caplog, "are lost for them"), "the warning")
        assert len(warnings(caplog, "6 messages could not be kept for clients whose membership was being read")) == 1
        await beat(run)
        assert len(warnings(caplog, "are lost for them")) == 1
