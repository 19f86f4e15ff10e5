"""Each metric, after what it counts has really happened."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from freeim import ImHelper
from freeim.errors import ConfigError
from freeim.names import Names
from freeim.node import accept
from tests.node.harness import (
    Raw,
    Running,
    channel_message,
    close_payload,
    direct,
    frame,
    head,
    noted_reads,
    running,
    until,
)
from tests.node.resuming import resumer
from tests.node.scrape import Scrape, scrape
from tests.node.terminals import NEVER_CUT, resume, slow_raw_client
from tests.servers import RedisServer

TEXT, CLOSE = 1, 8
PROBE = "__FreeIM__(Probe)0"


async def scraped(run: Running, condition: Callable[[Scrape], Any], what: str) -> Scrape:
    """Scrape until a condition holds."""
    deadline = time.monotonic() + 10
    while not condition(found := await scrape(run)):
        assert time.monotonic() < deadline, f"{what}: {found.samples}"
        await asyncio.sleep(0.02)
    return found


@pytest.fixture
def no_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """The node sends no probe by itself, so that what it hears is what the test publishes."""
    monkeypatch.setattr("freeim.node.session.BEAT_INTERVAL", 3600.0)


async def test_the_node_tells_its_name_and_version(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        version = importlib.metadata.version("freeim")
        assert (await scrape(run)).labelled("node_info") == {(run.node.name, version): 1}


async def test_connections_clients_and_sockets_are_those_that_are_open(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        first, second, third = [await run.connect(client) for client in (1, 1, 2)]
        silent = await run.raw()
        await until(lambda: run.node._connections.accepted == 4)
        found = await scrape(run)
        assert [found(name) for name in ("connections", "clients", "sockets")] == [3, 2, 4]
        assert found("sockets_limit") == run.node._acceptor.capacity > 0
        await first.close()
        await third.close()
        silent.close()
        await until(lambda: run.node._connections.accepted == 1)
        found = await scrape(run)
        assert [found(name) for name in ("connections", "clients", "sockets")] == [1, 1, 1]
        assert second.is_open


async def test_each_handshake_is_counted_once_by_its_status_or_as_gone(redis_server: RedisServer) -> None:
    async with running(redis_server, handshake_timeout=0.5) as run:
        await run.connect(1)
        used = run.token(2)
        await run.connect_with(used, 2)
        requests = {
            run.request(used): 401,
            run.request("unknown"): 401,
            head("/ws?token=x", Upgrade="h2c"): 426,
            head("/other"): 404,
            b"GET / HTTP/1.1\r\n\r\n": 400,
            head("/ws?token=x", "X: " + "x" * 9000): 431,
            head("/health"): 200,
            head("/ready"): 200,
        }
        for request, status in requests.items():
            assert (await run.http(request))[0] == status
        late = await run.raw()
        late.send(b"GET /ws")
        assert (await late.response())[0] == 408
        gone = await run.raw()
        gone.cut()
        await until(lambda: run.node._connections.accepted == 2)
        found = await scrape(run)
        assert found.labelled("handshakes_total") == {
            ("101",): 2,
            ("400",): 1,
            ("401",): 2,
            ("404",): 1,
            ("408",): 1,
            ("426",): 1,
            ("431",): 1,
            ("gone",): 1,
        }


async def send_too_much(_run: Running, raw: Raw) -> None:
    raw.send(frame(TEXT, b"x" * 5000))


async def break_the_protocol(_run: Running, raw: Raw) -> None:
    raw.send(frame(TEXT, b"x", masked=False))


async def be_forced_offline(run: Running, _raw: Raw) -> None:
    run.publish("__FreeIM__(ForceOffline)1")


async def vanish(_run: Running, raw: Raw) -> None:
    raw.cut()


def say_goodbye(code: int) -> Callable[[Running, Raw], Awaitable[None]]:
    async def close(_run: Running, raw: Raw) -> None:
        raw.send(frame(CLOSE, close_payload(code)))

    return close


@pytest.mark.parametrize(
    ("act", "by", "code"),
    [
        (be_forced_offline, "node", "1001"),
        (break_the_protocol, "node", "1002"),
        (send_too_much, "node", "1009"),
        (say_goodbye(1000), "terminal", "1000"),
        (say_goodbye(1001), "terminal", "1001"),
        (say_goodbye(3000), "terminal", "other"),
        (say_goodbye(4001), "terminal", "other"),
        (vanish, "terminal", "1006"),
    ],
)
async def test_a_close_is_counted_once_by_who_began_it_and_its_code(
    redis_server: RedisServer, act: Callable[[Running, Raw], Awaitable[None]], by: str, code: str
) -> None:
    async with running(redis_server) as run:
        stays = await run.connect(2)
        raw = await run.raw_client(1)
        assert (await scrape(run)).labelled("closes_total") == {}
        await act(run, raw)
        if by == "node":
            await raw.closed_with()
        raw.close()
        await until(lambda: run.node._connections.accepted == 1)
        assert (await scrape(run)).labelled("closes_total") == {(by, code): 1}
        assert stays.is_open


async def test_a_terminal_that_answers_no_ping_is_counted_with_4003(redis_server: RedisServer) -> None:
    async with running(redis_server, ping_interval=0.5, ping_timeout=0.3) as run:
        await run.raw_client(1)
        found = await scraped(run, lambda found: found.labelled("closes_total"), "a close")
        assert found.labelled("closes_total") == {("node", "4003"): 1}


async def test_a_client_forced_offline_while_it_opens_is_one_handshake_and_one_close(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(redis_server) as run:
        held: list[tuple[Any, ...]] = []
        read = run.node._session.read
        monkeypatch.setattr(run.node._session, "read", lambda *args: held.append(args))
        raw = await run.raw()
        raw.send(run.request(run.token(1)))
        await until(lambda: run.node._connections.living, "Redis has counted it")
        run.publish("__FreeIM__(ForceOffline)1")
        await run.heard_all()
        monkeypatch.undo()
        for args in held:
            read(*args)
        assert (await raw.response())[0] == 101
        assert await raw.answer_close() == (1001, "disconnect")
        found = await scrape(run)
        assert found.labelled("handshakes_total") == {("101",): 1}
        assert found.labelled("closes_total") == {("node", "1001"): 1}


async def test_a_node_that_stops_is_watched_to_the_end(redis_server: RedisServer) -> None:
    async with running(redis_server, close_timeout=2.0) as run:
        raw = await run.raw_client(1)
        stopping = asyncio.ensure_future(run.node.stop())
        assert (await raw.frame())[0] == CLOSE
        found = await scrape(run)
        assert found.labelled("closes_total") == {("node", "1012"): 1}
        assert found("connections") == 1, "it has not answered yet"
        raw.close()
        await stopping


@pytest.mark.usefixtures("no_beats")
async def test_messages_deliveries_bytes_and_fanout_are_exact(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        raws = [await run.raw_client(client) for client in (1, 2, 2, 3, 4, 5)]
        for client in (1, 2, 3):
            run.join(client, "room")
        await run.settled()
        await run.heard_all()
        before = await scrape(run)
        payloads = [
            direct([1], "to one"),
            direct([99], "to nobody"),
            direct([1, 2, 3], "to four connections"),
            channel_message("room", "to the room"),
            channel_message("empty", "to an empty room"),
            channel_message(None, "to all"),
            "__FreeIM__(ForceOffline)98",
        ]
        # One by one, so that each is a write of its own.
        for payload in payloads:
            run.publish(payload)
            await run.heard_all()
        texts = {
            0: ["to one", "to four connections", "to the room", "to all"],
            1: ["to four connections", "to the room", "to all"],
            2: ["to four connections", "to the room", "to all"],
            3: ["to four connections", "to the room", "to all"],
            4: ["to all"],
            5: ["to all"],
        }
        size = 0
        for number, expected in texts.items():
            for text in expected:
                assert await raws[number].frame() == (TEXT, f'"{text}"'.encode())
                size += 2 + len(text) + 2
        after = await scrape(run)

        def grown(name: str, **labels: str) -> float:
            return after(name, **labels) - before(name, **labels)

        kinds = ("direct", "channel", "broadcast", "force_offline")
        assert [grown("messages_total", kind=kind) for kind in kinds] == [3, 2, 1, 1]
        assert grown("received_bytes_total") == sum(map(len, payloads)) + len(payloads) * len(PROBE)
        assert grown("deliveries_total") == sum(map(len, texts.values())) == 15
        assert grown("writes_total") == 15
        assert grown("delivered_bytes_total") == size
        assert grown("fanout_connections_count") == 6
        assert grown("fanout_connections_sum") == 15
        assert after.buckets("fanout_connections") == {"0": 2, "1": 1, "4": 2, "16": 1}


async def test_many_messages_that_come_at_once_leave_in_fewer_writes(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        raw = await run.raw_client(1)
        run.publish_all(direct([1], number) for number in range(100))
        for number in range(100):
            assert await raw.frame() == (TEXT, str(number).encode())
        found = await scrape(run)
        assert found("deliveries_total") == 100
        assert 1 <= found("writes_total") < 100


async def test_what_waits_for_slow_terminals_is_told_and_each_that_is_cut_is_counted(redis_server: RedisServer) -> None:
    async with running(redis_server, queue_limit=300_000, send_buffer=4096, **NEVER_CUT) as run:
        other = await run.connect(2)
        await slow_raw_client(run, 1)
        while not run.node._connections.fanout.waiting:
            run.publish(direct([1, 2], "x" * 50_000))
            await other.next()
        found = await scrape(run)
        assert found("queue_bytes") == run.node._connections.fanout.waiting > 0
        assert found("queue_memory_bytes") == run.node._connections.fanout.memory > 0
        assert found("queue_limit_bytes") == 268_435_456
        assert found.labelled("slow_connections_cut_total") == {}
        while not run.node._connections.fanout.too_slow:
            run.publish(direct([1, 2], "x" * 50_000))
            await other.next()
        found = await scrape(run)
        assert found.labelled("slow_connections_cut_total") == {("connection",): 1}
        assert found.labelled("closes_total") == {("node", "4002"): 1}
        if vars(accept)["HAVE_EPOLL"]:  # else what waits cannot be dropped
            assert found("queue_bytes") < 60_000


async def test_of_what_was_handed_to_a_slow_terminal_all_that_it_never_gets_is_counted(
    redis_server: RedisServer,
) -> None:
    async with running(redis_server, queue_limit=300_000, send_buffer=4096, **NEVER_CUT) as run:
        other = await run.connect(2)
        slow = await slow_raw_client(run, 1)
        while not run.node._connections.fanout.too_slow:
            run.publish(direct([1, 2], "x" * 50_000))
            await other.next()
        resume(slow)
        got = 0
        while (received := await slow.frame())[0] == TEXT:
            got += 1
        assert received == (CLOSE, close_payload(4002, b"too slow"))
        slow.send(frame(CLOSE, close_payload(4002)))
        await slow.rest()
        found = await scrape(run)
        size = 4 + 50_002  # with the header, and the quotes
        if vars(accept)["HAVE_EPOLL"]:  # else only what had not been queued yet is dropped
            assert found("slow_dropped_bytes_total") == found("delivered_bytes_total") / 2 - got * size
        assert found("slow_dropped_bytes_total") >= size


async def test_what_waits_in_a_node_that_does_not_keep_up_is_told_and_what_it_drops_is_counted(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = noted_reads(monkeypatch)
    async with running(redis_server, bus_queue_limit=1) as run:
        peer = await run.connect(1)
        link = run.node._session._reader
        assert link is not None
        link.behind = True  # as if it had something to do that takes long
        for number in range(10):
            reads.clear()
            run.publish(direct([1], number))
            await until(lambda: b"message" in b"".join(reads), "it has been read")
        # The last read is kept, and of the one before it nobody has asked yet what is in it.
        found = await scrape(run)
        assert found.labelled("dropped_messages_total") == {("bus_queue",): 8}
        assert 100 < found("bus_queue_bytes", waits_for="node") < 300
        link.go_on()
        assert (await peer.fence())[-1] == "9"
        found = await scrape(run)
        assert found.labelled("bus_queue_bytes") == {}


async def test_connections_that_are_put_back_and_those_of_dead_nodes_are_counted(redis_server: RedisServer) -> None:
    names = Names("im_v2_ws")
    redis_server.command("HSET", names.shares, "dead", "127.0.0.1:6001")
    for number in range(3):
        redis_server.command("HSET", names.share("dead"), number, f'{number} {{"Item1":{number},"Item2":"m"}}')
    async with running(redis_server, node="127.0.0.1:6001") as run:
        found = await scrape(run)
        assert found("buried_connections_total") == 3
        assert found("restored_connections_total") == 0
        peers = [await run.connect(client) for client in (7, 8)]
        redis_server.flush()
        await scraped(run, lambda found: found("restored_connections_total") == 2, "both are put back")
        assert all(peer.is_open for peer in peers)


async def test_who_is_cut_for_the_limit_of_the_node_is_counted_apart(redis_server: RedisServer) -> None:
    async with running(redis_server, node_queue_limit=100_000, send_buffer=4096, **NEVER_CUT) as run:
        await slow_raw_client(run, 1)
        run.publish(direct([1], "x" * 5_000_000))
        await until(lambda: run.node._connections.fanout.too_slow, "it is cut")
        assert (await scrape(run)).labelled("slow_connections_cut_total") == {("node",): 1}


@contextlib.asynccontextmanager
async def reading_held(run: Running, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """The membership of client 1 is read, and the answer comes at the end of this."""
    held: list[tuple[Any, ...]] = []
    read = run.node._session.read
    monkeypatch.setattr(run.node._session, "read", lambda *args: held.append(args))
    run.join(1, "room")
    await until(lambda: held, "the node reads the membership again")
    yield
    monkeypatch.undo()
    for args in held:
        read(*args)
    await until(lambda: run.node._bus.router.pending_count == 0, "it has been read")


async def test_what_waits_for_a_membership_is_told_and_what_does_not_fit_is_counted_as_dropped(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(redis_server, bus_queue_limit=1000) as run:
        peer, other = await run.connect(1), await run.connect(2)
        async with reading_held(run, monkeypatch):
            for _ in range(5):
                run.publish(direct([1, 2], "x" * 400))
            assert len(await other.fence()) == 5
            found = await scrape(run)
            assert found("bus_queue_limit_bytes") == 1000
            assert found("bus_queue_bytes", waits_for="membership") == run.node._bus.router.window_bytes >= 1000
            # Each weighs 200 and its frame: the second passes the limit, and three more and the fence do not fit.
            assert found.labelled("dropped_messages_total") == {("membership",): 4}
            assert found("fanout_connections_sum") == 6, "what waits has not been handed to anybody"
        after = await scrape(run)
        assert after.labelled("bus_queue_bytes") == {}
        assert after("deliveries_total") == 6 + 2
        assert after("delivered_bytes_total") - found("delivered_bytes_total") == 2 * (4 + 402)
        assert after("fanout_connections_sum") == 6, "what had waited was not handed over at once"
        assert len(await peer.fence()) == 2


async def test_with_a_stream_what_was_caught_up_trimmed_and_given_up_is_counted(redis_server: RedisServer) -> None:
    with ImHelper(redis_server.url, nodes=["a"], bus="stream") as helper, helper.batch() as batch:
        for _ in range(30):
            batch.send_message(0, 1, "x" * 400)
    redis_server.command("XTRIM", Names("im_v2_ws").stream("a"), "MAXLEN", 10)
    async with running(redis_server, node="a", nodes=("a",), bus="stream", bus_queue_limit=2000) as run:
        found = await scrape(run)
        assert found("caught_up_messages_total") == 10
        # Each weighs 200 and its frame: four pass the limit, and then the oldest go.
        kept = run.node._bus.router.window_size
        assert 3 <= kept <= 4
        assert found.labelled("dropped_messages_total") == {("trimmed",): 20, ("away",): 10 - kept}
        peer = await run.connect(1)
        assert len(await peer.fence()) == kept


async def test_payloads_that_are_no_messages_are_counted_as_dropped(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        for payload in ("", "{}", b"\xff", "__FreeIM__(ChanMessage)"):
            run.publish(payload)
        await run.heard_all()
        assert (await scrape(run)).labelled("dropped_messages_total") == {("malformed",): 4}


async def test_who_is_away_who_came_back_and_what_is_kept_is_told(redis_server: RedisServer) -> None:
    async with running(redis_server, resume_window=60.0) as run:
        first, second = await resumer(run, 1), await resumer(run, 2)
        found = await scrape(run)
        assert [found(name) for name in ("connections", "resume_away", "resume_memory_bytes")] == [2, 0, 0]
        assert found("resume_memory_limit_bytes") == 268_435_456
        await first.lose()
        await second.lose()
        for _ in range(3):
            run.publish(direct([1, 2], "kept"))
        await run.heard_all()
        found = await scrape(run)
        assert [found(name) for name in ("connections", "clients", "resume_away")] == [0, 2, 2]
        assert found("resume_memory_bytes") == run.node._connections.resume.logs.memory > 3 * 8
        await first.connect()
        await second.connect("unknown")
        run.publish("__FreeIM__(ForceOffline)2")
        await second.peer.ended()
        await until(lambda: not run.node._connections.resume.away)
        found = await scrape(run)
        assert found.labelled("resumes_total") == {("resumed",): 1, ("unknown",): 1}
        assert found.labelled("resume_away_ended_total") == {("resumed",): 1, ("offline",): 1}
        assert found("resume_replayed_messages_total") == 3
        assert found("resume_away") == 0


async def test_a_lost_redis_is_down_a_gap_and_errors_and_up_again_when_it_is_back(
    own_redis_server: RedisServer,
) -> None:
    async with running(own_redis_server) as run:
        found = await scrape(run)
        assert [found(name) for name in ("redis_up", "bus_gaps_total")] == [1, 0]
        assert found.labelled("redis_errors_total") == {}
        own_redis_server.stop()
        found = await scraped(
            run, lambda found: found("redis_errors_total", code="connection") >= 3, "a loss and attempts that fail"
        )
        assert [found(name) for name in ("redis_up", "bus_gaps_total")] == [0, 1]
        token = "a" * 128
        assert (await run.http(run.request(token)))[0] == 503
        own_redis_server.start()
        await run.is_back()
        found = await scrape(run)
        assert [found(name) for name in ("redis_up", "bus_gaps_total")] == [1, 1]
        assert found.labelled("handshakes_total") == {("503",): 1}
        errors = found("redis_errors_total", code="connection")
        own_redis_server.kill_clients("pubsub")
        found = await scraped(run, lambda found: found("bus_gaps_total") == 2, "a gap")
        assert found("redis_errors_total", code="connection") > errors, "a loss, and no attempt that failed"


async def test_what_redis_answers_with_an_error_is_counted_by_its_code(own_redis_server: RedisServer) -> None:
    async with running(own_redis_server) as run:
        token = run.token(1)
        own_redis_server.command("ACL", "SETUSER", "default", "-get")
        for _ in range(2):
            assert (await run.http(run.request(token)))[0] == 503
        errors = {("NOPERM",): 2}
        assert (await scrape(run)).labelled("redis_errors_total") == errors
        own_redis_server.command("ACL", "SETUSER", "default", "+get")
        own_redis_server.command("SCRIPT", "FLUSH")
        await run.connect(1)
        assert (await scrape(run)).labelled("redis_errors_total") == errors, "a script is sent again: no error"


async def test_that_redis_tracks_no_more_is_told(own_redis_server: RedisServer) -> None:
    async with running(own_redis_server) as run:
        assert (await scrape(run))("redis_tracking") == 1
    own_redis_server.command("ACL", "SETUSER", "default", "-client")
    async with running(own_redis_server) as run:
        found = await scrape(run)
        assert found("redis_tracking") == 0
        assert found.labelled("redis_errors_total") == {("NOPERM",): 1}


async def test_the_round_trip_of_a_probe_is_the_time_that_the_bus_takes(own_redis_server: RedisServer) -> None:
    async with running(own_redis_server) as run:
        session = run.node._session
        session.beat_now()
        found = await scraped(run, lambda found: found("probe_round_trip_seconds_count") >= 1, "a probe")
        assert 0 < found("probe_round_trip_seconds_sum") < 5
        fast = found("probe_round_trip_seconds_sum")
        sent = session.probe_sent

        def silence(number: int) -> None:
            """The bus is silent for a second, just when the probe is on its way."""
            sent(number)
            session.probe_sent = sent  # type: ignore[method-assign]
            own_redis_server.pause()
            asyncio.get_running_loop().call_later(1.0, own_redis_server.resume)

        session.probe_sent = silence  # type: ignore[method-assign]
        session.beat_now()
        slow = await scraped(run, lambda found: found("probe_round_trip_seconds_sum") - fast > 0.5, "a slow one")
        run.publish("__FreeIM__(Probe)77")
        await run.heard_all()
        last = await scrape(run)
        assert last("probe_round_trip_seconds_count") == slow("probe_round_trip_seconds_count"), "nobody has sent that"


async def test_the_lag_of_the_loop_is_how_long_something_kept_it(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        before = await scraped(run, lambda found: found("loop_lag_seconds_count") >= 5, "looks")
        # The first look is at the start of the clock. Of the others, one at least found a loop that was idle.
        assert before("loop_lag_seconds_bucket", le="0.05") > 1
        time.sleep(0.6)  # noqa: ASYNC251 - what must not happen
        after = await scraped(
            run, lambda found: found("loop_lag_seconds_count") > before("loop_lag_seconds_count"), "a look"
        )
        assert after("loop_lag_seconds_sum") - before("loop_lag_seconds_sum") > 0.45

        def long(found: Scrape) -> float:
            return found("loop_lag_seconds_count") - found("loop_lag_seconds_bucket", le="0.25")

        assert long(after) > long(before)


async def test_reloads_are_counted_by_result(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        found = await scrape(run)
        assert (found("reloads_total", result="ok"), found("reloads_total", result="error")) == (0, 0)
        run.node.reload()
        for _ in range(2):
            with pytest.raises(ConfigError):
                run.node.reload(replace(run.options, tls_cert="/nowhere"))
        assert (await scrape(run)).labelled("reloads_total") == {("ok",): 1, ("error",): 2}


async def test_the_process_tells_its_start_its_cpu_time_and_its_memory(redis_server: RedisServer) -> None:
    started = time.time()
    async with running(redis_server) as run:
        first = (await scrape(run)).samples
        until_then = time.process_time() + 0.1
        while time.process_time() < until_then:
            pass
        second = (await scrape(run)).samples
    assert started - 1 < first["process_start_time_seconds", ()] < time.time()
    assert second["process_cpu_seconds_total", ()] - first["process_cpu_seconds_total", ()] >= 0.1
    assert 10_000_000 < second["process_resident_memory_bytes", ()] < 10_000_000_000
