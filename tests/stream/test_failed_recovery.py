"""A node that comes back to a Redis that fails once more, in the middle of what is done then."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from freeim import ImHelper
from tests.node.harness import Peer, Running, running, until
from tests.servers import RedisServer
from tests.stream.publishers import on_stream


async def member(run: Running) -> Peer:
    peer = await run.connect(1)
    run.join(1, "room")
    assert await peer.fence() == []
    return peer


async def test_after_a_stream_that_could_not_be_read_at_once_memberships_are_known_and_followed(
    redis_server: RedisServer,
) -> None:
    with ImHelper(redis_server.url, nodes=["a"], bus="stream") as helper:
        async with running(redis_server, **on_stream()) as run:
            peer = await member(run)
            key, session = run.names.stream("a"), run.node._session
            redis_server.command("SET", key, "no stream")
            redis_server.command("CLIENT", "KILL", "TYPE", "pubsub")
            # More than once: what was put aside at the first gap must outlive the second.
            await until(lambda: sum(session.errors.values()) > 4 and not session.up, "the stream cannot be read")
            redis_server.command("DEL", key)
            await run.is_back()
            run.join(1, "other")
            await asyncio.to_thread(helper.send_chan_message, 0, "room", "old channel")
            await asyncio.to_thread(helper.send_chan_message, 0, "other", "new channel")
            assert await peer.fence() == ['"old channel"', '"new channel"']


async def test_without_tracking_what_waited_for_its_members_outlives_a_recovery_that_fails_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with (
        RedisServer(args=("--rename-command", "CLIENT", "KLIENT")) as redis,
        ImHelper(redis.url, nodes=["a"], bus="stream") as helper,
    ):
        async with running(redis, **on_stream()) as run:
            peer, session = await member(run), run.node._session
            send = session.send

            def hold(callback: Any, *args: Any) -> None:
                if args[0] != "HKEYS":  # who is a member is asked, and never answered
                    send(callback, *args)

            monkeypatch.setattr(session, "send", hold)
            await asyncio.to_thread(helper.send_chan_message, 0, "room", "kept")
            await until(lambda: run.node._bus.unrouted == 1, "it waits for the members of its channel")
            monkeypatch.undo()
            lease = run.names.lease("a")
            redis.command("DEL", lease)
            redis.command("LPUSH", lease, "no lease")
            redis.command("KLIENT", "KILL", "TYPE", "pubsub")
            await until(lambda: sum(session.errors.values()) > 4 and not session.up, "the lease cannot be renewed")
            redis.command("DEL", lease)
            await run.is_back()
            assert await peer.fence() == ['"kept"']
