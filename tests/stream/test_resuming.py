"""--bus stream and --resume-window together: a gap in what is heard is none for who comes back, a loss is."""

from __future__ import annotations

import asyncio
import json

import pytest

from freeim import ImHelper
from tests.faults.proxy import Proxy
from tests.node.harness import noted_reads, running, until
from tests.node.resuming import WINDOW, Resumer, results, resumer
from tests.node.scrape import scrape
from tests.servers import RedisServer
from tests.stream.publishers import on_stream


def texts(*messages: object) -> list[str]:
    return [json.dumps(message) for message in messages]


async def cut(run: object, proxy: Proxy) -> None:
    await asyncio.to_thread(proxy.refuse)
    await asyncio.to_thread(proxy.cut)
    await until(lambda: not run.node._session.up)  # type: ignore[attr-defined]


async def test_who_is_away_while_redis_is_cut_gets_all_and_missed_nothing(redis_server: RedisServer) -> None:
    with Proxy(redis_server.port) as proxy, ImHelper(redis_server.url) as helper:
        async with running(redis_server, **on_stream(redis_url=proxy.url), **WINDOW) as run:
            away: Resumer = await resumer(run, 1)
            there = await resumer(run, 2)
            run.join(1, "room")
            helper.send_message(0, [1, 2], "before")
            assert await away.fence() == await there.fence() == texts("before")
            await away.lose()
            await cut(run, proxy)
            helper.send_message(0, [1, 2], "direct")
            helper.send_chan_message(0, "room", "channel")
            helper.send_broadcast_message("broadcast")
            await asyncio.to_thread(proxy.refuse, False)
            await run.is_back()
            await away.connect()
            assert away.missed is False
            assert await away.fence() == texts("direct", "channel", "broadcast")
            await (await there.lose()).connect()
            assert there.missed is False
            assert await there.fence() == texts("direct", "broadcast")
            assert results(run) == {"resumed": 2}


async def test_a_window_that_ends_within_the_grace_loses_nothing_and_answers_no_receipt_twice(
    redis_server: RedisServer,
) -> None:
    with ImHelper(redis_server.url, nodes=["a"], bus="stream") as helper:
        async with running(redis_server, **on_stream(stream_grace=60), resume_window=0.5) as run:
            sender = await run.connect(7)
            terminal = await (await resumer(run, 1)).lose()
            helper.send_message(7, 1, "x", receipt=True)
            receipt = await sender.next()
            assert json.loads(receipt)["receipt"] == "发送成功", "it is kept for who is away"
            await until(lambda: not run.node._connections.resume.away, "the window is over")
            await terminal.connect()
            assert terminal.missed is True
            assert await terminal.fence() == texts("x")
            assert await sender.fence() == []


async def test_what_was_trimmed_is_a_gap_for_who_comes_back(redis_server: RedisServer) -> None:
    with Proxy(redis_server.port) as proxy, ImHelper(redis_server.url) as helper:
        async with running(redis_server, **on_stream(redis_url=proxy.url, stream_length=100), **WINDOW) as run:
            away = await (await resumer(run, 1)).lose()
            await cut(run, proxy)
            for number in range(1000):
                helper.send_message(0, 1, number)
            await asyncio.to_thread(proxy.refuse, False)
            await run.is_back()
            await away.connect()
            assert away.missed is True
            assert results(run) == {"gap": 1}


async def test_a_stream_that_was_flushed_is_a_gap_for_who_comes_back(redis_server: RedisServer) -> None:
    with ImHelper(redis_server.url, nodes=["a"], bus="stream") as helper:
        async with running(redis_server, **on_stream(), **WINDOW) as run:
            helper.send_message(0, 1, "known")
            away = await (await resumer(run, 1)).lose()
            redis_server.command("FLUSHALL")
            assert run.node._stream is not None
            await until(lambda: run.node._stream.count_lost(), "it has seen it")  # type: ignore[union-attr]
            await run.settled()
            await away.connect()
            assert away.missed is True


async def test_what_the_node_has_no_room_for_is_read_from_the_stream_and_not_lost(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing is heard after it that would show the hole."""
    reads = noted_reads(monkeypatch)
    with ImHelper(redis_server.url) as helper:
        async with running(redis_server, **on_stream(bus_queue_limit=1, stream_grace=0), **WINDOW) as run:
            terminal = await resumer(run, 1)
            session = run.node._session
            link = session._reader
            assert link is not None
            link.behind = True  # as if it had something to do that takes long
            for number in range(10):
                reads.clear()
                await asyncio.to_thread(helper.send_message, 0, 1, number)
                await until(lambda: b"message" in b"".join(reads), "it has been read")
            for _ in range(4):  # the last that is read are probes
                session.beat_now()
                await asyncio.sleep(0.2)
            assert run.node._stream is not None
            assert run.node._stream.behind, "they have been dropped"
            assert session.dropped == 0, "and are not lost"
            link.go_on()
            await until(lambda: len(terminal.texts) == 10, f"all; there are {terminal.texts}", 20)
            assert terminal.texts == texts(*range(10))
            assert (await scrape(run)).labelled("dropped_messages_total") == {}
            await (await terminal.lose()).connect()
            assert terminal.missed is False
