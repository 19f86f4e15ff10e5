"""/health and /ready: what a load balancer asks."""

from __future__ import annotations

import asyncio

import pytest

from tests.node.harness import direct, running, until
from tests.servers import RedisServer


def ask(path: str, method: str = "GET", version: str = "1.1") -> bytes:
    host = "Host: x\r\n" if version == "1.1" else ""
    return f"{method} {path} HTTP/{version}\r\n{host}\r\n".encode()


@pytest.mark.parametrize(("path", "word"), [("/health", b"alive\n"), ("/ready", b"ready\n")])
async def test_a_serving_node_answers_200_to_get_and_head(redis_server: RedisServer, path: str, word: bytes) -> None:
    async with running(redis_server) as run:
        status, headers, body = await run.http(ask(path))
        assert (status, body) == (200, word)
        assert headers["cache-control"] == "no-store"
        assert headers["content-length"] == str(len(word))
        status, headers, body = await run.http(ask(path, "HEAD"))
        assert (status, body) == (200, b"")
        assert headers["content-length"] == str(len(word))
        assert await run.http(ask(path + "?token=x")) == await run.http(ask(path))


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_http_1_0_without_a_host_is_answered(redis_server: RedisServer, path: str) -> None:
    async with running(redis_server) as run:
        assert (await run.http(ask(path, version="1.0")))[0] == 200


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_other_methods_are_refused(redis_server: RedisServer, path: str) -> None:
    async with running(redis_server) as run:
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            status, headers, _ = await run.http(ask(path, method))
            assert status == 405
            assert headers["allow"] == "get, head"


async def test_ready_says_that_the_bus_is_lost_and_that_it_is_back(own_redis_server: RedisServer) -> None:
    async with running(own_redis_server) as run:
        own_redis_server.stop()
        await until(lambda: not run.node._session.up)
        status, _, body = await run.http(ask("/ready"))
        assert status == 503
        assert body == b"the bus is lost: no connection to Redis\n"
        assert await run.http(ask("/ready", "HEAD")) == (503, (await run.http(ask("/ready")))[1], b"")
        assert (await run.http(ask("/health")))[0] == 200
        own_redis_server.start()
        await run.is_back()
        assert (await run.http(ask("/ready")))[0] == 200


async def test_ready_says_that_the_node_drains_and_health_goes_on(redis_server: RedisServer) -> None:
    async with running(redis_server, close_timeout=5.0) as run:
        silent = await run.raw_client(1)
        earlier = await run.raw()
        await until(lambda: run.node._connections.accepted == 2)
        stopping = asyncio.ensure_future(run.node.stop())
        assert (await silent.frame())[0] == 8  # it drains; this peer does not answer, so the node waits for it
        token = run.token(2)
        for request, expected in ((ask("/health"), 200), (ask("/ready"), 503), (run.request(token), 503)):
            raw = earlier if expected == 200 else await run.raw()
            raw.send(request)
            status, _, _ = await raw.response()
            assert status == expected
            if expected == 503:
                assert b"stops" in await raw.rest()
        assert redis_server.command("EXISTS", run.names.token(token)) == 1
        silent.close()
        await stopping


async def test_health_checks_are_no_connections_of_clients(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        peer = await run.connect(1)
        for _ in range(50):
            assert (await run.http(ask("/health")))[0] == 200
        await until(lambda: run.node._connections.accepted == 1)
        run.publish(direct([1], "hi"))
        assert await peer.fence() == ['"hi"']
        assert run.online == {"1": "1"}
