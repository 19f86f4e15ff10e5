"""The paced publisher sends what a helper would send, at the times that were asked for."""

from __future__ import annotations

import itertools
import time

import pytest

from bench.pacer import Pacer
from bench.processes import BenchError
from bench.publisher import text
from freeim import envelope
from freeim.names import Names
from tests.servers import RedisServer, Subscriber

NAMES = Names("paced")


def numbers(payload: str) -> list[int]:
    return [int(word) for word in payload.split('\\"')[1].split()[:4]]


def test_payloads_are_those_of_a_helper(session_redis_server: RedisServer) -> None:
    with (
        Subscriber(session_redis_server, NAMES.server("a")) as node,
        Pacer(session_redis_server.unix_url, NAMES, ["a"]) as pacer,
    ):
        pacer.start(1000, 0.05, range(7, 12), 3, size=200)
        assert pacer.finish().messages == 50
        got = [payload for _, payload in node.drain()]
    assert len(got) == 50
    due = [numbers(payload)[2] for payload in got]
    assert all(later - earlier == 1_000_000 for earlier, later in itertools.pairwise(due))
    seen: dict[int, int] = {}
    for payload in got:
        stream, sequence, at, client = numbers(payload)
        assert client in range(7, 12)
        assert sequence == seen.get(client, 0) + 1
        seen[client] = sequence
        message = text(stream, sequence, 200, to=client, at=at)
        assert payload == envelope.direct(0, [client], envelope.direct_tail(message, False)).decode()


def test_each_node_gets_the_messages_of_its_clients(session_redis_server: RedisServer) -> None:
    channels = [NAMES.server("a"), NAMES.server("b")]
    with (
        Subscriber(session_redis_server, *channels) as nodes,
        Pacer(session_redis_server.url, NAMES, ["a", "b"]) as pacer,
    ):
        pacer.start(5000, 0.02, range(1, 11), 1)
        assert pacer.finish().messages == 100
        got = nodes.drain()
    assert len(got) == 100
    assert all(channel == channels[numbers(payload)[3] % 2] for channel, payload in got)


def test_a_rate_is_kept_and_what_is_late_is_told(session_redis_server: RedisServer) -> None:
    with (
        Subscriber(session_redis_server, NAMES.server("a")),
        Pacer(session_redis_server.unix_url, NAMES, ["a"]) as pacer,
    ):
        begin = time.monotonic()
        pacer.start(2000, 0.2, range(1, 2), 1)
        sent = pacer.finish()
        assert time.monotonic() - begin >= 0.199
    assert sent.late.histogram.total() == sent.messages == 400
    assert 0 < sent.busy < 1
    assert 0 < sent.late.quantile(0.5) <= sent.late.slowest


def test_it_gives_a_password() -> None:
    with RedisServer(args=("--requirepass", "secret")) as server:
        url = f"redis://:secret@127.0.0.1:{server.port}"
        with Pacer(url, NAMES, ["a"]) as pacer:
            pacer.start(1000, 0.01, range(1, 2), 1)
            with pytest.raises(BenchError, match="no node heard"):
                pacer.finish()


def test_tls_is_refused_in_a_sentence() -> None:
    with pytest.raises(BenchError, match="TLS"):
        Pacer("rediss://127.0.0.1:1", NAMES, ["a"])
