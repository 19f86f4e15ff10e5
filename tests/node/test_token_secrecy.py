"""A token is seen by nobody but Redis, whatever fails; and a wrong one costs the same whatever is wrong with it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import traceback
from collections.abc import Callable

import pytest

from freeim import ImHelper, RedisUnavailable
from freeim.names import Names
from tests.cli.command import Server, free_ports
from tests.node.harness import Raw, bounded, frame, head, running
from tests.node.proxy_headers import line
from tests.node.scrape import fetch
from tests.servers import RedisServer, Wire

NAMES = Names("im_v2_ws")

Request = Callable[[str], bytes]

REQUESTS: dict[str, Request] = {
    "unknown": lambda token: head(f"/ws?token={token}"),
    "another path": lambda token: head(f"/other?token={token}"),
    "a path that is the token": lambda token: head(f"/{token}"),
    "no upgrade": lambda token: head(f"/ws?token={token}", Upgrade=None),
    "another method": lambda token: head(f"/ws?token={token}").replace(b"GET", b"POST", 1),
    "the node's state": lambda token: head(f"/health?token={token}", Upgrade=None),
    "the form for proxies": lambda token: head(f"http://x/ws?token={token}"),
    "escaped": lambda token: head(f"/ws?token=%{ord(token[0]):x}{token[1:]}"),
    "with more behind it": lambda token: head(f"/ws?token={token}*&x=1"),
    "too long": lambda token: head(f"/ws?token={token * 3}"),
    "a malformed line": lambda token: b"GET /ws?token=" + token.encode() + b" x HTTP/1.1\r\n\r\n",
    "no version": lambda token: b"GET /ws?token=" + token.encode() + b"\r\n\r\n",
    "HTTP/2": lambda token: head(f"/ws?token={token}").replace(b"HTTP/1.1", b"HTTP/2.0", 1),
    "no Host": lambda token: head(f"/ws?token={token}", Host=None),
    "a malformed header": lambda token: head(f"/ws?token={token}", f"{token}: : \x00"),
    "a header of its own": lambda token: head("/ws", f"X-Token: {token}", f"Referer: http://x/?token={token}"),
    "another origin": lambda token: head(f"/ws?token={token}", f"Origin: https://evil.example/?token={token}"),
    "a key that is the token": lambda token: head(f"/ws?token={token}", Sec_WebSocket_Key=token),
    "a head without an end": lambda token: head(f"/ws?token={token}")[:-2],
    "a head too long": lambda token: head(f"/ws?token={token}", "X: " + token * 100),
    "no HTTP": lambda token: b"\x16" + token.encode(),
    "a PROXY header": lambda token: line("203.0.113.1") + head(f"/ws?token={token}"),
    "a PROXY header that is the token": lambda token: f"PROXY TCP4 {token} {token} 1 2\r\n".encode(),
}


class Tokens:
    """The tokens of a test, each told apart by its beginning, and by its end."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self.made: list[str] = []

    def new(self) -> str:
        """Return a token that Redis does not hold."""
        self.made.append(f"{len(self.made):08x}".translate(str.maketrans("0123456789", "ghijklmnop")) * 16)
        return self.made[-1]

    def make(self, value: str = '{"Item1":2,"Item2":"m"}') -> str:
        """Return a token that Redis holds."""
        token = self.new()
        self._server.command("SET", NAMES.token(token), value, "EX", 60)
        return token

    def assert_not_in(self, text: str) -> None:
        for token in self.made:
            assert token[:16] not in text, text[text.index(token[:16]) - 200 :][:600]


async def ask(port: int, request: bytes) -> None:
    """Send a request and wait for the end of the connection, or for frames to come."""
    raw = Raw(*await asyncio.open_connection("127.0.0.1", port))
    raw.send(request)
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        status, _, _ = await raw.response()
        if status != 101:
            await raw.rest()
    raw.close()


async def refused_by_redis(server: RedisServer, tokens: Tokens, port: int) -> None:
    """Let Redis refuse to read a token, and to count a connection."""
    token = tokens.make()
    server.command("ACL", "SETUSER", "default", "-get")
    await ask(port, head(f"/ws?token={token}"))
    server.command("ACL", "SETUSER", "default", "+get")
    server.command("CONFIG", "SET", "maxmemory", "1")
    await ask(port, head(f"/ws?token={token}"))
    server.command("CONFIG", "SET", "maxmemory", "0")


