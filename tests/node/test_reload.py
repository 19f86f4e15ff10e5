"""New options while a node serves: each that can change takes effect, none closes a connection."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from freeim.config import OPTIONS
from freeim.node.link import LinkLost
from tests.certificates import Certificates
from tests.cli.command import Server
from tests.node.harness import Running, direct, frame, head, running, until
from tests.node.scrape import scrape
from tests.node.terminals import slow_raw_client
from tests.node.test_limits import from_address, status_of
from tests.node.test_metrics import reading_held
from tests.node.test_tls import secure, served
from tests.servers import RedisServer, free_port

RELOADABLE = [option.name for option in OPTIONS.values() if option.reload]

Effect = Callable[[RedisServer, Path], Awaitable[None]]
EFFECTS: dict[str, Effect] = {}


def effect_of(*names: str) -> Callable[[Effect], Effect]:
    """The test shows that a reload of these options takes effect."""

    def enter(effect: Effect) -> Effect:
        EFFECTS.update(dict.fromkeys(names, effect))
        return effect

    return enter


def reloaded(run: Running, **changes: Any) -> None:
    """Change options of a node that serves; just these have changed then."""
    run.options = replace(run.options, **changes)
    assert run.node.reload(run.options)[1:] == (tuple(name for name in OPTIONS if name in changes), ())


@pytest.mark.parametrize("name", RELOADABLE)
async def test_an_option_that_can_change_takes_effect(name: str, own_redis_server: RedisServer, tmp_path: Path) -> None:
    await EFFECTS[name](own_redis_server, tmp_path)


@effect_of("redis_password_file")
async def _(server: RedisServer, folder: Path) -> None:
    first, second = folder / "first", folder / "second"
    first.write_text("old")
    server.command("ACL", "SETUSER", "node", "on", ">old", "~*", "&*", "+@all")
    url = server.url.replace("//", "//node@")
    async with running(server, redis_url=url, redis_password_file=str(first)) as run:
        peer = await run.connect(1)
        server.command("ACL", "SETUSER", "node", "resetpass", ">new")
        second.write_text("new\n")
        reloaded(run, redis_password_file=str(second))
        server.kill_clients()
        await run.is_back()
        server.command("ACL", "SETUSER", "node", "resetpass", ">newer")
        second.write_text("newer\n")
        assert run.node.reload()[1:] == (("redis_password_file",), ())
        gaps = run.node._session.gaps
        server.kill_clients()
        await until(lambda: run.node._session.gaps > gaps and run.node._session.up)
        assert await peer.fence() == []


@effect_of("drain")
async def _(server: RedisServer, _: Path) -> None:
    async with running(server) as run:
        peers = [await run.connect(client) for client in range(1, 5)]
        reloaded(run, drain=1.0)
        begun = time.monotonic()
        await run.node.stop()
        assert time.monotonic() - begun >= 1.0
        assert [await peer.ended() for peer in peers] == [(1012, "service restart")] * 4


@effect_of("log_level", "log_format")
async def _(server: RedisServer, folder: Path) -> None:
    def check() -> None:
        file = folder / "node.toml"
        file.write_text("log_level = 'error'")
        args = ("--bind", f"127.0.0.1:{free_port()}", "--redis-url", server.url)
        with Server("--config", str(file), *args) as process:
            process.banner()
            assert process.stderr == ""
            file.write_text("log_level = 'debug'\nlog_format = 'json'")
            process.reload()
            (line,) = process.logged(r"\{.*reloaded.*\}\n")
            entry = json.loads(line)
            assert (entry["level"], entry["message"]) == ("info", "reloaded, changed: --log-level, --log-format")
            file.write_text("log_level = 'debug'\norigins = ['https://a']")
            process.reload()
            assert process.logged(r"\d info  (reloaded, .*)\n") == ["reloaded, changed: --log-format, --origins"]

    await asyncio.to_thread(check)


@effect_of("tls_cert", "tls_key")
async def _(server: RedisServer, folder: Path) -> None:
    first, second = folder / "first", folder / "second"
    for each in (first, second):
        each.mkdir()
    old, new = Certificates(first), Certificates(second)
    async with running(server, **old.options) as run:
        peer = await secure(run, old, 1)
        reloaded(run, **new.options)
        assert await served(run, new) == ssl.PEM_cert_to_DER_cert(new.cert.read_text())
        assert (await secure(run, new, 2)).is_open
        assert await peer.fence() == []


@effect_of("trusted_proxies")
async def _(server: RedisServer, _: Path) -> None:
    async def behind(address: str) -> int:
        raw = await run.raw()
        raw.send(head(f"/ws?token={run.token(1)}", f"X-Forwarded-For: {address}"))
        return (await raw.response())[0]

    async with running(server, max_per_address=1) as run:
        assert [await behind("203.0.113.1"), await behind("203.0.113.2")] == [101, 429]
        reloaded(run, trusted_proxies=("127.0.0.1",))
        assert [await behind(f"203.0.113.{last}") for last in (3, 4, 4)] == [101, 101, 429]
        half = await run.raw()
        request = head(f"/ws?token={run.token(1)}", "X-Forwarded-For: 203.0.113.9")
        half.send(request[:20])
        await until(lambda: any(each.begun for each in run.node._connections._handshakes.things()))
        reloaded(run, trusted_proxies=(), max_per_address=0)
        half.send(request[20:])
        assert (await half.response())[0] == 101, "it came while its proxy was trusted"


@effect_of("origins")
async def _(server: RedisServer, _: Path) -> None:
    async def of_page(origin: str) -> int:
        raw = await run.raw()
        raw.send(head(f"/ws?token={run.token(1)}", f"Origin: {origin}"))
        return (await raw.response())[0]

    async with running(server, origins=("https://old.example",)) as run:
        assert [await of_page("https://old.example"), await of_page("https://new.example")] == [101, 403]
        reloaded(run, origins=("https://new.example",))
        assert [await of_page("https://old.example"), await of_page("https://new.example")] == [403, 101]
        assert len(run.node._connections.living) == 2
        reloaded(run, origins=())
        assert await of_page("https://old.example") == 101


@effect_of("max_connections")
async def _(server: RedisServer, _: Path) -> None:
    async with running(server) as run:
        peers = [await run.connect(client) for client in (1, 2)]
        reloaded(run, max_connections=1)
        assert await status_of(run, 3) == 503
        assert [await peer.fence() for peer in peers] == [[], []], "they stay"
        reloaded(run, max_connections=3)
        assert [await status_of(run, 3), await status_of(run, 4)] == [101, 503]


@effect_of("max_per_client", "per_client_policy")
async def _(server: RedisServer, _: Path) -> None:
    async with running(server) as run:
        first, second = await run.connect(1), await run.connect(1)
        reloaded(run, max_per_client=1)
        assert await status_of(run, 1) == 429
        assert await first.fence() == [], "it stays"
        reloaded(run, per_client_policy="replace-oldest")
        assert await status_of(run, 1) == 101
        assert {await first.ended(), await second.ended()} == {(4001, "replaced by a newer login")}


@effect_of("max_per_address")
async def _(server: RedisServer, _: Path) -> None:
    async with running(server) as run:
        stands = await run.connect(1)
        reloaded(run, max_per_address=2)
        assert [await status_of(run, client) for client in (2, 3, 4)] == [101, 101, 429], "not those from before"
        reloaded(run, max_per_address=0)
        assert await status_of(run, 5) == 101
        reloaded(run, max_per_address=3)
        assert await status_of(run, 6) == 429, "it counted meanwhile"
        assert await stands.fence() == []


@effect_of("handshakes_per_address")
async def _(server: RedisServer, _: Path) -> None:
    async with running(server) as run:
        reloaded(run, handshakes_per_address=1)
        raws = [await run.raw() for _ in range(10)]
        for raw in raws:
            raw.send(head("/ws?token=wrong"))
        assert 429 in [(await raw.response())[0] for raw in raws]
        raw = await from_address(run, "127.0.0.3")
        raw.send(head("/ws?token=wrong"))
        assert (await raw.response())[0] == 401
        reloaded(run, handshakes_per_address=0)
        assert [await status_of(run, client) for client in range(1, 11)] == [101] * 10


@effect_of("backlog")
async def _(server: RedisServer, _: Path) -> None:
    def backlog() -> int:
        assert run.node._sock is not None
        info = run.node._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        return int(struct.unpack_from("I", info, 28)[0])  # tcpi_sacked: of a socket that listens, its limit

    async with running(server, backlog=20) as run:
        assert backlog() == 20
        reloaded(run, backlog=30)
        assert backlog() == 30
        assert await status_of(run, 1) == 101


@effect_of("send_buffer")
async def _(server: RedisServer, _: Path) -> None:
    def sizes() -> list[int]:
        sizes = []
        for each in run.node._connections.living.values():
            with socket.socket(fileno=os.dup(each.transport.get_extra_info("socket").fileno())) as sock:
                sizes.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF))
        return sizes

    async with running(server, send_buffer=20_000) as run:
        await run.connect(1)
        reloaded(run, send_buffer=30_000)
        await run.connect(2)
        assert sizes() == [40_000, 60_000]  # Linux doubles it, for its own needs


@effect_of("ping_interval")
async def _(server: RedisServer, _: Path) -> None:
    async with running(server, ping_interval=86_400, ping_timeout=0.2) as run:
        raw = await run.raw_client(1)
        reloaded(run, ping_interval=0.3)
        for seen in range(3):
            assert await raw.frame() == (9, b""), seen
            raw.send(frame(10))
        reloaded(run, ping_interval=86_400)
        raw.send(frame(9, b"asked"))
        while (received := await raw.frame()) == (9, b""):
            raw.send(frame(10))
        assert received == (10, b"asked")
        await asyncio.sleep(1)
        raw.send(frame(9, b"again"))
        assert await raw.frame() == (10, b"again"), "not a ping in between"


@effect_of("ping_timeout")
async def _(server: RedisServer, _: Path) -> None:
    async with running(server, ping_interval=5, ping_timeout=5) as run:
        raw, other = await run.raw_client(1), await run.connect(2)
        assert await raw.frame() == (9, b"")
        reloaded(run, ping_timeout=0.2)
        assert await raw.frame() == (9, b""), "nobody is cut for a ping that is under way"
        begun = time.monotonic()
        assert await raw.frame() == (8, (4003).to_bytes(2, "big") + b"no pong")
        assert time.monotonic() - begun < 4
        assert await other.fence() == []


@effect_of("handshake_timeout")
async def _(server: RedisServer, folder: Path) -> None:
    async with running(server, handshake_timeout=3600) as run:
        stands = await run.raw()
        await until(lambda: run.node._connections.accepted == 1)
        reloaded(run, handshake_timeout=0.3)
        later = await run.raw()
        assert [(await raw.response())[0] for raw in (stands, later)] == [408, 408]
    async with running(server, handshake_timeout=3600, **Certificates(folder).options) as run:
        reloaded(run, handshake_timeout=0.3)
        silent = await run.raw()  # before TLS, which has the same time
        assert await silent.rest() == b""


@effect_of("close_timeout")
async def _(server: RedisServer, _: Path) -> None:
    async with running(server, close_timeout=3600) as run:
        stands, later, lingers = await run.raw_client(1), await run.raw_client(2), await run.raw()
        lingers.send(head("/nothing"))
        assert (await lingers.response())[0] == 404
        run.publish("__FreeIM__(ForceOffline)1")
        assert (await stands.frame())[0] == 8
        reloaded(run, close_timeout=0.3)
        run.publish("__FreeIM__(ForceOffline)2")
        for raw in (stands, later, lingers):
            with_reset = asyncio.ensure_future(raw.rest())
            await asyncio.wait((with_reset,), timeout=10)
            assert with_reset.done()
            with_reset.exception()
        await until(lambda: run.node._connections.accepted == 0)


@effect_of("max_head")
async def _(server: RedisServer, _: Path) -> None:
    async def status_with(size: int) -> int:
        raw = await run.raw()
        raw.send(head(f"/ws?token={run.token(1)}", f"X-Long: {'x' * size}"))
        return (await raw.response())[0]

    async with running(server, max_head=2000) as run:
        assert [await status_with(1000), await status_with(2000)] == [101, 431]
        reloaded(run, max_head=1000)
        assert [await status_with(300), await status_with(1000)] == [101, 431]


@effect_of("max_inbound")
async def _(server: RedisServer, _: Path) -> None:
    async with running(server, max_inbound=1000) as run:
        reloaded(run, max_inbound=2000)
        larger = await run.raw_client(1, frame(2, b"x" * 1900) + frame(9, b"read"))
        assert await larger.frame() == (10, b"read")
        reloaded(run, max_inbound=500)
        smaller = await run.raw_client(2, frame(2, b"x" * 900))
        assert (await smaller.closed_with())[0] == 1009
        larger.send(frame(2, b"x" * 1900) + frame(9, b"as before"))
        assert await larger.frame() == (10, b"as before")


@effect_of("inbound_rate")
async def _(server: RedisServer, _: Path) -> None:
    async with running(server, inbound_rate=0, max_inbound=1000) as run:
        raw = await run.raw_client(1, frame(1, b"x" * 900) * 10 + frame(9, b"all"))
        assert await raw.frame() == (10, b"all")
        reloaded(run, inbound_rate=5000)
        raw.send(frame(1, b"x" * 900) * 10)
        assert await raw.closed_with() == (1009, "too much sent in a second")


@effect_of("queue_limit", "node_queue_limit")
async def _(server: RedisServer, _: Path) -> None:
    for name, kind in (("queue_limit", "connection"), ("node_queue_limit", "node")):
        async with running(server, queue_limit=2**30, send_buffer=4096, close_timeout=0.2) as run:
            other = await run.connect(2)
            await slow_raw_client(run, 1)

            async def send(count: int, run: Running = run, other: Any = other) -> None:
                for number in range(count):
                    run.publish(direct([1, 2], "x" * 50_000 + str(number)))
                    assert await other.next() == f'"{"x" * 50_000}{number}"'

            await send(20)
            assert not any(run.node._connections.cut.values())
            reloaded(run, **{name: 100_000})
            assert (await scrape(run))("queue_limit_bytes") == run.options.node_queue_limit
            await send(2)
            await gone(run)
            assert run.node._connections.cut == {"connection": 0, "node": 0, kind: 1}


async def gone(run: Running) -> None:
    await until(lambda: run.online == {"2": "1"})


@effect_of("bus_queue_limit")
async def _(server: RedisServer, _: Path) -> None:
    async with running(server) as run:
        peer, other = await run.connect(1), await run.connect(2)
        reloaded(run, bus_queue_limit=1)
        with pytest.MonkeyPatch.context() as patch:
            async with reading_held(run, patch):
                for number in range(5):
                    run.publish(direct([1, 2], str(number)))
                assert len(await other.fence()) == 5
        assert await peer.fence() == ['"0"']
        session = run.node._session
        assert session._reader is not None
        assert session.queue_limit == session._reader._stream.queue_limit == 1
        session.lose(LinkLost("test"))
        await run.is_back()
        assert session._reader._stream.queue_limit == 1, "the next connection has it too"


def test_each_option_that_can_change_has_an_effect_that_is_tested() -> None:
    assert set(EFFECTS) == set(RELOADABLE)
