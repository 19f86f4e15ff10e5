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
from freeim.envelope import force_offline
from freeim.node.link import GREAT_HURRY, HURRY, LARGE_READ, RedisLink
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


async def test_what_is_read_while_something_is_handled_waits_its_turn_and_reading_never_pauses() -> None:
    got: list[bytes] = []
    ended: list[bool] = []
    transport = _Transport()
    link = RedisLink(on_message=got.append, on_received=ended.append)
    link.connection_made(transport)
    link.data_received(message(b"1") + message(b"2"))
    assert (got, ended, link.queued) == ([b"1"], [False], 0)
    link.data_received(message(b"3"))
    link.data_received(message(b"4"))
    assert got == [b"1"]
    assert link.queued >= 2 * len(message(b"3"))
    await until(lambda: not link.behind)
    assert got == [b"1", b"2", b"3", b"4"]
    assert ended == [False, False, True, True, True], "each read was told of that had come to its end"
    assert link.queued == 0
    assert transport.calls == []


async def test_of_what_waits_beyond_the_limit_the_oldest_messages_are_dropped_and_counted() -> None:
    got: list[bytes] = []
    dropped: list[int] = []
    link = RedisLink(on_message=got.append, queue_limit=100_000, on_dropped=dropped.append, vital=(b"vital",))
    link.connection_made(_Transport())
    link.data_received(message(b"first") + message(b"second"))
    link.data_received(message(b"vital"))
    for number in range(1000):
        link.data_received(message(b"%04d" % number + bytes(1000)))
        assert link.queued <= 100_000
    assert got == [b"first"]
    assert dropped
    await until(lambda: not link.behind)
    assert got[:2] == [b"first", b"vital"], "what is older than all that was kept, and vital"
    left = [int(payload[:4]) for payload in got[2:]]
    assert left == list(range(1000 - len(left), 1000))
    assert 90 <= len(left) < 100
    assert sum(dropped) + len(got) == 1003


async def test_without_tracking_who_is_forced_offline_is_so_also_where_too_many_messages_wait_for_members(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with RedisServer(args=("--rename-command", "CLIENT", "")) as redis:
        async with running(redis, bus_queue_limit=2_000) as run:
            peer, session, bus = await run.connect(1), run.node._session, run.node._bus
            send = session.send
            held: list[tuple[Any, ...]] = []

            def hold(*command: Any) -> None:
                if command[1] == "HKEYS":  # who is a member is asked, and answered later
                    held.append(command)
                else:
                    send(*command)

            monkeypatch.setattr(session, "send", hold)
            run.publish_all(channel_message("room", number) for number in range(20))
            run.publish(force_offline(1))
            await until(lambda: held and bus.dropped_for_membership + bus.unrouted == 21, "all has come")
            assert 10 < bus.dropped_for_membership < 20
            for command in held:
                send(*command)
            assert await peer.ended() == (1001, "disconnect")


async def test_slices_are_the_shorter_the_more_comes_and_as_usual_once_all_is_handled() -> None:
    hurry: list[int] = []
    link = RedisLink(on_message=lambda _: None, on_hurry=hurry.append)
    link.connection_made(_Transport())
    link.data_received(message(b"1") * 2)
    link.data_received(message(b"1"))
    await until(lambda: not link.behind)
    assert hurry == [], "something small came meanwhile"
    link.data_received(message(bytes(LARGE_READ)) * 3)
    await until(lambda: not link.behind)
    assert hurry == [HURRY, 1], "much that came at once"
    hurry.clear()
    link.data_received(message(bytes(LARGE_READ)))
    link.data_received(message(bytes(LARGE_READ)))
    await until(lambda: not link.behind)
    assert hurry == [GREAT_HURRY, 1], "it goes on coming"


async def test_a_queue_that_overflows_with_what_is_no_resp_ends_the_link() -> None:
    lost: list[Exception] = []
    link = RedisLink(on_message=lambda _: None, on_lost=lost.append, queue_limit=1)
    link.connection_made(_Transport())
    link.data_received(message(b"1") + message(b"2"))
    link.data_received(b"no RESP")
    link.data_received(b"at all")
    link.data_received(b".")
    assert "not its protocol" in str(lost[0])
    assert not link.alive


async def test_what_the_gate_holds_back_waits_until_it_is_told_to_go_on() -> None:
    got: list[bytes] = []
    shut: list[bool] = [True]
    link = RedisLink(on_message=got.append, gate=lambda: not shut)
    link.connection_made(_Transport())
    for payload in (b"1", b"2", b"3"):
        link.data_received(message(payload))
    for _ in range(5):
        await asyncio.sleep(0)
    assert got == []
    shut.clear()
    link.go_on()
    await until(lambda: not link.behind)
    assert got == [b"1", b"2", b"3"]


async def test_behind_a_large_read_the_loop_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freeim.node.link, "RespStream", RespStream)
    got: list[int] = []
    link = RedisLink(on_message=lambda payload: got.append(len(payload)))
    link.connection_made(_Transport())
    link.data_received(message(b"small"))
    assert not link.behind
    link.data_received(message(bytes(LARGE_READ)))
    assert link.behind
    link.data_received(message(b"next"))
    assert got == [5, LARGE_READ]
    await until(lambda: not link.behind)
    assert got == [5, LARGE_READ, 4]


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
