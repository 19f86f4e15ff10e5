"""Requests that are not let in: the right status, one line of body, one log line, and no token in it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tests.node.harness import KEY, Running, direct, head, running, told, until
from tests.servers import RedisServer

TOKEN = "0123456789abcdef" * 8
WS = f"/ws?token={TOKEN}"


def plain(target: str = "/ws", *lines: str, version: str = "1.1", method: str = "GET") -> bytes:
    """Return a request without an upgrade."""
    host = () if version == "1.0" else ("Host: x",)
    return "\r\n".join([f"{method} {target} HTTP/{version}", *host, *lines]).encode() + b"\r\n\r\n"


MALFORMED = {
    "no HTTP at all": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "an empty request line": b" \r\n\r\n",
    "two words in the request line": b"GET /ws\r\nHost: x\r\n\r\n",
    "four words in the request line": b"GET /ws x HTTP/1.1\r\nHost: x\r\n\r\n",
    "a method that is no token": b"G(T /ws HTTP/1.1\r\nHost: x\r\n\r\n",
    "a target without a slash": b"GET ws HTTP/1.1\r\nHost: x\r\n\r\n",
    "a whole URL of another kind as the target": b"GET ftp://x/ws HTTP/1.1\r\nHost: x\r\n\r\n",
    "a whole URL without a path as the target": b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n",
    "a TLS greeting": bytes.fromhex("16030100f8010000f40303"),
    "a control character in the target": b"GET /w\x01s HTTP/1.1\r\nHost: x\r\n\r\n",
    "a target that is not ASCII": "GET /wß HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    "a version that is none": b"GET /ws HTTP/one\r\nHost: x\r\n\r\n",
    "a version in lower case": b"GET /ws http/1.1\r\nHost: x\r\n\r\n",
    "no Host": b"GET /ws HTTP/1.1\r\nUpgrade: websocket\r\n\r\n",
    "an empty Host": b"GET /ws HTTP/1.1\r\nHost:\r\n\r\n",
    "a Host with a space": b"GET /ws HTTP/1.1\r\nHost: a b\r\n\r\n",
    "two Hosts": b"GET /ws HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a header without a colon": b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade\r\n\r\n",
    "a header name with a space": b"GET /ws HTTP/1.1\r\nHost : x\r\n\r\n",
    "a header without a name": b"GET /ws HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n",
    "a folded header": b"GET /ws HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
    "a NUL in a header": b"GET /ws HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n",
    "bare line feeds": b"GET /ws HTTP/1.1\nHost: x\n\r\n\r\n",
    "a body by length": plain("/ws", "Content-Length: 5") + b"hello",
    "a body in chunks": plain("/ws", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "no key": head(WS, Sec_WebSocket_Key=None),
    "an empty key": head(WS, Sec_WebSocket_Key=""),
    "a key that is not base64": head(WS, Sec_WebSocket_Key="*" * 24),
    "a key of 15 bytes": head(WS, Sec_WebSocket_Key="QUFBQUFBQUFBQUFBQUFB"),
    "two keys": head(WS, f"Sec-WebSocket-Key: {KEY}"),
}

REFUSED = {
    "another path": (head(f"/other?token={TOKEN}"), 404),
    "a path below": (head(f"/ws/x?token={TOKEN}"), 404),
    "the root": (plain("/"), 404),
    "another path without an upgrade": (plain("/favicon.ico"), 404),
    "another path by POST": (plain("/other", method="POST"), 404),
    "an upgrade by POST": (head(WS).replace(b"GET", b"POST", 1), 405),
    "no upgrade": (plain(WS), 426),
    "no upgrade and no token": (plain("/ws"), 426),
    "no Upgrade header": (head(WS, Upgrade=None), 426),
    "an upgrade to something else": (head(WS, Upgrade="h2c"), 426),
    "a Connection header without Upgrade": (head(WS, Connection="keep-alive"), 426),
    "no Connection header": (head(WS, Connection=None), 426),
    "version 8": (head(WS, Sec_WebSocket_Version="8"), 426),
    "no version": (head(WS, Sec_WebSocket_Version=None), 426),
    "an upgrade in HTTP/1.0": (head(WS).replace(b"HTTP/1.1", b"HTTP/1.0", 1), 426),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\n", 400),
    "HTTP/3.0 with a path": (b"GET /ws HTTP/3.0\r\nHost: x\r\n\r\n", 505),
    "101 header lines": (head(WS, *(f"X-{number}: y" for number in range(101))), 431),
    "a head of more than 8 KiB": (head(WS, "X: " + "y" * 8192), 431),
    "a first line of more than 8 KiB": (b"GET /ws?token=" + b"a" * 9000, 431),
    "no token": (head("/ws"), 401),
    "an empty token": (head("/ws?token="), 401),
    "a token of strange characters": (head("/ws?token=%00%ff*"), 401),
    "a token of 257 characters": (head("/ws?token=" + "a" * 257), 401),
    "a token under another name": (head(f"/ws?tok={TOKEN}"), 401),
    "an unknown token": (head(WS), 401),
}


async def assert_refused(run: Running, request: bytes, status: int, caplog: pytest.LogCaptureFixture) -> str:
    """Send a request; check the answer and the log, and return the body's line."""
    caplog.clear()
    found, headers, body = await run.http(request)
    line = body.decode()
    assert found == status, line
    assert headers["content-length"] == str(len(body))
    assert headers["content-type"] == "text/plain; charset=utf-8"
    assert "close" in headers["connection"]
    assert line.endswith("\n"), "the body is one line"
    assert line.count("\n") == 1
    logged = [line for line in told(caplog) if "refused" in line]
    assert len(logged) == 1
    assert f"with {status}: {line.strip()}" in logged[0]
    assert TOKEN not in caplog.text
    assert TOKEN not in line
    return line


