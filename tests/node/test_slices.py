"""What Redis sends is handled in slices of time, and nobody but the clock notices."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import freeim.node.bus
import freeim.node.link
import freeim.node.presence
from freeim._core import Connection, RespStream, Router
from freeim.node.link import LARGE_READ, RedisLink
from tests.node.harness import channel_message, direct, running, until
from tests.servers import RedisServer


class _EachItemIsASlice:
    NOTHING = RespStream.NOTHING

    def __new__(cls, *args: Any, **more: Any) -> Any:
        return RespStream(*args, **more, slice_ms=0)  # type: ignore[misc]  # mypy takes args for all of them


@pytest.fixture(autouse=True)
def tiny_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freeim.node.link, "RespStream", _EachItemIsASlice)
    monkeypatch.setattr(freeim.node.bus, "Router", partial(Router, slice_ms=0))


class _Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def pause_reading(self) -> None:
        self.calls.append("pause")

    def resume_reading(self) -> None:
        self.calls.append("resume")

    def abort(self) -> None:
        self.calls.append("abort")


def message(payload: bytes) -> bytes:
    return b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$%d\r\n%s\r\n" % (len(payload), payload)


async def test_reading_pauses_until_all_is_handled() -> None:
    got: list[bytes] = []
    complete: list[bool] = []
    transport = _Transport()
    link = RedisLink(on_message=got.append, on_received=complete.append)
    link.connection_made(transport)
    link.data_received(message(b"1") + message(b"2"))
    assert (got, complete, transport.calls) == ([b"1"], [False], ["pause"])
    await until(lambda: complete[-1])
    assert got == [b"1", b"2"]
    assert complete == [False, False, True]
    assert transport.calls == ["pause", "resume"] * 2


async def test_behind_a_large_read_the_loop_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freeim.node.link, "RespStream", RespStream)
    complete: list[bool] = []
    transport = _Transport()
    link = RedisLink(on_message=lambda _: None, on_received=complete.append)
    link.connection_made(transport)
    link.data_received(message(b"small"))
    assert transport.calls == []
    link.data_received(message(bytes(LARGE_READ)))
    assert transport.calls == ["pause"]
    await until(lambda: transport.calls == ["pause", "resume"])
    assert all(complete)


async def test_a_defect_in_a_later_slice_ends_the_link_and_holds_up_nobody() -> None:
    def defect(payload: bytes) -> None:
        if payload == b"2":
            raise ZeroDivisionError("a defect")

    problems: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context.get("exception")))
    lost: list[Exception] = []
    complete: list[bool] = []
    link = RedisLink(on_message=defect, on_received=complete.append, on_lost=lost.append)
    link.connection_made(_Transport())
    link.data_received(message(b"1") + message(b"2"))
    await until(lambda: bool(problems))
    assert isinstance(problems[0], ZeroDivisionError)
    assert "a defect" in str(lost[0])
    assert complete == [False, True]


async def test_a_link_that_ends_in_between_leaves_nobody_waiting_for_the_rest() -> None:
    got: list[bytes] = []
    complete: list[bool] = []
    link = RedisLink(on_message=got.append, on_received=complete.append)
    link.connection_made(_Transport())
    link.data_received(message(b"1") + message(b"2"))
    link.close()
    for _ in range(5):
        await asyncio.sleep(0)
    assert got == [b"1"]
    assert complete == [False, True]


async def test_a_link_that_ends_in_between_finishes_the_message_that_it_has_begun() -> None:
    got: list[bytes] = []

    def begin(payload: bytes) -> Callable[[], Any]:
        return lambda: got.append(payload)

    link = RedisLink(on_message=begin, on_received=lambda _: None)
    link.connection_made(_Transport())
    link.data_received(message(b"1") + message(b"2"))
    assert got == []
    link.close()
    assert got == [b"1"]


async def test_a_link_that_ends_in_a_callback_is_not_read_on() -> None:
    complete: list[bool] = []
    link = RedisLink(on_message=lambda _: link.close(), on_received=complete.append)
    link.connection_made(_Transport())
    link.data_received(message(b"1") + message(b"2"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert complete == [True]


async def test_everybody_gets_everything_in_order_and_in_few_writes(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        peers = await asyncio.gather(*(run.connect(client) for client in range(1, 21)))
        for client in range(1, 21):
            run.join(client, "room")
        for peer in peers:
            await peer.fence()
        fanout = run.node._connections.fanout
        before = fanout.writes
        run.publish_all(
            channel_message("room", number) if number % 2 else direct(range(1, 21), number) for number in range(100)
        )
        for peer in peers:
            assert await peer.fence() == [str(number) for number in range(100)]
        assert fanout.writes - before <= 6 * len(peers)


async def test_after_a_flushall_many_are_put_back_and_who_leaves_meanwhile_is_not(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeim.node.presence, "OPENS_PER_TURN", 1)
    async with running(redis_server) as run:
        await asyncio.gather(*(run.connect(client) for client in range(1, 21)))
        presence = run.node._presence
        run_open = presence._run_open
        first, *_, last = run.node._connections.living.values()
        put_back = []

        def watched(connection: Connection, *rest: Any) -> None:
            run_open(connection, *rest)
            put_back.append(connection)
            if connection is first:
                last.transport.abort()

        monkeypatch.setattr(presence, "_run_open", watched)
        redis_server.flush()
        expected = {str(client) for client in range(1, 21)} - {last.client.id.decode()}
        await until(lambda: set(run.online) == expected)
        await run.settled()
        assert set(run.online) == expected
        assert len(run.share) == 19
        assert first in put_back
        assert last not in put_back


async def test_a_second_flushall_while_the_first_is_mended_leaves_nobody_waiting(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        peer = await run.connect(1)
        recover = run.node._redis_watch.connected
        calls = 0

        async def again() -> None:
            nonlocal calls
            calls += 1
            await recover()
            if calls == 1:
                run.node._on_forgotten()  # as a second one that comes behind the last look at memberships

        run.node._redis_watch.connected = again  # type: ignore[method-assign]
        redis_server.flush()
        await until(lambda: calls == 2)
        run.publish_all([direct([1], 7)])
        assert await peer.fence() == ["7"]
        assert run.node._bus.router.pending_count == 0
