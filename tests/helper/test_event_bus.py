"""The event bus, in a thread and in a task."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from freeim import AsyncImHelper, Event, ImHelper, event_bus, event_bus_async
from freeim.names import Names
from tests.helper.buses import OFFLINE, ONLINE, wait_for
from tests.recording import RecordingRedis
from tests.servers import RedisServer


def test_events_reach_the_callbacks_in_order(both: Any, redis_server: RedisServer) -> None:
    bus = both(redis_server.url)
    redis_server.command("PUBLISH", ONLINE, '{"Item1":1,"Item2":"é","Item3":1}')
    redis_server.command("PUBLISH", ONLINE, '{"Item1":1,"Item2":null,"Item3":2}')
    redis_server.command("PUBLISH", OFFLINE, '{"Item1":1,"Item2":""}')
    redis_server.command("PUBLISH", OFFLINE, '{"Item1":"1","Item2":"x","Item3":0}')
    wait_for(lambda: len(bus.events) == 4)
    assert bus.events == [
        Event(1, "é", 1, "online"),
        Event(1, None, 2, "online"),
        Event(1, "", None, "offline"),
        Event(1, "x", 0, "offline"),
    ]
    assert bus.resyncs == 0


def test_nothing_is_missed_once_the_bus_has_been_returned(both: Any, redis_server: RedisServer) -> None:
    for number in range(1, 21):
        bus = both(redis_server.url)
        redis_server.command("PUBLISH", ONLINE, f'{{"Item1":{number},"Item2":null}}')
        wait_for(lambda b=bus: b.events)  # type: ignore[misc]
        bus.stop()


def test_a_bus_that_is_stopped_is_dead_and_has_left_redis(both: Any, redis_server: RedisServer) -> None:
    bus = both(redis_server.url)
    assert bus.bus.alive
    assert bus.bus.subscribed
    began = time.monotonic()
    bus.stop()
    assert time.monotonic() - began < 2
    assert not bus.bus.alive
    assert not bus.bus.subscribed
    redis_server.wait_subscribers(ONLINE, 0)
    bus.stop()


def test_it_reconnects_whenever_it_is_cut_and_says_resync_each_time(
    both: Any, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    bus = both(redis_server.url)
    with caplog.at_level(logging.WARNING, "freeim"):
        for round_ in range(1, 4):
            redis_server.kill_clients("pubsub")
            wait_for(lambda r=round_: bus.resyncs == r)  # type: ignore[misc]
            redis_server.command("PUBLISH", ONLINE, f'{{"Item1":{round_},"Item2":null}}')
            wait_for(lambda r=round_: len(bus.events) == r)  # type: ignore[misc]
    assert bus.bus.alive
    assert any("lost Redis" in record.getMessage() for record in caplog.records)


def test_it_outlives_a_redis_that_is_away_for_a_while(both: Any, own_redis_server: RedisServer) -> None:
    bus = both(own_redis_server.url)
    own_redis_server.stop()
    wait_for(lambda: not bus.bus.subscribed)
    time.sleep(1.0)  # long enough for several attempts to connect
    assert bus.bus.alive
    own_redis_server.start()
    wait_for(lambda: bus.resyncs == 1)
    own_redis_server.command("PUBLISH", ONLINE, '{"Item1":1,"Item2":null}')
    wait_for(lambda: len(bus.events) == 1)


def test_it_may_begin_before_redis_does(both: Any, own_redis_server: RedisServer) -> None:
    own_redis_server.stop()
    bus = both(own_redis_server.url)
    assert bus.bus.alive
    own_redis_server.start()
    wait_for(lambda: bus.resyncs == 1)  # what happened between the start and now was missed
    own_redis_server.command("PUBLISH", ONLINE, '{"Item1":1,"Item2":null}')
    wait_for(lambda: len(bus.events) == 1)


def test_it_stops_while_redis_is_away(both: Any, own_redis_server: RedisServer) -> None:
    bus = both(own_redis_server.url)
    own_redis_server.stop()
    wait_for(lambda: not bus.bus.subscribed)
    time.sleep(0.5)  # so that it is between two attempts to connect
    bus.stop()
    assert not bus.bus.alive


def test_a_half_open_connection_is_noticed(
    both: Any, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer is gone without a word: what is sent is swallowed, and nothing comes."""
    for name in ("PING_SECONDS", "PONG_SECONDS"):
        monkeypatch.setattr(event_bus, name, 0.5)
    monkeypatch.setattr(event_bus_async, "LOOK_SECONDS", 0.2)
    with SwallowingProxy(redis_server) as proxy:
        bus = both(proxy.url)
        wait_for(lambda: bus.bus.subscribed)
        time.sleep(1.5)  # two pings and their answers, at least
        assert bus.resyncs == 0, "the pings of a healthy connection are answered"
        proxy.swallow()
        wait_for(lambda: bus.resyncs == 1)
        redis_server.command("PUBLISH", ONLINE, '{"Item1":1,"Item2":null}')
        wait_for(lambda: len(bus.events) == 1)


