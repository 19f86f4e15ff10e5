"""Where the connection comes from: URLs, the environment, a caller's client of any make."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.asyncio.cluster

from freeim import AsyncImHelper, ImHelper, Published
from tests.helper.conftest import Blocking, Direct, MakeHelper
from tests.servers import RedisServer, Subscriber

NODE_A = "im_v2_wsServera"


def use_everything(helper: Any) -> None:
    helper.join_chan(1, "room", "频道")
    assert helper.get_chan_list() == {"room": 1, "频道": 1}
    assert sorted(helper.get_chan_list_by_client_id(1)) == ["room", "频道"]
    assert helper.get_chan_client_list("room") == [1]
    assert helper.get_chan_online("room") == 1
    assert helper.has_online(1) is False
    assert helper.has_online_many([1, 2]) == [False, False]
    assert helper.get_client_list_by_online() == []
    assert helper.send_message(0, [1], "é", report_offline=True) == Published(1, 0, ("a",), (1,))
    assert helper.prev_connect_server(1, "é").startswith("wss://im.example.com/é/ws?token=")
    assert helper.run_batch(lambda batch: (batch.get_chan_list(), batch.has_online(1))).results == [
        {"room": 1, "频道": 1},
        False,
    ]
    helper.clear_chan_client("room")
    helper.leave_chan(1, "频道")
    assert helper.get_chan_list() == {}


@pytest.mark.parametrize("options", ["", "?decode_responses=true", "?decode_responses=true&protocol=3"])
def test_a_name_that_is_not_utf_8_makes_no_list_unreadable(
    redis_server: RedisServer, make: MakeHelper, options: str
) -> None:
    redis_server.command("HSET", "im_v2_wsListChan", b"not \xff UTF-8", 1, "é", 2)
    redis_server.command("HSET", "im_v2_wsClient1", b"not \xff UTF-8", 0)
    helper = make(redis_server.url + options)
    assert helper.get_chan_list() == {"not \ufffd UTF-8": 1, "é": 2}
    assert helper.get_chan_list_by_client_id(1) == ["not \ufffd UTF-8"]
    assert helper.run_batch(lambda batch: batch.get_chan_list()).results == [helper.get_chan_list()]


@pytest.mark.parametrize("decode_responses", [False, True])
@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_callers_client_works_in_every_mode_and_stays_open(
    redis_server: RedisServer, kind: str, decode_responses: bool, protocol: int
) -> None:
    redis_server.command("HSET", "im_v2_wsUrls", "a", "wss://im.example.com/é")
    options: dict[str, Any] = {"decode_responses": decode_responses, "protocol": protocol}
    if kind == "sync":
        client = redis.Redis.from_url(redis_server.url, **options)
        with contextlib.closing(client):
            with ImHelper(client, nodes=["a"]) as helper:
                use_everything(Direct(helper))
                name = client.client_id()
            assert client.client_id() == name, "the same connection: nobody closed it"
            events: list[Any] = []
            with ImHelper(client, nodes=["a"]).event_bus(online=events.append) as bus:
                assert bus.wait_subscribed(5)
                redis_server.command("PUBLISH", "evt_im_v2_wsOnline", '{"Item1":1,"Item2":"é"}')
                wait_for(lambda: len(events) == 1)
            assert client.client_id() == name
        return
    with asyncio.Runner() as runner:
        aclient = redis.asyncio.Redis.from_url(redis_server.url, **options)
        ahelper = AsyncImHelper(aclient, nodes=["a"])
        use_everything(Blocking(runner, ahelper))

        async def finish() -> None:
            name = await aclient.client_id()
            events: list[Any] = []
            async with ahelper.event_bus(online=events.append) as bus:
                assert await bus.wait_subscribed(5)
                redis_server.command("PUBLISH", "evt_im_v2_wsOnline", '{"Item1":1,"Item2":"é"}')
                for _ in range(500):
                    if events:
                        break
                    await asyncio.sleep(0.01)
                assert len(events) == 1
            await ahelper.aclose()
            assert await aclient.client_id() == name, "the same connection: nobody closed it"
            await aclient.connection_pool.disconnect()

        runner.run(finish())


def wait_for(condition: Any, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


class FakeCluster:
    """Looks like a client and is none."""


def wrong_for_sync() -> Iterator[Any]:
    yield redis.asyncio.Redis()
    yield redis.RedisCluster.__new__(redis.RedisCluster)
    yield redis.Redis().pipeline()
    yield FakeCluster()


def wrong_for_async() -> Iterator[Any]:
    yield redis.Redis()
    yield redis.asyncio.cluster.RedisCluster.__new__(redis.asyncio.cluster.RedisCluster)
    yield redis.asyncio.Redis().pipeline()
    yield FakeCluster()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_client_of_the_wrong_make_is_refused_when_the_helper_is_made() -> None:
    for client in wrong_for_sync():
        with pytest.raises(TypeError, match=r"redis\.Redis"):
            ImHelper(client)
    for client in wrong_for_async():
        with pytest.raises(TypeError, match=r"redis\.asyncio\.Redis"):
            AsyncImHelper(client)


def test_the_error_for_the_wrong_make_names_the_right_helper() -> None:
    with pytest.raises(TypeError, match="there is AsyncImHelper"):
        ImHelper(redis.asyncio.Redis())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="there is ImHelper"):
        AsyncImHelper(redis.Redis())  # type: ignore[arg-type]


def test_without_a_url_the_environment_is_asked(
    make: MakeHelper, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FREEIM_REDIS_URL", redis_server.url)
    make().join_chan(1, "room")
    assert redis_server.hash("im_v2_wsListChan") == {"room": "1"}


def test_without_anything_it_is_the_local_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FREEIM_REDIS_URL", raising=False)
    with ImHelper() as helper:
        options = helper._client.connection_pool.connection_kwargs
        assert (options.get("host", "127.0.0.1"), options.get("port", 6379)) == ("127.0.0.1", 6379)


def test_a_unix_socket_works(make: MakeHelper, redis_server: RedisServer) -> None:
    redis_server.command("HSET", "im_v2_wsUrls", "a", "wss://im.example.com/é")
    use_everything(make(redis_server.unix_url, nodes=["a"]))


def test_a_url_may_ask_for_decoded_replies(make: MakeHelper, redis_server: RedisServer) -> None:
    redis_server.command("HSET", "im_v2_wsUrls", "a", "wss://im.example.com/é")
    use_everything(make(redis_server.url + "?decode_responses=true", nodes=["a"]))


def test_our_own_client_never_retries(make: MakeHelper, redis_server: RedisServer) -> None:
    helper = make(redis_server.url, nodes=["a"])
    assert helper.has_online(1) is False
    inner = helper.helper
    if isinstance(inner, ImHelper):
        connection = inner._client.connection_pool.make_connection()
    else:
        (entry,) = inner._clients._clients.values()
        connection = entry.gate.clients[0].connection_pool.make_connection()
    assert connection.retry._retries == 0


def test_a_caching_client_is_never_asked_in_a_way_it_refuses(redis_server: RedisServer) -> None:
    try:
        from redis.cache import CacheConfig
    except ImportError:
        return  # this redis-py has no caching clients
    client = redis.Redis.from_url(redis_server.url, protocol=3)
    with contextlib.closing(client), ImHelper(client, nodes=["a"]) as helper:
        # A server must say "redis" 7.4 to be cached from; what counts here is that a pool with a cache is noticed.
        from freeim import redis_client

        assert helper._lone
        assert not redis_client.caches(client)
        client.connection_pool.cache = CacheConfig()  # type: ignore[assignment]
        assert redis_client.caches(client)
        assert not ImHelper(client)._lone


def test_threads_share_a_sync_helper(redis_server: RedisServer) -> None:
    with (
        ImHelper(redis_server.url, nodes=["a"]) as helper,
        Subscriber(redis_server, NODE_A) as node,
        ThreadPoolExecutor(16) as pool,
    ):
        results = list(pool.map(lambda number: helper.send_message(0, number, number), range(1, 801)))
        assert results == [Published(1, 1, ())] * 800
        got = sorted(int(node.next()[1].split('"Item3":"')[1].split('"')[0]) for _ in range(800))
        assert got == list(range(1, 801))