async def test_no_token_is_in_the_log_or_a_metric_whatever_fails(own_redis_server: RedisServer) -> None:
    tokens = Tokens(own_redis_server)
    port = free_ports(1)
    options = ("--bind", f"127.0.0.1:{port}", "--node", "a", "--nodes", "a,b", "--redis-url", own_redis_server.url)
    limits = ("--handshake-timeout", "0.3", "--ping-interval", "0.5", "--ping-timeout", "0.5", "--queue-limit", "1000")
    rules = ("--origins", "https://a.example", "--max-per-client", "1", "--per-client-policy", "replace-oldest")
    with Server(*options, *limits, *rules, "--log-level", "debug") as node:
        metrics = re.search(r"metrics +(\S+)", node.banner())
        assert metrics is not None
        for what, request in REQUESTS.items():
            await bounded(ask(port, request(tokens.make())))
            assert node.process.poll() is None, what
        for value in ('{"Item1":1,"Item2":"m"}', '{"Item1":0}', "garbage", '{"Item1":"x"}'):  # 1 is another node's
            await ask(port, head(f"/ws?token={tokens.make(value)}"))
        wrong_type = tokens.new()
        own_redis_server.command("HSET", NAMES.token(wrong_type), "a", "b")
        await ask(port, head(f"/ws?token={wrong_type}"))
        # Used, used at the same moment, replaced, a broken frame, too much, no pong.
        raced = tokens.make()
        await asyncio.gather(*(ask(port, head(f"/ws?token={raced}")) for _ in range(5)))
        await ask(port, head(f"/ws?token={raced}"))
        for data in (frame(3, b""), frame(1, b"x" * 5000), frame(1, b"x" * 1000) * 100, b"\xff" * 10, b""):
            raw = Raw(*await asyncio.open_connection("127.0.0.1", port))
            raw.send(head(f"/ws?token={tokens.make()}") + data)
            assert (await raw.response())[0] == 101
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await raw.closed_with()
            raw.close()
        node.logged("did not answer a ping")
        # Redis refuses, is silent, is killed, and is not there.
        await refused_by_redis(own_redis_server, tokens, port)
        own_redis_server.pause()
        await ask(port, head(f"/ws?token={tokens.new()}"))
        waiting = asyncio.ensure_future(ask(port, head(f"/ws?token={tokens.new()}")))
        own_redis_server.resume()
        await waiting
        own_redis_server.stop()
        await ask(port, head(f"/ws?token={tokens.new()}"))
        page, _ = await asyncio.to_thread(fetch, metrics[1])
        assert b"freeim_handshakes_total{" in page
        node.tell(signal.SIGTERM)
        assert node.wait() == 0
        tokens.assert_not_in(page.decode())
        assert len(re.findall("refused", node.stderr)) > 25, "the log is at work"
        assert "Redis" in node.stderr
        tokens.assert_not_in(node.stdout + node.stderr)


async def test_an_error_of_the_helper_holds_no_token(own_redis_server: RedisServer) -> None:
    errors = []
    with ImHelper(own_redis_server.url, nodes=["a"]) as helper:
        refusals = (("CONFIG", "SET", "maxmemory", "1"), ("ACL", "SETUSER", "default", "-set"))
        for command in refusals:
            own_redis_server.command(*command)
            with pytest.raises(RedisUnavailable) as refused:
                helper.prev_connect_server(1)
            errors.append(refused.value)
        own_redis_server.stop()
        with pytest.raises(RedisUnavailable) as gone:
            helper.prev_connect_server(1)
        errors.append(gone.value)
    for error in errors:
        text = "".join(traceback.format_exception(error))
        assert not re.search(r"[0-9a-f]{16}", text), text


def commands_about(wire: Wire, server: RedisServer) -> list[str]:
    """Return what Redis has been asked since the last call; the node's beats are left out."""
    server.command("ECHO", "mark")
    found: list[str] = []
    while b'"ECHO" "mark"' not in (line_ := wire.read()):
        text = line_.decode()
        if "lua" not in text and not re.search(r'"(EVALSHA|PING|INFO|CONFIG)"', text):
            found.append(text.partition("] ")[2])
    return found


async def test_a_wrong_token_costs_the_same_whatever_is_wrong_with_it(own_redis_server: RedisServer) -> None:
    async with running(own_redis_server) as run:
        good, used = run.token(1), run.token(2)
        await run.connect_with(used, 2)
        expired = run.token(3)
        own_redis_server.command("DEL", run.names.token(expired))
        wrong = {
            "unknown": "0" * 128,
            "used": used,
            "expired": expired,
            "the last character is another": good[:-1] + ("0" if good[-1] != "0" else "1"),
            "the first character is another": ("0" if good[0] != "0" else "1") + good[1:],
            "one character too few": good[:-1],
            "one character too many": good + "0",
            "in upper case": good.upper() if good.upper() != good else good[:-1],
            "short": "x",
        }
        with own_redis_server.wire() as wire:
            wire("MONITOR")
            answers = {}
            for what, token in wrong.items():
                commands_about(wire, own_redis_server)
                answers[what] = await run.http(run.request(token))
                assert commands_about(wire, own_redis_server) == [f'"GET" "{run.names.token(token)}"'], what
        assert {status for status, _, _ in answers.values()} == {401}
        assert len({(str(headers), body) for _, headers, body in answers.values()}) == 1, "nothing tells which it was"
        await run.connect_with(good, 1)
