"""Nodes and helpers agree on the kind of bus, or say so."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from freeim import ConfigError, FreeImError, RedisUnavailable
from freeim.names import Names
from tests.helper.conftest import make as make
from tests.node.harness import Running, running, until
from tests.recording import RecordingRedis
from tests.servers import RedisServer
from tests.stream.publishers import on_stream

MakeHelper = Callable[..., Any]
NAMES = Names("im_v2_ws")


@pytest.mark.parametrize(("first", "second"), [("pubsub", "stream"), ("stream", "pubsub")])
async def test_a_node_of_another_kind_than_one_that_lives_refuses_to_start_and_shows_both(
    first: str, second: str, redis_server: RedisServer
) -> None:
    nodes = ("a", "b")
    async with running(redis_server, node="a", nodes=nodes, bus=first):
        with pytest.raises(ConfigError, match=rf"Here: --bus {second}.*that run: --bus {first}"):
            await Running(redis_server, node="b", nodes=nodes, bus=second).node.start()
        async with running(redis_server, node="b", nodes=nodes, bus=first) as other:
            peer = await other.connect(1)
            assert await peer.fence() == []
    assert redis_server.command("GET", NAMES.bus) == (b"stream 100000" if first == "stream" else None)
    async with running(redis_server, node="b", nodes=nodes, bus=second):
        assert redis_server.command("GET", NAMES.bus) == (b"stream 100000" if second == "stream" else None)


async def test_what_is_registered_comes_back_with_a_redis_that_was_emptied(redis_server: RedisServer) -> None:
    async with running(redis_server, **on_stream(stream_length=7)) as run:
        redis_server.command("FLUSHALL")
        await until(lambda: redis_server.command("GET", run.names.bus) == b"stream 7")


def register(server: RedisServer, bus: str | None) -> None:
    server.command("SET", NAMES.nodes, '{"v":1,"by":"mod","nodes":["a"],"prev":null}')
    if bus is not None:
        server.command("SET", NAMES.bus, bus)


@pytest.mark.parametrize(("given", "registered"), [("stream", None), ("pubsub", "stream 5")])
def test_a_helper_that_was_given_another_kind_raises_and_publishes_nothing(
    given: str, registered: str | None, make: MakeHelper, redis_server: RedisServer
) -> None:
    register(redis_server, registered)
    for nodes in (None, ["a"]):
        with RecordingRedis(redis_server) as recorder:
            helper = make(recorder.url, nodes=nodes, bus=given)
            with pytest.raises(ConfigError, match=f"given bus='{given}', but .* --bus .* \\(key im_v2_wsBus\\)"):
                helper.send_message(0, 1, "x")
            with pytest.raises(ConfigError):
                helper.run_batch(lambda batch: batch.send_broadcast_message("x"))
            assert {command[0] for command in recorder.take()} == {"GET", "HGETALL"}


@pytest.mark.parametrize("given", [None, "stream"])
def test_a_helper_follows_what_is_registered_in_all_it_publishes(
    given: str | None, make: MakeHelper, redis_server: RedisServer
) -> None:
    register(redis_server, "stream 5")
    helper = make(redis_server.url, bus=given)
    helper.send_message(0, 1, "direct")
    helper.send_chan_message(0, "room", "channel")
    helper.send_broadcast_message("broadcast")
    helper.force_offline(1)
    batch = helper.run_batch(lambda batch: [batch.send_message(0, n, n) for n in range(1, 4)])
    assert [published.silent for published in batch.results] == [("a",)] * 3
    entries = redis_server.command("XRANGE", NAMES.stream("a"), "-", "+")
    assert [entry[1][::2] for entry in entries] == [[b"n", b"m"]] * 7
    assert [int(entry[1][1]) for entry in entries] == list(range(1, 8))
    assert entries[3][1][3] == b"__FreeIM__(ForceOffline)1"
    assert entries[0][1][3] == b'{"Item1":0,"Item2":[1],"Item3":"\\"direct\\"","Item4":false}'


def test_without_a_stream_nothing_is_kept_and_the_commands_are_as_ever(
    make: MakeHelper, redis_server: RedisServer
) -> None:
    with RecordingRedis(redis_server) as recorder:
        helper = make(recorder.url, nodes=["a"])
        helper.send_broadcast_message("x")
        [command] = [command for command in recorder.take() if command[0] not in ("GET", "HGETALL")]
    assert command == [
        "PUBLISH",
        "im_v2_wsServera",
        '__FreeIM__(ChanMessage){"Item1":0,"Item2":null,"Item3":"\\"x\\""}',
    ]
    assert redis_server.command("KEYS", "*") == []


def test_the_length_that_nodes_registered_bounds_the_stream(make: MakeHelper, redis_server: RedisServer) -> None:
    register(redis_server, "stream 5")
    helper = make(redis_server.url)
    for _ in range(4):
        helper.run_batch(lambda batch: [batch.send_broadcast_message(n) for n in range(250)])
    assert 5 <= redis_server.command("XLEN", NAMES.stream("a")) <= 205


@pytest.mark.parametrize("value", ["", "stream", "stream 0", "stream -1", "streams 5", "pubsub", "stream 5 6", b"\xff"])
def test_a_kind_that_cannot_be_read_is_an_error_of_ours(
    value: str | bytes, make: MakeHelper, redis_server: RedisServer
) -> None:
    register(redis_server, None)
    redis_server.command("SET", NAMES.bus, value)
    with pytest.raises(FreeImError, match="im_v2_wsBus cannot be read"):
        make(redis_server.url).send_broadcast_message("x")


@pytest.mark.parametrize("value", ["streams", "", True, 1])
def test_an_impossible_kind_is_refused_at_once(value: object, make: MakeHelper) -> None:
    with pytest.raises(ValueError, match="bus must be 'pubsub', 'stream' or None"):
        make("redis://127.0.0.1:1", bus=value)


def test_who_is_silent_is_told_with_where_its_messages_wait(
    make: MakeHelper, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "freeim"):
        published = make(redis_server.url, nodes=["a"], bus="stream").send_message(0, 1, "x")
    assert (published.heard, published.silent) == (0, ("a",))
    assert "its messages wait in its stream until it is, the last 100000 at least" in caplog.text


def test_a_redis_without_memory_takes_nothing_and_says_so(make: MakeHelper, own_redis_server: RedisServer) -> None:
    helper = make(own_redis_server.url, nodes=["a"], bus="stream")
    helper.send_message(0, 1, "x")
    own_redis_server.command("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(RedisUnavailable, match="maxmemory") as caught:
        helper.send_message(0, 1, "y")
    assert not caught.value.maybe_sent
    own_redis_server.command("CONFIG", "SET", "maxmemory", "0")
    assert own_redis_server.command("XLEN", NAMES.stream("a")) == 1
    assert own_redis_server.command("GET", NAMES.sent("a")) == b"1"


async def test_receipts_of_nodes_to_other_nodes_go_through_the_stream(redis_server: RedisServer) -> None:
    nodes = ("a", "b")
    async with running(redis_server, node="a", nodes=nodes, bus="stream") as a:
        await a.connect(2)
        redis_server.command(
            *("EVAL", "return redis.call('PUBLISH', KEYS[1], ARGV[1])", 1, NAMES.server("a")),
            '{"Item1":1,"Item2":[2],"Item3":"1","Item4":true}',
        )
        await until(lambda: redis_server.command("XLEN", NAMES.stream("b")) == 1, "the receipt waits for node b")
        async with running(redis_server, node="b", nodes=nodes, bus="stream") as b:
            peer = await b.connect(1)
            assert "发送成功" in await peer.next()


async def test_with_a_prefix_that_has_a_hash_tag_all_keys_of_a_script_are_in_one_slot(
    redis_server: RedisServer,
) -> None:
    from freeim import AsyncImHelper

    prefix = "{shop}im"
    async with running(redis_server, **on_stream(prefix=prefix)) as run:
        async with AsyncImHelper(redis_server.url, prefix=prefix) as helper:
            peer = await run.connect(1)
            await helper.send_message(0, 1, "x")
            assert await peer.next() == '"x"'
        assert all(key.startswith(prefix.encode()) for key in redis_server.command("KEYS", "*"))
