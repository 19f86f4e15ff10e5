"""Redis that is down, slow, frozen, or refuses: what is raised, how soon, and that nothing is sent twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from freeim import AsyncImHelper, ImHelper, RedisUnavailable
from tests.helper.conftest import MakeHelper
from tests.servers import RedisServer, Subscriber, free_port

NODE_A = "im_v2_wsServera"


def every_call(helper: Any) -> list[tuple[str, Callable[[], object]]]:
    return [
        ("prev_connect_server", lambda: helper.prev_connect_server(1)),
        ("send_message", lambda: helper.send_message(0, 1, "x")),
        ("send_message, many nodes", lambda: helper.send_message(0, [1, 2], "x", report_offline=True)),
        ("send_chan_message", lambda: helper.send_chan_message(0, "room", "x")),
        ("send_broadcast_message", lambda: helper.send_broadcast_message("x")),
        ("force_offline", lambda: helper.force_offline(1)),
        ("get_client_list_by_online", lambda: helper.get_client_list_by_online()),
        ("has_online", lambda: helper.has_online(1)),
        ("has_online_many", lambda: helper.has_online_many([1])),
        ("join_chan", lambda: helper.join_chan(1, "room")),
        ("leave_chan", lambda: helper.leave_chan(1, "room")),
        ("leave_chan_clients", lambda: helper.leave_chan_clients("room", 1)),
        ("clear_chan_client", lambda: helper.clear_chan_client("room")),
        ("get_chan_client_list", lambda: helper.get_chan_client_list("room")),
        ("get_chan_list", lambda: helper.get_chan_list()),
        ("get_chan_list_by_client_id", lambda: helper.get_chan_list_by_client_id(1)),
        ("get_chan_online", lambda: helper.get_chan_online("room")),
        ("batch", lambda: helper.run_batch(lambda batch: batch.has_online(1))),
    ]


def check_unavailable(name: str, call: Callable[[], object]) -> RedisUnavailable:
    try:
        call()
    except RedisUnavailable as error:
        assert error.__cause__ is not None, name
        return error
    pytest.fail(f"{name} returned")


def test_a_redis_that_is_not_there_is_unavailable_and_nothing_was_sent(make: MakeHelper) -> None:
    helper = make(f"redis://127.0.0.1:{free_port()}", nodes=["a", "b"])
    for name, call in every_call(helper):
        assert check_unavailable(name, call).maybe_sent is False, name


def test_a_host_that_does_not_exist_is_unavailable(make: MakeHelper) -> None:
    helper = make("redis://no-such-host.invalid", nodes=["a"])
    assert check_unavailable("has_online", lambda: helper.has_online(1)).maybe_sent is False


def test_a_wrong_password_is_unavailable_and_is_not_in_the_text(make: MakeHelper, redis_server: RedisServer) -> None:
    helper = make(redis_server.url.replace("//", "//:s3cret@"), nodes=["a"])
    error = check_unavailable("has_online", lambda: helper.has_online(1))
    assert error.maybe_sent is False
    assert "s3cret" not in str(error)


def test_a_redis_that_refuses_is_unavailable_and_nothing_was_delivered(
    make: MakeHelper, redis_server: RedisServer
) -> None:
    helper = make(redis_server.url, nodes=["a", "b"])
    for key in ("Online", "ListChan", "Chanroom", "Client1"):
        redis_server.command("SET", f"im_v2_ws{key}", "not a hash")
    for name, call in every_call(helper):
        if name in ("prev_connect_server", "send_chan_message", "send_broadcast_message", "force_offline"):
            call()
        elif name == "send_message":
            call()
        else:
            error = check_unavailable(name, call)
            assert error.maybe_sent is (name == "send_message, many nodes"), name
            assert "WRONGTYPE" in str(error)


def test_a_connection_that_was_cut_while_idle_is_replaced_without_a_word(
    helper: Any, redis_server: RedisServer
) -> None:
    for _ in range(3):
        assert helper.has_online(1) is False
        assert redis_server.kill_clients() >= 1


def test_after_a_restart_of_redis_the_next_call_works(make: MakeHelper, own_redis_server: RedisServer) -> None:
    helper = make(own_redis_server.url, nodes=["a"])
    helper.join_chan(1, "room")
    own_redis_server.stop()
    assert check_unavailable("has_online", lambda: helper.has_online(1)).maybe_sent is False
    own_redis_server.start()
    assert helper.get_chan_list() == {}


def test_with_redis_frozen_for_ten_seconds_a_call_raises_within_three_and_delivers_at_most_once(
    make: MakeHelper, own_redis_server: RedisServer
) -> None:
    warm = make(own_redis_server.url, nodes=["a"], node_list_ttl=60)
    cold = make(own_redis_server.url, nodes=["a"])
    with Subscriber(own_redis_server, NODE_A) as node:
        warm.send_message(0, 1, "before")
        node.next()
        own_redis_server.pause()
        began = time.monotonic()
        try:
            for helper, message, sent in ((warm, "one", True), (warm, "two", False), (cold, "three", False)):
                start = time.monotonic()
                error = check_unavailable(message, lambda h=helper, m=message: h.send_message(0, 1, m))  # type: ignore[misc]
                assert 1.0 < time.monotonic() - start < 3.0
                if sent:
                    assert error.maybe_sent is True
                    assert "was not sent again" in str(error)
            time.sleep(max(0.0, began + 10.0 - time.monotonic()))
        finally:
            own_redis_server.resume()
        delivered = [payload for _, payload in node.drain(1.0)]
    for message in ("one", "two", "three"):
        assert sum(f'\\"{message}\\"' in payload for payload in delivered) <= 1
    assert sum('\\"one\\"' in payload for payload in delivered) == 1, "it was on its way: maybe_sent told the truth"
    assert sum('\\"three\\"' in payload for payload in delivered) == 0, "it never got beyond the list of nodes"
    assert warm.has_online(1) is False, "and it goes on"


def test_the_timeout_is_an_option(make: MakeHelper, own_redis_server: RedisServer) -> None:
    helper = make(own_redis_server.url, nodes=["a"], timeout=0.2)
    own_redis_server.pause()
    try:
        start = time.monotonic()
        check_unavailable("has_online", lambda: helper.has_online(1))
        assert time.monotonic() - start < 1.0
    finally:
        own_redis_server.resume()


def test_thousands_of_calls_at_once_share_few_connections_and_fail_together(own_redis_server: RedisServer) -> None:
    async def run() -> None:
        async with AsyncImHelper(own_redis_server.url, nodes=["a"], timeout=1.0) as helper:
            everybody = [helper.has_online(number) for number in range(1, 501)]
            assert not any(await asyncio.gather(*everybody))
            clients = own_redis_server.command("CLIENT", "LIST", "TYPE", "normal").decode().splitlines()
            assert len(clients) <= 33
            own_redis_server.pause()
            try:
                start = time.monotonic()
                sends = [helper.send_message(0, number, "x") for number in range(1, 2001)]
                errors = await asyncio.gather(*sends, return_exceptions=True)
                assert time.monotonic() - start < 3.0
            finally:
                own_redis_server.resume()
            assert all(isinstance(error, RedisUnavailable) for error in errors)
            assert await helper.has_online(1) is False

    asyncio.run(run())


def test_many_threads_at_once_do_not_wait_for_each_others_timeouts(own_redis_server: RedisServer) -> None:
    with ImHelper(own_redis_server.url, nodes=["a"], timeout=1.0) as helper, ThreadPoolExecutor(40) as pool:
        own_redis_server.pause()
        try:
            start = time.monotonic()
            errors = [job.exception(30) for job in [pool.submit(helper.has_online, 1) for _ in range(40)]]
            assert time.monotonic() - start < 3.0
        finally:
            own_redis_server.resume()
        assert all(isinstance(error, RedisUnavailable) for error in errors)


def test_a_cancelled_call_leaves_the_connection_usable(own_redis_server: RedisServer) -> None:
    async def run() -> None:
        async with AsyncImHelper(own_redis_server.url, nodes=["a"]) as helper:
            await helper.join_chan(1, "room")
            own_redis_server.pause()
            tasks = [asyncio.create_task(helper.get_chan_list()) for _ in range(100)]
            await asyncio.sleep(
                0.6
            )  # all wait for a reply by now: Python 3.11's wait_for loses a cancellation while it ends
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            own_redis_server.resume()
            assert all(isinstance(result, asyncio.CancelledError) for result in results)
            assert await asyncio.gather(*(helper.get_chan_online("room") for _ in range(200))) == [1] * 200

    try:
        asyncio.run(run())
    finally:
        own_redis_server.resume()
