"""What a trusted proxy says of a terminal counts, and what anybody else says does not."""

from __future__ import annotations

import logging

import pytest

from freeim.config import Options
from freeim.errors import ConfigError
from tests.node.harness import Raw, Running, direct, head, running, told, until
from tests.node.proxy_headers import block, line
from tests.servers import RedisServer

TRUSTING = {"trusted_proxies": ("127.0.0.1",), "max_per_address": 1}


async def answered(
    run: Running, start: bytes, *lines: str, token: str | None = None, client: int = 1
) -> tuple[int, Raw]:
    """Send a request behind some bytes, with some header lines; return the status, and the socket."""
    raw = await run.raw()
    raw.send(start + head(f"/ws?token={token or run.token(client)}", *lines))
    return (await raw.response())[0], raw


@pytest.mark.parametrize("way", ["X-Forwarded-For", "PROXY 1", "PROXY 2"])
async def test_each_terminal_behind_a_trusted_proxy_is_limited_for_itself(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    caplog.set_level(logging.INFO)

    def said(address: str) -> tuple[bytes, tuple[str, ...]]:
        if way == "X-Forwarded-For":
            return b"", (f"X-Forwarded-For: 6.6.6.6, {address}",)
        return (line(address, "::1" if ":" in address else "127.0.0.1") if way == "PROXY 1" else two(address)), ()

    def two(address: str) -> bytes:
        return block(address, "::1" if ":" in address else "127.0.0.1", extensions=b"\x04\x00\x01x")

    async with running(redis_server, **TRUSTING) as run:
        same_network = {"2001:db8::1": "2001:db8::ffff"}
        for address in ("203.0.113.1", "203.0.113.2", "2001:db8::1"):
            start, lines = said(address)
            assert (await answered(run, start, *lines))[0] == 101
            other = same_network.get(address, address)
            start, lines = said(other)
            assert (await answered(run, start, *lines))[0] == 429
            assert f"refused {other} through 127.0.0.1:" in told(caplog)[-1]


@pytest.mark.parametrize("way", ["X-Forwarded-For", "PROXY 1", "PROXY 2"])
async def test_who_is_not_listed_is_not_believed(redis_server: RedisServer, way: str) -> None:
    options = {"trusted_proxies": ("127.0.0.9", "10.0.0.0/8"), "max_per_address": 1}
    async with running(redis_server, **options) as run:
        if way == "X-Forwarded-For":
            assert (await answered(run, b"", "X-Forwarded-For: 203.0.113.1"))[0] == 101
            assert (await answered(run, b"", "X-Forwarded-For: 203.0.113.2"))[0] == 429
        else:
            start = line("203.0.113.1") if way == "PROXY 1" else block("203.0.113.1")
            status, _, body = await run.http(start + head("/ws"))
            assert status == 400
            assert b"--trusted-proxies" in body


async def test_behind_a_proxy_protocol_a_header_counts_only_where_the_source_is_a_proxy_too(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(redis_server, trusted_proxies=("127.0.0.1", "10.0.0.0/8")) as run:
        forged = "X-Forwarded-For: 198.51.100.1"
        assert (await answered(run, block("203.0.113.1"), forged, token="x"))[0] == 401
        assert "refused 203.0.113.1 through" in told(caplog)[-1]
        assert (await answered(run, block("10.1.2.3"), forged, token="x"))[0] == 401
        assert "refused 198.51.100.1 through" in told(caplog)[-1]


async def test_a_proxys_own_probe_and_plain_requests_of_it_are_served(redis_server: RedisServer) -> None:
    async with running(redis_server, **TRUSTING) as run:
        health = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        for start in (b"", b"\r\n", block("127.0.0.1", command=0x20), b"PROXY UNKNOWN\r\n"):
            assert (await run.http(start + health))[0] == 200
        assert (await run.http(b"POST /health HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 405


async def test_a_proxy_that_names_nobody_is_not_limited_and_told_of_once(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis_server, **TRUSTING) as run:
        for _ in range(3):
            assert (await answered(run, b""))[0] == 101
        lines = [line for line in told(caplog, logging.WARNING) if "trusted proxy 127.0.0.1" in line]
        assert len(lines) == 1
        assert "X-Forwarded-For" in lines[0]


async def test_a_header_in_single_bytes_and_frames_behind_it_are_read(redis_server: RedisServer) -> None:
    async with running(redis_server, **TRUSTING) as run:
        for address, start in (("203.0.113.1", line("203.0.113.1")), ("203.0.113.2", block("203.0.113.2"))):
            raw = await run.raw()
            for byte in start + run.request(run.token(1)):
                raw.send(bytes([byte]))
                await run.settled()
            assert (await raw.response())[0] == 101, address
            run.publish(direct([1], "hi"))
            assert await raw.frame() == (1, b'"hi"')


async def test_a_malformed_or_unfinished_header_is_refused_and_nobody_else_notices(redis_server: RedisServer) -> None:
    async with running(redis_server, handshake_timeout=0.3, **TRUSTING) as run:
        _, other = await answered(run, line("203.0.113.1"))
        assert (await run.http(b"PROXY TCP4 x y 1 2\r\n" + head("/ws")))[0] == 400
        assert (await run.http(block("203.0.113.2")[:-3]))[0] == 408
        assert (await run.http(b"PROXY "))[0] == 408
        raw = await run.raw()
        raw.send(b"PROXY TCP4 ")
        raw.end()
        assert (await raw.response())[0] == 400
        run.publish(direct([1], "hi"))
        assert await other.frame() == (1, b'"hi"')


async def test_beyond_twice_the_limit_a_terminal_behind_the_protocol_is_cut(redis_server: RedisServer) -> None:
    async with running(redis_server, handshake_timeout=60, **TRUSTING) as run:
        waiting = [await run.raw() for _ in range(2)]
        for raw in waiting:
            raw.send(block("203.0.113.1"))
        await run.settled()
        raw = await run.raw()
        raw.send(block("203.0.113.1"))
        assert await raw.rest() == b""
        await until(lambda: run.node._connections.accepted == 2)
        assert (await answered(run, block("203.0.113.2")))[0] == 101


@pytest.mark.parametrize(
    ("entry", "meant"), [("", ""), ("x", ""), ("10.0.0.1/8", "; did you mean 10.0.0.0/8?"), ("10.0.0.0/33", "")]
)
def test_what_is_no_network_is_refused(entry: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Options(trusted_proxies=(entry,))
    assert str(caught.value).startswith("trusted_proxies must hold addresses and networks")
    assert str(caught.value).endswith(repr(entry) + meant)