class SwallowingProxy:
    """Passes bytes to and fro; after `swallow`, nothing of the connections so far."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        self._generation = 0

    def swallow(self) -> None:
        self._generation += 1

    def __enter__(self) -> SwallowingProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        for sock in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                upstream = socket.socket(socket.AF_UNIX)
                upstream.connect(self._server.socket_path)
                self._sockets += (client, upstream)
                for source, target in ((client, upstream), (upstream, client)):
                    threading.Thread(target=self._pump, args=(source, target, self._generation), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, generation: int) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if generation == self._generation:
                    target.sendall(data)


def test_what_a_callback_raises_is_logged_and_the_next_event_comes(
    both: Any, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Event] = []

    def online(event: Event) -> None:
        seen.append(event)
        raise RuntimeError("mine")

    def resync() -> None:
        raise RuntimeError("mine too")

    bus = both(redis_server.url, online=online, resync=resync)
    with caplog.at_level(logging.ERROR, "freeim"):
        for number in (1, 2):
            redis_server.command("PUBLISH", ONLINE, f'{{"Item1":{number},"Item2":null}}')
        wait_for(lambda: len(seen) == 2)
        redis_server.kill_clients("pubsub")
        wait_for(lambda: any(r.exc_info and "too" in str(r.exc_info[1]) for r in caplog.records))
    assert bus.bus.alive


def test_garbage_is_logged_once_and_passed_over(
    both: Any, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    bus = both(redis_server.url)
    garbage: list[str | bytes] = [
        "",
        "{",
        "[]",
        "5",
        "null",
        "{}",
        '{"Item1":0,"Item2":null}',
        '{"Item1":true,"Item2":null}',
        '{"Item1":1.5,"Item2":null}',
        '{"Item1":9223372036854775808,"Item2":null}',
        '{"Item1":1,"Item2":5}',
        '{"Item1":[1],"Item2":""}',
        b"\xff\xfe",
        "[" * 100_000,
    ]
    with caplog.at_level(logging.WARNING, "freeim"):
        for payload in garbage:
            redis_server.command("PUBLISH", ONLINE, payload)
        redis_server.command("PUBLISH", ONLINE, '{"Item1":1,"Item2":null,"Item3":"x"}')
        redis_server.command("PUBLISH", ONLINE, '{"Item1":2,"Item2":null,"Item3":true}')
        wait_for(lambda: len(bus.events) == 2)
    assert [(event.client_id, event.connections) for event in bus.events] == [(1, None), (2, None)]
    assert len([r for r in caplog.records if "skipped an event" in r.getMessage()]) == 1
    assert bus.resyncs == 0


def test_guids_come_in_their_canonical_form() -> None:
    decoder = event_bus.EventDecoder(Names("p"), "guid")
    upper = "6B0D549B-6F03-475A-9600-A35A099950D8"
    event = decoder.decode(b"evt_pOffline", b'{"Item1":"%s","Item2":"m","Item3":0}' % upper.encode())
    assert event == Event(upper.lower(), "m", 0, "offline")


@pytest.mark.parametrize("kind", [ImHelper, AsyncImHelper])
def test_callbacks_must_be_callable(kind: Any) -> None:
    async def run() -> None:
        for name in ("online", "offline", "resync"):
            with pytest.raises(TypeError, match=name):
                kind(nodes=["a"]).event_bus(**{name: 5})

    asyncio.run(run())


def test_the_bus_says_what_freeim_says_to_redis(redis_server: RedisServer) -> None:
    with RecordingRedis(redis_server) as recorder, ImHelper(recorder.url, nodes=["a"]) as helper, helper.event_bus():
        assert recorder.take() == [["SUBSCRIBE", ONLINE, OFFLINE]]


def test_a_callback_may_stop_the_bus_that_calls_it(redis_server: RedisServer) -> None:
    with ImHelper(redis_server.url, nodes=["a"]) as helper:
        bus = helper.event_bus(online=lambda event: bus.stop())
        redis_server.command("PUBLISH", ONLINE, '{"Item1":1,"Item2":null}')
        wait_for(lambda: not bus.alive)


def test_pauses_between_attempts_grow_to_five_seconds_and_are_jittered() -> None:
    pauses = [[event_bus.pause_before(attempt) for _ in range(200)] for attempt in range(1, 60)]
    assert all(0.02 < pause <= 5.0 for group in pauses for pause in group)
    assert max(pauses[0]) < 0.2
    assert min(pauses[-1]) >= 2.5
    assert all(len(set(group)) > 100 for group in pauses)


# -- asyncio only -----------------------------------------------------------------------------------------------


def run_async(server: RedisServer, work: Callable[[AsyncImHelper], Awaitable[None]]) -> None:
    async def run() -> None:
        async with AsyncImHelper(server.url, nodes=["a"]) as helper:
            await work(helper)

    asyncio.run(run())


def test_the_async_bus_can_be_iterated(redis_server: RedisServer) -> None:
    async def work(helper: AsyncImHelper) -> None:
        async with helper.event_bus() as bus:
            for number in (1, 2, 3):  # before the loop below begins
                redis_server.command("PUBLISH", ONLINE, f'{{"Item1":{number},"Item2":null}}')
            got = []
            async for event in bus:
                got.append(event.client_id)
                if len(got) == 3:
                    break
            assert got == [1, 2, 3]

    run_async(redis_server, work)


def test_stopping_the_async_bus_ends_its_iteration(redis_server: RedisServer) -> None:
    async def work(helper: AsyncImHelper) -> None:
        bus = helper.event_bus()

        async def collect() -> list[Event]:
            return [event async for event in bus]

        collectors = [asyncio.create_task(collect()) for _ in range(2)]
        assert await bus.wait_subscribed(5)
        await bus.stop()
        assert await asyncio.wait_for(asyncio.gather(*collectors), 5) == [[], []]
        assert [event async for event in bus] == []

    run_async(redis_server, work)


def test_coroutine_callbacks_are_awaited(redis_server: RedisServer) -> None:
    async def work(helper: AsyncImHelper) -> None:
        seen = asyncio.Event()
        again = asyncio.Event()

        async def online(event: Event) -> None:
            await asyncio.sleep(0)
            seen.set()

        async def resync() -> None:
            await asyncio.sleep(0)
            again.set()

        async with helper.event_bus(online, resync=resync):
            redis_server.command("PUBLISH", ONLINE, '{"Item1":1,"Item2":null}')
            await asyncio.wait_for(seen.wait(), 5)
            redis_server.kill_clients("pubsub")
            await asyncio.wait_for(again.wait(), 5)

    run_async(redis_server, work)


def test_an_iteration_that_is_too_slow_loses_events_and_is_told_to_resync(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(event_bus_async, "QUEUED_EVENTS", 10)

    async def work(helper: AsyncImHelper) -> None:
        told = asyncio.Event()
        async with helper.event_bus(resync=told.set) as bus:
            for number in range(1, 31):
                redis_server.command("PUBLISH", ONLINE, f'{{"Item1":{number},"Item2":null}}')
            await asyncio.sleep(0.5)
            assert not told.is_set()
            iterator = aiter(bus)
            assert [(await anext(iterator)).client_id for _ in range(10)] == list(range(1, 11))
            await asyncio.wait_for(told.wait(), 3)  # without another event having to come

    run_async(redis_server, work)
    assert len([r for r in caplog.records if "more are dropped" in r.getMessage()]) == 1


def test_a_callback_cannot_wait_for_the_end_of_its_own_bus(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(helper: AsyncImHelper) -> None:
        async def online(event: Event) -> None:
            await bus.stop()

        async with helper.event_bus(online) as bus:
            redis_server.command("PUBLISH", ONLINE, '{"Item1":1,"Item2":null}')
            await asyncio.sleep(0.3)
            assert bus.alive

    run_async(redis_server, work)
    assert "from another task" in str(caplog.records[0].exc_info)
