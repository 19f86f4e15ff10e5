"""Resume: who comes back within the window gets each message once and in order, or is told that some are missing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from freeim.node.http import switching_protocols
from tests.faults.proxy import Proxy
from tests.node.harness import KEY, Running, channel_message, close_payload, direct, frame, head, running, until
from tests.node.resuming import WINDOW, Resumer, announcement, ends, offline, online, results, resumer
from tests.node.terminals import pause, resume, slow_raw_client
from tests.node.test_reconcile import bury
from tests.servers import RedisServer

TEXT, CLOSE, PING = 1, 8, 9


@contextlib.asynccontextmanager
async def opening_held(run: Running) -> AsyncIterator[None]:
    """Openings are sent to Redis at the end of this."""
    held: list[tuple[Any, ...]] = []
    presence = run.node._presence
    send = presence.open
    presence.open = lambda *args: held.append(args)  # type: ignore[method-assign]
    yield
    presence.open = send  # type: ignore[method-assign]
    for args in held:
        send(*args)


def texts(*names: str | int) -> list[str]:
    return [json.dumps(name) for name in names]


async def test_the_first_frame_says_the_id_and_each_text_frame_after_it_counts_one(redis_server: RedisServer) -> None:
    async with running(redis_server, **WINDOW) as run:
        raw = await run.raw()
        raw.send(head(f"/ws?resume=&token={run.token(1)}"))
        assert (await raw.response())[0] == 101
        opcode, first = await raw.frame()
        said = announcement(first.decode())
        log, _, number = said["id"].rpartition("-")
        assert (opcode, said["missed"], number) == (TEXT, False, "0")
        for each in range(3):
            run.publish(direct([1], each))
        assert [await raw.frame() for _ in range(3)] == [(TEXT, b"%d" % each) for each in range(3)]
        raw.cut()
        await until(lambda: run.node._connections.resume.away == 1)
        run.publish(direct([1], 3))
        again = await run.raw()
        again.send(head(f"/ws?token={run.token(1)}&resume={log}-2"))
        assert (await again.response())[0] == 101
        said = announcement((await again.frame())[1].decode())
        assert (said["missed"], said["id"].rpartition("-")[2]) == (False, "2")
        assert [await again.frame() for _ in range(2)] == [(TEXT, b"2"), (TEXT, b"3")]


@pytest.mark.parametrize("window", [0.0, 60.0])
async def test_a_terminal_that_does_not_ask_sees_the_same_bytes(redis_server: RedisServer, window: float) -> None:
    """With a window of 0 the parameter is ignored too."""
    async with running(redis_server, resume_window=window) as run:
        raw = await run.raw()
        raw.send(head(f"/ws?token={run.token(1)}{'' if window else '&resume='}"))
        response = await raw.reader.readuntil(b"\r\n\r\n")
        assert response == switching_protocols(KEY)
        run.join(1, "room")
        run.publish(direct([1], "a"))
        run.publish(channel_message("room", "b"))
        run.publish(channel_message(None, "c"))
        run.publish("__FreeIM__(ForceOffline)1")
        expected = b'\x81\x03"a"\x81\x03"b"\x81\x03"c"\x88\x0c\x03\xe9disconnect'
        assert await raw.reader.readexactly(len(expected)) == expected
        assert run.node._connections.resume.logs.memory == 0


async def test_what_was_lost_on_its_way_arrives_once_and_in_order(redis_server: RedisServer) -> None:
    """The proxy keeps what the node has sent, and resets the connection; all the time there are new messages."""
    numbers = {"direct": 0, "channel": 0, "broadcast": 0}
    done = False

    def publish(run: Running) -> None:
        kind = random.choice(list(numbers))
        message = f"{kind} {numbers[kind]} " + "x" * random.randrange(300)
        numbers[kind] += 1
        sent.append(json.dumps(message))
        if kind == "direct":
            run.publish(direct([1, 2], message))
        else:
            run.publish(channel_message("room" if kind == "channel" else None, message))

    async def keep_publishing(run: Running) -> None:
        while not done:
            publish(run)
            await asyncio.sleep(0.001)

    sent: list[str] = []
    async with running(redis_server, **WINDOW) as run:
        run.join(1, "room")
        run.join(2, "room")
        with Proxy(run.node.port) as proxy:
            terminal, other = await resumer(run, 1, proxy.port), await run.connect(2)
            publisher = asyncio.create_task(keep_publishing(run))
            for _ in range(8):
                before = len(terminal.texts)
                await until(lambda: len(terminal.texts) > before, "something arrives")  # noqa: B023
                proxy.freeze()
                count = len(sent) + 20
                await until(lambda: len(sent) >= count, "twenty more")  # noqa: B023
                kept = len(terminal.texts)
                proxy.cut()
                proxy.thaw()
                await terminal.peer.ended()
                assert len(terminal.texts) < len(sent) - 10, "some were lost on their way"
                assert len(terminal.texts) == kept
                await terminal.connect()
                assert terminal.missed is False
            done = True
            await publisher
            assert await terminal.fence() == sent
            assert await other.fence() == sent
        assert results(run) == {"resumed": 8}


async def test_a_close_and_a_return_is_a_second_connection_for_a_moment(redis_server: RedisServer) -> None:
    async with running(redis_server, **WINDOW) as run, run.events() as events:
        terminal = await resumer(run, 1)
        run.join(1, "room")
        await terminal.fence()
        await terminal.peer.close()
        run.publish(direct([1], "a"))
        run.publish(channel_message("room", "b"))
        run.publish(channel_message(None, "c"))
        await run.settled()
        assert run.online == {"1": "1"}
        assert await events.heard() == [online(run, 1, 1)]
        await terminal.connect()
        assert terminal.missed is False
        assert await terminal.fence() == texts("a", "b", "c")
        assert await events.next(2) == [online(run, 1, 2), offline(run, 1, 1)]
        assert run.online == {"1": "1"}
        assert len(run.share) == 1
        run.publish(channel_message("room", "d"))
        assert await terminal.fence() == texts("d")
        assert ends(run) == {"resumed": 1}


@pytest.mark.parametrize("code", [1000, 1001, 1011, 4001])
async def test_a_close_with_any_code_but_that_of_a_goodbye_keeps_the_client_online(
    redis_server: RedisServer, code: int
) -> None:
    async with running(redis_server, **WINDOW) as run:
        raw = await run.raw_client(1, frame(CLOSE, close_payload(code)), "&resume=")
        await raw.closed_with()
        await until(lambda: run.node._connections.resume.away == 1)
        await run.settled()
        assert run.online == {"1": "1"}


async def test_a_goodbye_is_the_end_at_once(redis_server: RedisServer) -> None:
    async with running(redis_server, **WINDOW) as run, run.events() as events:
        terminal = await resumer(run, 1)
        run.join(1, "room")
        await terminal.peer.close(4000)
        assert await events.next(2) == [online(run, 1, 1), offline(run, 1, 0)]
        assert run.keys() & {run.names.online, run.names.chan("room"), run.names.client(1)} == set()
        await terminal.connect()
        assert terminal.missed is True
        assert results(run) == {"unknown": 1}


async def test_when_the_window_is_over_the_client_is_offline_and_in_no_channel(redis_server: RedisServer) -> None:
    async with running(redis_server, resume_window=0.5) as run, run.events() as events:
        terminal = await resumer(run, 1)
        run.join(1, "room")
        await terminal.lose()
        assert await events.heard() == [online(run, 1, 1)]
        assert await events.next(1) == [offline(run, 1, 0)]
        assert run.keys() & {run.names.online, run.names.chan("room"), run.names.client(1)} == set()
        assert run.node._bus.router.clients == {}
        await terminal.connect()
        assert terminal.missed is True
        run.publish(direct([1], "from here on"))
        assert await terminal.fence() == texts("from here on")
        assert ends(run) == {"window": 1}
        assert results(run) == {"unknown": 1}


async def test_whoever_missed_more_than_is_kept_is_told_so(redis_server: RedisServer) -> None:
    async with running(redis_server, **WINDOW, resume_buffer=10_000) as run:
        terminal = await resumer(run, 1)
        old_id = terminal.last_id
        await terminal.lose()
        for number in range(15):
            run.publish(direct([1], f"{number} " + "x" * 1000))
        await run.heard_all()
        await terminal.connect()
        assert terminal.missed is True
        assert await terminal.fence() == [], "from the announcement on, and nothing before it"
        await terminal.lose()
        run.publish(direct([1], "kept"))
        await run.heard_all()
        await terminal.connect()
        assert terminal.missed is False
        assert await terminal.fence() == texts("kept")
        await terminal.lose()
        await terminal.connect(old_id)
        assert terminal.missed is True
        assert results(run) == {"forgotten": 2, "resumed": 1}


async def test_what_is_older_than_the_window_and_the_time_to_notice_a_loss_is_forgotten(
    redis_server: RedisServer,
) -> None:
    async with running(redis_server, resume_window=0.5, ping_interval=0.2, ping_timeout=0.1, close_timeout=0.2) as run:
        terminal = await resumer(run, 1)
        run.publish(direct([1], "x"))
        await terminal.fence()
        logs = run.node._connections.resume.logs
        assert logs.memory > 0
        began = asyncio.get_running_loop().time()
        await until(lambda: logs.memory == 0, "all is forgotten")
        assert asyncio.get_running_loop().time() - began > 0.8
        assert terminal.peer.is_open


async def test_joins_and_leaves_count_while_a_client_is_away(redis_server: RedisServer) -> None:
    async with running(redis_server, **WINDOW) as run:
        run.join(1, "old")
        terminal = await (await resumer(run, 1)).lose()
        run.join(1, "new")
        run.publish(channel_message("new", "joined"))
        run.leave(1, "old")
        run.publish(channel_message("old", "left"))
        run.publish(channel_message("new", "still"))
        await terminal.connect()
        assert await terminal.fence() == texts("joined", "still")


async def test_forced_offline_while_it_is_away_a_client_is_offline_at_once(redis_server: RedisServer) -> None:
    async with running(redis_server, **WINDOW) as run, run.events() as events:
        terminal, tab = await resumer(run, 1), await resumer(run, 1)
        await terminal.lose()
        run.publish(direct([1], "before"))
        assert await tab.fence() == texts("before")
        run.publish("__FreeIM__(ForceOffline)1")
        run.publish(direct([1], "after"))
        assert (await tab.peer.ended())[0] == 1001
        assert (await events.next(4))[2:] == [offline(run, 1, 1), offline(run, 1, 0)]
        assert run.online == {}
        await terminal.connect()
        assert terminal.missed is True
        assert await terminal.fence() == []
        assert ends(run) == {"offline": 1}


async def test_forced_offline_while_it_closes_a_client_does_not_come_back(redis_server: RedisServer) -> None:
    async with running(redis_server, **WINDOW, close_timeout=60) as run:
        raw = await run.raw_client(1, query="&resume=")
        connection = next(iter(run.node._connections.living.values()))
        run.node._connections.close(connection, 4002, "too slow")
        run.publish("__FreeIM__(ForceOffline)1")
        await run.heard_all()
        raw.cut()
        await until(lambda: not run.node._connections.living)
        await run.settled()
        assert run.online == {}
        assert ends(run) == {}


async def test_each_tab_goes_on_where_it_was(redis_server: RedisServer) -> None:
    async with running(redis_server, **WINDOW) as run, run.events() as events:
        first = await resumer(run, 1)
        run.publish(direct([1], "a"))
        await first.fence()
        second = await resumer(run, 1)
        run.publish(direct([1], "b"))
        assert await second.fence() == texts("b")
        assert await first.fence() == texts("b")
        await first.lose()
        run.publish(direct([1], "c"))
        assert await second.fence() == texts("c")
        await second.lose()
        run.publish(direct([1], "d"))
        assert len(await events.heard()) == 2
        await second.connect()
        assert await second.fence() == texts("d")
        assert await events.next(2) == [online(run, 1, 3), offline(run, 1, 2)]
        await first.connect()
        assert await first.fence() == texts("c", "d")
        assert await second.fence() == []
        assert await events.next(2) == [online(run, 1, 3), offline(run, 1, 2)]
        assert results(run) == {"resumed": 2}
        assert run.online == {"1": "2"}


async def test_a_return_before_the_loss_was_noticed_leaves_nobody_waiting(redis_server: RedisServer) -> None:
    async with running(redis_server, **WINDOW) as run, run.events() as events:
        terminal = await resumer(run, 1)
        old = terminal.peer
        await terminal.connect()
        assert terminal.missed is False
        await events.next(2)
        old.socket.transport.abort()
        assert await events.next(1) == [offline(run, 1, 1)], "at once, not at the end of a window"
        assert await terminal.fence() == []
        await terminal.peer.close(4000)
        assert await events.next(1) == [offline(run, 1, 0)]


async def test_a_return_that_is_refused_ends_nothing(redis_server: RedisServer) -> None:
    async with running(redis_server, **WINDOW) as run:
        terminal = await (await resumer(run, 1)).lose()
        run.publish(direct([1], "kept"))
        token = run.token(1)
        raw = await run.raw()
        async with opening_held(run):
            raw.send(head(f"/ws?token={token}&resume={terminal.last_id}"))
            await until(lambda: run.node._connections._attached, "the opening is about to be sent")
            redis_server.command("DEL", run.names.token(token))  # another was faster
        assert (await raw.response())[0] == 401
        assert run.node._connections.resume.away == 1
        await terminal.connect()
        assert await terminal.fence() == texts("kept")
        assert run.online == {"1": "1"}


async def test_the_sender_rule_counts_a_connection_that_is_away_like_one_that_is_not(redis_server: RedisServer) -> None:
    async with running(redis_server, **WINDOW) as run:
        terminal = await (await resumer(run, 1)).lose()
        run.publish(direct([1], "own, with one", sender=1))
        tab = await resumer(run, 1)
        run.publish(direct([1], "own, with two", sender=1))
        assert await tab.fence() == texts("own, with two")
        await terminal.connect()
        assert await terminal.fence() == texts("own, with two")
        await tab.peer.close(4000)
        await until(lambda: len(run.node._connections.living) == 1)
        run.publish(direct([1], "own, with one again", sender=1))
        assert await terminal.fence() == []


async def test_while_it_comes_back_a_sender_has_one_connection(redis_server: RedisServer) -> None:
    async with running(redis_server, **WINDOW) as run:
        terminal = await (await resumer(run, 1)).lose()
        async with opening_held(run):
            connecting = asyncio.create_task(terminal.connect())
            await until(lambda: run.node._connections._attached, "the new one is there")
            run.publish(direct([1], "own", sender=1))
            run.publish(direct([1], "another's"))
            await run.heard_all()
        await connecting
        assert await terminal.fence() == texts("another's")


async def test_a_receiver_that_is_away_counts_as_connected_for_receipts(redis_server: RedisServer) -> None:
    async with running(redis_server, **WINDOW) as run:
        await (await resumer(run, 2)).lose()
        sender = await run.connect(1)
        run.publish(direct([2, 3], "x", sender=1, receipt=True))
        receipts = [json.loads(text)["receipt"] for text in (await sender.next(), await sender.next())]
        assert receipts == ["发送成功", "用户不在线"]


async def test_a_terminal_that_was_too_slow_may_come_back(redis_server: RedisServer) -> None:
    async with running(
        redis_server, **WINDOW, queue_limit=300_000, resume_buffer=300_000, send_buffer=4096, close_timeout=0.2
    ) as run:
        slow = await slow_raw_client(run, 1, "&resume=")
        for number in range(10):
            run.publish(direct([1], f"{number} " + "x" * 50_000))
        await until(lambda: run.node._connections.resume.away == 1, "it was cut")
        run.publish(direct([1], "after"))
        await run.heard_all()
        resume(slow)
        said = announcement((await slow.frame())[1].decode())
        log, _, number = said["id"].rpartition("-")
        again = Resumer(run, 1)
        await again.connect(f"{log}-{int(number) + 8}")
        assert again.missed is False
        got = await again.fence()
        assert [text[1] for text in got] == ["8", "9", "a"]
        await (await again.lose()).connect(f"{log}-{number}")
        assert again.missed is True, "more than is kept"


async def test_a_terminal_that_does_not_answer_pings_may_come_back(redis_server: RedisServer) -> None:
    async with running(redis_server, **WINDOW, ping_interval=0.2, ping_timeout=0.1) as run:
        raw = await run.raw_client(1, query="&resume=")
        said = announcement((await raw.frame())[1].decode())
        pause(raw)
        await until(lambda: run.node._connections.resume.away == 1, "it was cut")
        run.publish(direct([1], "after"))
        again = Resumer(run, 1)
        await again.connect(said["id"])
        assert again.missed is False
        assert await again.fence() == texts("after")


async def test_a_node_that_stops_waits_for_nobody(redis_server: RedisServer) -> None:
    async with running(redis_server, **WINDOW) as run, run.events() as events:
        away, there = await resumer(run, 1), await resumer(run, 2)
        await away.lose()
        await events.heard()
        await run.node.stop()
        assert (await there.peer.ended())[0] == 1012
        assert sorted(await events.next(2)) == [offline(run, 1, 0), offline(run, 2, 0)]
        assert run.online == {}
        assert run.share == {}
        assert ends(run) == {"stop": 1}
        last_id = away.last_id
    async with running(redis_server, **WINDOW) as run:
        terminal = Resumer(run, 1)
        await terminal.connect(last_id)
        assert terminal.missed is True
        assert results(run) == {"unknown": 1}


async def test_whoever_leaves_while_the_node_stops_is_not_waited_for(redis_server: RedisServer) -> None:
    async with running(redis_server, **WINDOW, drain=2.0) as run, run.events() as events:
        first, second = await resumer(run, 1), await resumer(run, 2)
        stopping = asyncio.create_task(run.node.stop())
        assert (await first.peer.ended())[0] == 1012
        second.peer.socket.transport.abort()
        await stopping
        assert sorted((await events.heard())[2:]) == [offline(run, 1, 0), offline(run, 2, 0)]
        assert ends(run) == {}


async def test_after_a_gap_terminals_are_told_that_they_may_have_missed_something(redis_server: RedisServer) -> None:
    async with running(redis_server, **WINDOW) as run:
        away, there = await resumer(run, 1), await resumer(run, 2)
        await away.lose()
        redis_server.command("CLIENT", "KILL", "TYPE", "pubsub")
        await run.is_back()
        fresh = await resumer(run, 3)
        for terminal in (away, there, fresh):
            if terminal is not away:
                await terminal.lose()
            await terminal.connect()
        assert [terminal.missed for terminal in (away, there, fresh)] == [True, True, False]
        await (await away.lose()).connect()
        assert away.missed is False, "once is enough"
        await run.settled()
        assert run.online == {"1": "1", "2": "1", "3": "1"}
        assert results(run) == {"gap": 2, "resumed": 2}


async def test_what_found_no_room_in_the_window_of_pending_clients_is_a_gap(redis_server: RedisServer) -> None:
    async with running(redis_server, **WINDOW, bus_queue_limit=1) as run:
        terminal = await (await resumer(run, 1)).lose()
        run.node._bus.router.hold_all()  # as after an invalidation whose answer is slow
        for number in range(3):
            run.publish(direct([1], number))
        await run.heard_all()
        assert run.node._bus.router.dropped > 0
        run.node._connections.membership_read(run.node._bus.router.clients[b"1"], None)
        await terminal.connect()
        assert terminal.missed is True
        assert results(run) == {"gap": 1}


async def test_a_redis_that_comes_back_empty_gets_clients_that_are_away_back(redis_server: RedisServer) -> None:
    async with running(redis_server, **WINDOW) as run:
        run.join(1, "room")
        terminal = await (await resumer(run, 1)).lose()
        redis_server.command("FLUSHALL")
        await until(lambda: run.online == {"1": "1"}, "it is put back")
        await run.settled()
        assert redis_server.hash(run.names.chan("room")) == {"1": "0"}
        run.publish(channel_message("room", "kept"))
        await terminal.connect()
        assert terminal.missed is False
        assert await terminal.fence() == texts("kept")


async def test_a_node_that_was_buried_alive_puts_those_who_are_away_back(redis_server: RedisServer) -> None:
    async with running(redis_server, **WINDOW) as run, run.events() as events:
        terminal = await (await resumer(run, 1)).lose()
        bury(run)
        assert await events.heard() == [online(run, 1, 1), offline(run, 1, 0)]
        run.node._session.beat_now()
        assert await events.next(1) == [online(run, 1, 1)]
        run.publish(direct([1], "kept"))
        await terminal.connect()
        assert await terminal.fence() == texts("kept")
        assert await events.next(2) == [online(run, 1, 2), offline(run, 1, 1)]
        assert run.online == {"1": "1"}


async def test_a_connection_that_is_away_takes_no_place_of_a_living_one(redis_server: RedisServer) -> None:
    async with running(redis_server, **WINDOW, max_per_client=1, max_connections=1) as run:
        await (await resumer(run, 1)).lose()
        await (await resumer(run, 1)).lose()
        await (await resumer(run, 2)).lose()
        assert run.online == {"1": "2", "2": "1"}


async def test_a_connection_that_was_replaced_is_not_waited_for(redis_server: RedisServer) -> None:
    async with running(redis_server, **WINDOW, max_per_client=1, per_client_policy="replace-oldest") as run:
        first, second = await resumer(run, 1), await resumer(run, 1)
        assert (await first.peer.ended())[0] == 4001
        await until(lambda: len(run.node._connections.living) == 1)
        await run.settled()
        assert run.online == {"1": "1"}
        run.publish(direct([1], "to the second"))
        assert await second.fence() == texts("to the second")
        await second.lose()
        await second.connect()
        assert second.missed is False


async def test_a_client_that_comes_and_goes_is_away_with_sixteen_connections_at_most(
    redis_server: RedisServer,
) -> None:
    async with running(redis_server, **WINDOW) as run:
        other = await (await resumer(run, 2)).lose()
        for _ in range(16):
            last = await (await resumer(run, 1)).lose()
        raw = await run.raw_client(1, query="&resume=")
        raw.cut()
        await until(lambda: ends(run) == {"limit": 1}, "its oldest has ended")
        await run.settled()
        assert run.online == {"1": "16", "2": "1"}
        for terminal in (last, other):
            assert (await terminal.connect()).missed is False


async def test_a_plain_terminal_beside_one_that_can_resume_is_not_waited_for(redis_server: RedisServer) -> None:
    async with running(redis_server, **WINDOW) as run, run.events() as events:
        plain, terminal = await run.connect(1), await resumer(run, 1)
        await plain.close()
        assert (await events.next(3))[2] == offline(run, 1, 1)
        plain = await run.connect(1)
        await terminal.lose()
        run.publish(direct([1], "both"))
        assert await plain.fence() == texts("both")
        await terminal.connect()
        assert await terminal.fence() == texts("both")


async def test_what_came_while_a_membership_was_read_is_replayed_once(redis_server: RedisServer) -> None:
    """The client is pending from before its loss until after its return has begun."""
    async with running(redis_server, **WINDOW) as run:
        terminal = await resumer(run, 1)
        run.publish(direct([1], "before"))
        await terminal.fence()
        client = run.node._bus.router.clients[b"1"]
        run.node._bus.router.hold_all()
        run.publish(direct([1], "pending"))
        await terminal.lose()
        run.publish(direct([1], "away"))
        connecting = asyncio.create_task(terminal.connect())
        await until(lambda: len(client.connections) == 1, "the new one is there")
        run.publish(direct([1], "opening"))
        await run.heard_all()
        run.node._connections.membership_read(client, None)
        await connecting
        assert terminal.missed is False
        assert await terminal.fence() == texts("pending", "away", "opening")
