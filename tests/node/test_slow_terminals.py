"""Terminals that do not read: so much may wait for each, so much for all, and nobody else is harmed."""

from __future__ import annotations

import json
from typing import cast

import pytest

from freeim.names import ClientId
from freeim.node import accept
from tests.node.harness import (
    Peer,
    Running,
    close_payload,
    direct,
    frame,
    running,
    told,
    until,
)
from tests.node.terminals import (
    NEVER_CUT,
    listen,
    only_is_left,
    only_is_left_after_rest,
    pause,
    resume,
    slow_raw_client,
)
from tests.servers import RedisServer

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


def drops_frames() -> bool:
    """Whether the node can take frames out of a queue; those of asyncio's transports stay in it."""
    return bool(vars(accept)["HAVE_EPOLL"])


SLOW = {"queue_limit": 300_000, "send_buffer": 4096}


async def test_a_receiver_that_does_not_read_is_sent_away_with_4002_when_its_queue_is_full(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis_server, **SLOW) as run:
        other = await run.connect(2)
        slow = await slow_raw_client(run, 1)
        listen(caplog)
        texts = [json.dumps(f"{number} " + "x" * 50_000) for number in range(20)]
        for text in texts:
            run.publish(direct([1, 2], json.loads(text)))
            # Each one is sent on its own.
            assert await other.next() == text
        for connection in run.node._connections.living.values():
            most = 50_000 if drops_frames() else 300_000
            assert connection.transport.get_write_buffer_size() < most + 100
        lines = told(caplog)
        assert len(lines) == 1, lines
        assert "client 1:" in lines[0]
        assert "too slowly" in lines[0]
        assert lines[0].endswith("; send less, or raise --queue-limit (300000 bytes)")
        assert run.online == {"1": "1", "2": "1"}, "its socket is still open"
        resume(slow)
        got = []
        while (received := await slow.frame())[0] == TEXT:
            got.append(received[1].decode())
        assert received == (CLOSE, close_payload(4002, b"too slow"))
        # What the system had taken, or some of it, comes whole and in order.
        assert got == texts[: len(got)]
        if not drops_frames():
            assert 6 <= len(got) < 15, "a transport of asyncio drops nothing"
        else:
            assert 1 <= len(got) < 5
        slow.send(frame(CLOSE, close_payload(4002)))
        await only_is_left_after_rest(run, slow, other)
        assert len(told(caplog)) == 1


async def test_a_receiver_that_never_reads_again_is_cut_after_the_close_timeout(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis_server, close_timeout=0.3, **SLOW) as run, run.events() as events:
        other = await run.connect(2)
        await slow_raw_client(run, 1)
        await events.next(2)
        listen(caplog)
        for number in range(20):
            run.publish(direct([1, 2], str(number) * 25_000))
            assert await other.next() == f'"{str(number) * 25_000}"'
        assert await events.next() == [(run.names.event_offline, '{"Item1":1,"Item2":"m","Item3":0}')]
        await only_is_left(run, other)
        assert len(told(caplog)) == 1


async def test_an_empty_queue_takes_one_message_of_any_size_and_a_full_one_none(redis_server: RedisServer) -> None:
    async with running(redis_server, queue_limit=1000, send_buffer=4096) as run:
        other = await run.connect(2)
        slow = await slow_raw_client(run, 1)
        big = "x" * 1_000_000
        for _ in range(2):
            run.publish(direct([1, 2], big))
            assert await other.next() == f'"{big}"'
            resume(slow)
            # All of it has arrived, so that the queue is empty again.
            assert await slow.frame() == (TEXT, f'"{big}"'.encode())
            pause(slow)
        run.publish(direct([1, 2], big))
        assert await other.next() == f'"{big}"'
        run.publish(direct([1, 2], "one too many, if it does not fit into the rest of the queue" * 20))
        await other.next()
        resume(slow)
        assert await slow.frame() == (TEXT, f'"{big}"'.encode())
        assert await slow.frame() == (CLOSE, close_payload(4002, b"too slow"))
        slow.close()
        await only_is_left(run, other)


async def test_a_slow_receiver_gets_everything_in_order_while_its_queue_suffices(redis_server: RedisServer) -> None:
    async with running(redis_server, queue_limit=2_000_000, send_buffer=4096) as run:
        other = await run.connect(2)
        slow = await slow_raw_client(run, 1)
        texts = [json.dumps(f"{number} " + "x" * 20_000) for number in range(40)]
        for text in texts:
            run.publish(direct([1, 2], json.loads(text)))
        assert await other.fence() == texts
        slow.send(frame(PING, b"all read"))
        resume(slow)
        assert [await slow.frame() for _ in texts] == [(TEXT, text.encode()) for text in texts]
        assert await slow.frame() == (PONG, b"all read")


