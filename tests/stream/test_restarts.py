"""A node that stops, or is killed, and starts again: clients get what they missed when they are back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator

import pytest

from freeim import ImHelper
from tests.faults.nodes import start
from tests.membership.terminals import Ended, Terminal, grant
from tests.node.harness import running, until
from tests.servers import RedisServer, free_port
from tests.stream.publishers import Publishers, on_stream


@pytest.fixture
def helper(redis_server: RedisServer) -> Iterator[ImHelper]:
    with ImHelper(redis_server.url, nodes=["a"], bus="stream") as helper:
        yield helper


def texts(*messages: object) -> list[str]:
    return [json.dumps(message) for message in messages]


async def test_clients_that_come_back_at_different_times_get_what_concerns_them_once_before_anything_newer(
    redis_server: RedisServer, helper: ImHelper
) -> None:
    async with running(redis_server, **on_stream()) as run:
        for client in (1, 2, 3):
            await run.connect(client)
        helper.send_message(0, [1, 2, 3], "before")
        for peer in run.peers:
            assert await peer.fence() == texts("before")
    helper.join_chan(2, "room")
    helper.send_message(0, [1, 2], "direct")
    helper.send_chan_message(0, "room", "channel")
    helper.send_broadcast_message("broadcast")
    async with running(redis_server, **on_stream()) as run:
        first = await run.connect(1)
        assert await first.fence() == texts("direct", "broadcast")
        helper.send_broadcast_message("live")
        await asyncio.sleep(1)
        second = await run.connect(2)
        helper.send_broadcast_message("newest")
        assert await second.fence() == texts("direct", "channel", "broadcast", "live", "newest")
        assert await first.fence() == texts("live", "newest")
        helper.join_chan(3, "room")
        third = await run.connect(3)
        assert await third.fence() == texts("channel", "broadcast", "live", "newest")


async def test_a_client_that_closes_and_opens_again_in_the_grace_gets_only_what_came_since(
    redis_server: RedisServer, helper: ImHelper
) -> None:
    helper.send_message(0, 1, "before the node")
    async with running(redis_server, **on_stream()) as run:
        first = await run.connect(1)
        assert await first.fence() == texts("before the node")
        other = await run.connect(1)
        assert await other.fence() == []
        await first.close()
        helper.send_message(0, 1, "to the other")
        assert await other.fence() == texts("to the other")
        await other.close()
        helper.send_message(0, 1, "to nobody")
        again = await run.connect(1)
        assert await again.fence() == texts("to nobody")


async def test_after_the_grace_a_client_gets_nothing_that_is_older_than_itself(
    redis_server: RedisServer, helper: ImHelper
) -> None:
    helper.send_message(0, 1, "old")
    async with running(redis_server, **on_stream(stream_grace=0.3)) as run:
        router = run.node._bus.router
        assert router.window_size == 1
        await until(lambda: router.kept_since is None, "the end of the grace")
        assert router.window_size == 0
        peer = await run.connect(1)
        assert await peer.fence() == []


async def test_a_receipt_comes_once_when_the_client_is_back_or_when_the_grace_ends(
    redis_server: RedisServer, helper: ImHelper
) -> None:
    helper.send_message(7, [1, 2], "x", receipt=True)
    async with running(redis_server, **on_stream(stream_grace=2)) as run:
        sender = await run.connect(7)
        assert await sender.fence() == []
        await run.connect(1)
        receipt = json.loads(await sender.next())
        assert receipt == {"content": '"x"', "receipt": "发送成功"}
        await until(lambda: sender.seen, "the receipt of the one that stays away")
        assert json.loads(sender.seen[0])["receipt"] == "用户不在线"
        assert run.node._bus.router.kept_since is None
        await run.connect(2)
        assert len(await sender.fence()) == 1


async def test_a_forced_offline_does_not_cut_a_connection_that_is_newer(
    redis_server: RedisServer, helper: ImHelper
) -> None:
    async with running(redis_server, **on_stream()) as run:
        await run.connect(1)
    helper.force_offline(1)
    helper.send_message(0, 1, "x")
    async with running(redis_server, **on_stream()) as run:
        peer = await run.connect(1)
        assert await peer.fence() == texts("x")
        assert peer.is_open
        helper.force_offline(1)
        assert await peer.ended() == (1001, "disconnect")


@pytest.mark.parametrize("grace", [30.0, 0.1])
async def test_a_stop_that_takes_its_time_loses_nothing_and_repeats_nothing(
    grace: float, redis_server: RedisServer, helper: ImHelper
) -> None:
    """Each client gets what came after its own close, however much earlier than the stop that was."""
    got: dict[int, list[str]] = {client: [] for client in range(1, 9)}
    async with running(redis_server, **on_stream(drain=1.0, stream_grace=grace)) as run:
        if grace < 1:
            await until(lambda: run.node._bus.router.kept_since is None, "the end of the grace of the start")
        peers = [await run.connect(client) for client in got]
        for peer in peers:
            assert await peer.fence() == []
        with Publishers(redis_server.url, 1, "room", pause=0.005) as publishers:
            await until(lambda: publishers.count() > 50)
            await run.node.stop()
            ends = {await peer.ended() for peer in peers}
            assert ends == {(1012, "service restart")}
            sent = publishers.count()
            await until(lambda: publishers.count() > sent + 30)
        for peer in peers:
            got[int(peer.client)] += peer.seen
    lengths = sorted(len(seen) for client, seen in got.items() if client != 1)
    assert lengths[-1] - lengths[0] > 20, "they were not closed at different times"
    async with running(redis_server, **on_stream()) as run:
        assert not redis_server.command("EXISTS", run.names.away("a"))
        for client, seen in got.items():
            peer = await run.connect(client)
            seen.extend(await peer.fence())
    sent_to_all = [
        json.dumps([publisher, number], separators=(",", ":"))
        for publisher, numbers in enumerate(publishers.sent)
        for number in numbers
        if number % 3 == 2
    ]
    for client, seen in got.items():
        if client != 1:  # it gets the direct ones too
            assert sorted(seen) == sorted(sent_to_all)
        for numbers in publishers.numbers(seen):
            assert numbers == sorted(set(numbers))


async def test_what_a_node_that_stops_in_the_grace_writes_is_not_overwritten(
    redis_server: RedisServer, helper: ImHelper, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(redis_server, **on_stream()) as run:
        await run.connect(1)
        release = run.node._presence.release

        async def slow_release() -> None:
            await asyncio.sleep(0.3)
            await release()

        monkeypatch.setattr(run.node._presence, "release", slow_release)
        helper.send_broadcast_message("x")
        await until(lambda: run.peers[0].seen, "it has come")
    assert redis_server.command("GET", run.names.position("a")) == b"0-0 0"
    async with running(redis_server, **on_stream()) as run:
        for client, seen in ((1, []), (2, texts("x"))):
            peer = await run.connect(client)
            assert await peer.fence() == seen


async def test_after_a_kill_everything_arrives_and_at_most_the_last_moment_twice(redis_server: RedisServer) -> None:
    port = free_port()
    name = f"127.0.0.1:{port}"
    with ImHelper(redis_server.url) as helper:
        arguments = ("--bus", "stream")
        with start(redis_server, name, [name], *arguments) as node:
            node.banner()
            with redis_server.wire() as wire:
                terminal = await Terminal.connect(name, grant(wire, 1))
            published: dict[int, float] = {}

            async def publish() -> None:
                for number in range(1500):
                    published[number] = time.monotonic()
                    await asyncio.to_thread(helper.send_message, 0, 1, number)
                    await asyncio.sleep(0.004)  # so that the first of them are older than what may come twice

            publishing = asyncio.create_task(publish())
            await until(lambda: len(published) > 500, seconds=30)
            node.process.kill()
            killed = time.monotonic()
            node.wait()
            first = [int(text) for text in await everything(terminal)]
        with start(redis_server, name, [name], *arguments) as node:
            node.banner()
            with redis_server.wire() as wire:
                terminal = await Terminal.connect(name, grant(wire, 1))
            await publishing
            second: list[int] = []
            while not second or second[-1] != 1499:
                second.append(int(await asyncio.wait_for(terminal.next(), 20)))
    assert first == list(range(len(first)))
    assert second == list(range(second[0], 1500))
    assert second[0] <= len(first), "something is missing"
    twice = first[second[0] :]
    assert all(published[number] > killed - 1.0 for number in twice), "the position had not been written for too long"


async def everything(terminal: Terminal) -> list[str]:
    """Return what a terminal whose node has died got before."""
    found = []
    with contextlib.suppress(Ended):
        while True:
            found.append(await terminal.next())
    return found
