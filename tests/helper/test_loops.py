"""One async helper in several event loops, in turn and at once; nothing is left behind and nobody is warned."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import redis.asyncio
from asgiref.sync import async_to_sync

from freeim import AsyncImHelper, Published
from tests.servers import RedisServer


def connections(server: RedisServer) -> int:
    """Count the connections of others than the one that asks."""
    return len(server.command("CLIENT", "LIST").decode().splitlines()) - 1


def settle(server: RedisServer, count: int) -> None:
    deadline = time.monotonic() + 5
    while (now := connections(server)) != count:
        assert time.monotonic() < deadline, f"{now} connections, not {count}"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def loud() -> Iterator[None]:
    """What the collector finds unclosed counts as a failure of the test that left it."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
        gc.collect()


def test_two_runs_in_turn(own_redis_server: RedisServer) -> None:
    helper = AsyncImHelper(own_redis_server.url, nodes=["a"])
    for _ in range(3):
        assert asyncio.run(helper.send_message(0, 1, "x")) == Published(1, 0, ("a",))
        settle(own_redis_server, 0)
    assert helper._clients._clients == {}


def test_a_loop_that_is_closed_without_ceremony_is_forgotten(own_redis_server: RedisServer) -> None:
    helper = AsyncImHelper(own_redis_server.url, nodes=["a"])
    for _ in range(3):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(helper.send_message(0, 1, "x"))
        loop.close()
        assert connections(own_redis_server) == 1
    asyncio.run(helper.has_online(1))
    settle(own_redis_server, 0)
    assert helper._clients._clients == {}


def test_djangos_async_to_sync(own_redis_server: RedisServer) -> None:
    helper = AsyncImHelper(own_redis_server.url, nodes=["a"])
    send = async_to_sync(helper.send_message)
    for _ in range(3):
        assert send(0, 1, "x") == Published(1, 0, ("a",))
    settle(own_redis_server, 0)


def test_djangos_async_to_sync_in_many_threads_at_once(own_redis_server: RedisServer) -> None:
    helper = AsyncImHelper(own_redis_server.url, nodes=["a"])
    results: list[Any] = []

    def work() -> None:
        results.extend(async_to_sync(helper.has_online)(1) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == [False] * 40
    settle(own_redis_server, 0)


def test_a_bus_that_is_left_running_ends_with_its_loop(own_redis_server: RedisServer) -> None:
    helper = AsyncImHelper(own_redis_server.url, nodes=["a"])

    async def run() -> Any:
        bus = helper.event_bus()
        assert await bus.wait_subscribed(5)
        return bus

    assert not asyncio.run(run()).alive
    settle(own_redis_server, 0)


def test_closing_ends_buses_and_connections_and_the_helper_can_go_on(own_redis_server: RedisServer) -> None:
    async def run() -> None:
        helper = AsyncImHelper(own_redis_server.url, nodes=["a"])
        async with helper:
            bus = helper.event_bus()
            assert await bus.wait_subscribed(5)
            assert await helper.has_online(1) is False
        assert not bus.alive
        assert helper._clients._clients == {}
        assert await helper.has_online(1) is False
        await helper.aclose()

    asyncio.run(run())
    settle(own_redis_server, 0)


def test_a_callers_client_survives_a_change_of_loops(own_redis_server: RedisServer) -> None:
    client = redis.asyncio.Redis.from_url(own_redis_server.url)
    helper = AsyncImHelper(client, nodes=["a"])
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(helper.has_online(1)) is False
    loop.close()

    async def run() -> None:
        assert await helper.has_online(1) is False
        await client.connection_pool.disconnect()

    asyncio.run(run())
    settle(own_redis_server, 0)


def test_an_event_bus_needs_a_running_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        AsyncImHelper(nodes=["a"]).event_bus()