# ---- many terminals that do not read: what waits for all of them together

NODE_LIMIT = 1_000_000
BUDGET = {"node_queue_limit": NODE_LIMIT, "queue_limit": 10_000_000, "send_buffer": 4096}


def waiting(run: Running, client: ClientId) -> int:
    """Return how many bytes the node holds for the one connection of a client."""
    (connection,) = run.node._bus.router.clients[str(client).encode()].connections
    return cast(int, connection.transport.get_write_buffer_size())


async def sent(run: Running, other: Peer, client: ClientId, count: int) -> list[str]:
    """Send texts of 50 KB to a client and to another one, one by one; return what they are to receive."""
    texts = [json.dumps(f"{client} {number} " + "x" * 50_000) for number in range(count)]
    for text in texts:
        run.publish(direct([client, other.client], json.loads(text)))
        assert await other.next() == text
    return texts


async def test_when_too_much_waits_in_all_the_one_with_most_is_cut_and_the_others_miss_nothing(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis_server, **BUDGET, **NEVER_CUT) as run:
        other = await run.connect(9)
        most, middle, small, last = [await slow_raw_client(run, client) for client in (1, 2, 3, 4)]
        listen(caplog)
        texts = {1: await sent(run, other, 1, 9), 2: await sent(run, other, 2, 6), 3: await sent(run, other, 3, 1)}
        assert told(caplog) == []
        fanout = run.node._connections.fanout
        texts[4] = []
        while not fanout.too_slow:
            texts[4] += await sent(run, other, 4, 1)
            assert fanout.waiting <= NODE_LIMIT
            assert waiting(run, 4) < waiting(run, 2), "the one that passes the limit is not one with most"
        assert fanout.too_slow == 1
        assert fanout.waiting <= NODE_LIMIT * 3 / 4
        (line,) = told(caplog)
        assert "client 1:" in line
        assert line.endswith(f"; send less, or raise --node-queue-limit ({NODE_LIMIT} bytes for all together)")
        resume(most)
        if drops_frames():
            got = []
            while (received := await most.frame())[0] == TEXT:
                got.append(received[1].decode())
            assert received == (CLOSE, close_payload(4002, b"too slow"))
            assert got == texts[1][: len(got)]
            assert 1 <= len(got) < 5
            most.send(frame(CLOSE, close_payload(4002)))
        await until(lambda: run.node._connections.accepted == 4, "that one has gone")
        for client, raw in ((2, middle), (3, small), (4, last)):
            assert waiting(run, client) > 0
            resume(raw)
            assert [await raw.frame() for _ in texts[client]] == [(TEXT, text.encode()) for text in texts[client]]
        await until(lambda: fanout.waiting == 0, "all have read")
        assert len(told(caplog)) == 1


async def test_one_message_that_is_larger_than_the_limit_of_the_node_ends_that_connection_alone(
    redis_server: RedisServer,
) -> None:
    async with running(redis_server, **BUDGET, **NEVER_CUT) as run:
        other = await run.connect(9)
        small, large = await slow_raw_client(run, 1), await slow_raw_client(run, 2)
        texts = await sent(run, other, 1, 2)
        run.publish(direct([2], "x" * 5_000_000))
        await until(lambda: run.node._connections.accepted == 2, "cut without waiting for the close time-out")
        fanout = run.node._connections.fanout
        assert fanout.too_slow == 1
        assert fanout.waiting == waiting(run, 1)
        resume(small)
        assert [await small.frame() for _ in texts] == [(TEXT, text.encode()) for text in texts]
        await until(lambda: fanout.waiting == 0, "all have read")
        large.close()


async def test_many_that_are_cut_at_once_are_told_in_a_few_lines_and_a_number(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freeim.node.connections.TOO_SLOW_PER_MINUTE", 2)
    async with running(redis_server, queue_limit=1000, send_buffer=4096, **NEVER_CUT) as run:
        for client in range(1, 7):
            await slow_raw_client(run, client)
        listen(caplog)
        for _ in range(2):
            run.publish(direct(range(1, 7), "x" * 500_000))
            await run.heard_all()
        await until(lambda: run.node._connections.fanout.too_slow == 6, "all are cut")
        assert len(told(caplog)) == 2
        run.node._session.beat_now()
        await until(lambda: len(told(caplog)) > 2, "the rest is told as a number")
        assert told(caplog)[2:] == ["cut 4 more connections that read too slowly"]
