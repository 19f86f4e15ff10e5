"""The process that lets clients join and leave, and the proxy that makes Redis look far away."""

from __future__ import annotations

import time

import pytest
import redis

from bench.churner import Churned, Churner
from bench.delay import Delay
from bench.pacer import Pacer
from bench.processes import BenchError
from freeim.names import Names
from tests.servers import RedisServer

CLIENTS = range(11, 21)


def test_every_second_client_is_a_member_and_then_they_take_turns(redis_server: RedisServer) -> None:
    names = Names("churn")
    with Churner(redis_server.unix_url, names, CLIENTS) as churner:
        assert churner.prepare("c") == 5
        assert set(redis_server.hash(names.chan("c"))) == {"11", "13", "15", "17", "19"}
        begin = time.monotonic()
        churner.start("c", 100, 0.1)
        churned = churner.finish()
        assert time.monotonic() - begin >= 0.09
    assert (churned.operations, churned.members) == (10, 5)
    assert set(redis_server.hash(names.chan("c"))) == {"12", "14", "16", "18", "20"}
    assert redis_server.hash(names.client(11)) == {}
    assert redis_server.hash(names.client(12)) == {"c": "0"}
    assert not churned.objection


def test_a_pace_that_was_not_kept_is_an_objection() -> None:
    assert "pace was not kept" in Churned(10, 5, 0.5, 0.2).objection


@pytest.mark.parametrize("unix", [True, False])
def test_a_delay_is_added_to_each_round_trip(redis_server: RedisServer, unix: bool) -> None:
    target = redis_server.unix_url if unix else redis_server.url
    with Delay(target, 0.02) as far, redis.Redis.from_url(far.url) as client:
        client.ping()
        begin = time.monotonic()
        client.ping()
        assert 0.02 <= time.monotonic() - begin < 0.5


def test_nothing_is_lost_or_turned_around_on_the_longer_way(redis_server: RedisServer) -> None:
    with Delay(redis_server.unix_url, 0.001) as far, redis.Redis.from_url(far.url) as client:
        pipe = client.pipeline(transaction=False)
        for number in range(2000):
            pipe.rpush("list", number)
        pipe.set("large", b"x" * 3_000_000)
        assert pipe.execute()[:2000] == list(range(1, 2001))
        assert client.lrange("list", 0, -1) == [str(number).encode() for number in range(2000)]
        assert client.get("large") == b"x" * 3_000_000


def test_the_longer_way_keeps_the_password() -> None:
    with (
        RedisServer(args=("--requirepass", "a/b")) as server,
        Delay(f"redis://:a%2Fb@127.0.0.1:{server.port}", 0) as far,
        redis.Redis.from_url(far.url) as client,
    ):
        assert client.ping()


def test_a_redis_that_is_not_there_ends_the_program() -> None:
    with pytest.raises(BenchError, match="ended with exit code 1"):
        Pacer("unix:///nowhere/redis.sock", Names("x"), ["a"])
