"""A Redis that speaks nothing but TLS: the node, both helpers and both buses reach it, and believe no other."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from freeim import AsyncImHelper, ImHelper, RedisUnavailable
from tests.certificates import Certificates
from tests.node.harness import Running, bounded, running, until
from tests.servers import RedisServer, free_port

Start = Callable[..., tuple[RedisServer, str]]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a Redis whose certificate is for some names; give it and its URL. The system trusts its authority."""
    servers: list[RedisServer] = []

    def make(*names: str) -> tuple[RedisServer, str]:
        binary = shutil.which("redis-server")
        assert binary is not None, "no Redis that speaks TLS to test with (Debian: apt install redis-server)"
        certificates, port = Certificates(tmp_path, *names), free_port()
        certificates.authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        files = ("--tls-cert-file", str(certificates.cert), "--tls-key-file", str(certificates.key))
        only_tls = ("--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no")
        servers.append(RedisServer(binary, (*only_tls, *files)).start())
        return servers[0], f"rediss://127.0.0.1:{port}"

    yield make
    for server in servers:
        server.stop()


def send_all(url: str) -> None:
    with ImHelper(url) as helper:
        helper.join_chan(7, "room")
        helper.send_message(0, 7, "to one")
        helper.send_chan_message(0, "room", "to the room")
        assert helper.has_online(7)
        assert helper.get_chan_online("room") == 1


async def send_all_async(url: str) -> None:
    async with AsyncImHelper(url) as helper:
        await helper.send_message(0, 7, "to one")
        await helper.send_chan_message(0, "room", "to the room")
        assert await helper.has_online(7)


async def test_node_helpers_and_buses_reach_a_redis_that_speaks_only_tls(start: Start) -> None:
    redis, url = start("127.0.0.1")
    heard: list[tuple[str, int]] = []

    def hear(kind: str) -> Callable[[Any], None]:
        return lambda event: heard.append((kind, event.client_id))

    with ImHelper(url) as helper, helper.event_bus(hear("sync"), hear("sync")):
        async with (
            running(redis, redis_url=url) as run,
            AsyncImHelper(url) as other,
            other.event_bus(hear("async"), hear("async")),
        ):
            peer = await run.connect_with((await other.prev_connect_server(7)).partition("token=")[2], 7)
            await asyncio.to_thread(send_all, url)
            await send_all_async(url)
            assert await peer.fence() == ['"to one"', '"to the room"'] * 2
            await until(lambda: sorted(heard) == [("async", 7), ("sync", 7)], "both buses heard of it")


async def unreachable(redis: RedisServer, url: str) -> None:
    """Show that neither a node nor a helper talks to this Redis."""
    with pytest.raises(RedisUnavailable, match=r"(?i)certificate"):
        await bounded(Running(redis, redis_url=url).node.start())
    with ImHelper(url) as helper, pytest.raises(RedisUnavailable, match=r"(?i)certificate"):
        await asyncio.to_thread(helper.has_online, 7)
    async with AsyncImHelper(url) as other:
        with pytest.raises(RedisUnavailable, match=r"(?i)certificate"):
            await other.has_online(7)


async def test_a_redis_whose_certificate_nobody_vouches_for_gets_no_password(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    redis, url = start("127.0.0.1")
    folder = tmp_path / "other"
    folder.mkdir()
    Certificates(folder).authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "authority.pem"))
    await unreachable(redis, url)


async def test_a_redis_with_a_certificate_for_another_host_is_not_believed(start: Start) -> None:
    await unreachable(*start("redis.example.com"))