@pytest.mark.parametrize("what", MALFORMED)
async def test_a_malformed_request_is_refused_with_400(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    caplog.set_level(logging.INFO)
    async with running(redis_server) as run:
        peer = await run.connect(1)
        await assert_refused(run, MALFORMED[what], 400, caplog)
        run.publish(direct([1], "still here"))
        assert await peer.next() == '"still here"'


@pytest.mark.parametrize("target", ["http://im.example.com", "HTTPS://[::1]:6001", "http://user@x"])
async def test_a_target_in_the_form_for_proxies_is_served(redis_server: RedisServer, target: str) -> None:
    async with running(redis_server) as run:
        request = run.request(run.token(1)).replace(b"GET /", f"GET {target}/".encode(), 1)
        raw = await run.raw()
        raw.send(request)
        assert (await raw.response())[0] == 101


@pytest.mark.parametrize("what", REFUSED)
async def test_a_request_is_refused_with_the_status_that_fits(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    caplog.set_level(logging.INFO)
    async with running(redis_server) as run:
        await assert_refused(run, *REFUSED[what], caplog)
        assert run.online == {}
        assert run.share == {}


async def test_refusals_say_what_would_be_served(redis_server: RedisServer) -> None:
    async with running(redis_server, path="/im/ws") as run:
        _, _, body = await run.http(plain("/"))
        assert b"/im/ws" in body
        _, headers, _ = await run.http(plain("/im/ws"))
        assert headers["upgrade"] == "websocket"
        assert headers["sec-websocket-version"] == "13"
        assert "upgrade" in headers["connection"]
        _, headers, _ = await run.http(head("/im/ws").replace(b"GET", b"PUT", 1))
        assert headers["allow"] == "get"


async def test_statuses_come_in_the_documented_order(own_redis_server: RedisServer) -> None:
    async with running(own_redis_server, nodes=("a", "b"), node="a") as run:
        foreign = run.token(1)
        missing_key = head("/other?token=", Upgrade=None, Sec_WebSocket_Key=None)
        assert (await run.http(missing_key.replace(b"Host", b"Hos t")))[0] == 400
        assert (await run.http(missing_key))[0] == 404
        assert (await run.http(head("/ws", Upgrade=None)))[0] == 426
        assert (await run.http(head("/ws")))[0] == 401
        assert (await run.http(run.request(foreign)))[0] == 421
        own_redis_server.stop()
        await until(lambda: not run.node._session.up)
        assert (await run.http(head("/ws", Upgrade=None)))[0] == 426
        status, headers, _ = await run.http(head("/ws"))
        assert status == 503
        assert headers["retry-after"] == "1"


async def test_a_terminal_that_sends_nothing_is_told_408_in_time(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(redis_server, handshake_timeout=0.3) as run:
        await assert_refused(run, b"", 408, caplog)
        await assert_refused(run, head(WS)[:-1], 408, caplog)
        await until(lambda: run.node._connections.accepted == 0)


async def test_a_terminal_that_sends_byte_after_byte_gets_no_more_time_for_it(redis_server: RedisServer) -> None:
    async with running(redis_server, handshake_timeout=0.3) as run:
        raw = await run.raw()
        answer = asyncio.ensure_future(raw.response())
        for byte in head(WS, X="y" * 1000):
            raw.send(bytes([byte]))
            await asyncio.wait({answer}, timeout=0.02)
            if answer.done():
                break
        assert (await answer)[0] == 408


async def test_a_request_that_ends_early_is_refused_with_400(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(redis_server) as run:
        raw = await run.raw()
        raw.send(head(WS)[:-10])
        raw.writer.write_eof()
        assert (await raw.response())[0] == 400
        await until(lambda: run.node._connections.accepted == 0)
        assert len([line for line in told(caplog) if "refused" in line]) == 1
        assert TOKEN not in caplog.text


async def test_a_refused_peer_that_never_leaves_is_cut(redis_server: RedisServer) -> None:
    async with running(redis_server, close_timeout=0.3) as run:
        raw = await run.raw()
        raw.send(plain("/"))
        assert (await raw.response())[0] == 404
        # The socket of ours stays open on purpose, and goes on to send.
        raw.send(b"x" * 1000)
        await until(lambda: run.node._connections.accepted == 0, seconds=3)


async def test_the_answer_to_a_huge_head_can_be_read(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        status, _, body = await run.http(b"GET /ws HTTP/1.1\r\nX: " + b"y" * 1_000_000)
        assert status == 431
        assert b"8192" in body


async def test_a_token_for_the_system_or_of_another_kind_is_refused(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    values = [
        '{"Item1":0,"Item2":"m"}',
        '{"Item1":"00000000-0000-0000-0000-000000000001","Item2":"m"}',
        '{"Item1":true,"Item2":"m"}',
        '{"Item1":1.0,"Item2":"m"}',
        '{"Item1":null,"Item2":"m"}',
        '{"Item1":9223372036854775808,"Item2":"m"}',
        '{"Item1":' + "9" * 5000 + "}",
        '{"Item2":"m"}',
        "[1]",
        "1",
        "",
        "garbage",
        "[" * 100_000,
    ]
    async with running(redis_server) as run:
        for value in values:
            caplog.clear()
            token = run.token(0, value=value)
            status, _, body = await run.http(run.request(token))
            assert status == 401, value[:50]
            assert body.count(b"\n") == 1
            assert len([line for line in told(caplog) if "refused" in line]) == 1
            assert token not in caplog.text
        not_utf8 = run.token(0, value="x")
        redis_server.command("SET", run.names.token(not_utf8), b'{"Item1":1,"Item2":"\xff"}')
        assert (await run.http(run.request(not_utf8)))[0] == 401
        redis_server.command("HSET", run.names.token("hash"), "a", "b")
        assert (await run.http(run.request("hash")))[0] == 503
        assert run.online == {}
        assert run.share == {}


async def test_a_guid_node_refuses_the_empty_guid_and_numbers(redis_server: RedisServer) -> None:
    async with running(redis_server, ids="guid") as run:
        for value in ('{"Item1":"00000000-0000-0000-0000-000000000000","Item2":"m"}', '{"Item1":5,"Item2":"m"}'):
            assert (await run.http(run.request(run.token(0, value=value))))[0] == 401
