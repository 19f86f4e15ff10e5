"""How a node reaches Redis: sockets, users, passwords, databases, TLS, and a server that does not answer."""

from __future__ import annotations

import contextlib
import select
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from freeim.errors import RedisUnavailable
from tests.node.harness import SECONDS, Running, bounded
from tests.servers import RedisServer


async def serves(server: RedisServer, **options: object) -> None:
    """Show that a node with these options authorises and delivers."""
    async with Running(server, **options) as running:
        peer = await running.connect(7)
        assert await peer.fence() == []


@pytest.fixture
def redis_user(redis_server: RedisServer) -> Iterator[RedisServer]:
    redis_server.command("ACL", "SETUSER", "im", "on", ">p@ss:w/rd", "~*", "&*", "+@all")
    yield redis_server
    redis_server.command("ACL", "DELUSER", "im")


async def test_a_node_reaches_redis_over_a_unix_socket(redis_server: RedisServer) -> None:
    await serves(redis_server, redis_url=redis_server.unix_url)


async def test_a_node_logs_in_with_user_and_password(redis_user: RedisServer) -> None:
    async with Running(redis_user, redis_url=f"redis://im:p%40ss%3Aw%2Frd@127.0.0.1:{redis_user.port}") as running:
        peer = await running.connect(7)
        assert await peer.fence() == []
        clients = redis_user.command("CLIENT", "LIST").splitlines()
        assert sum(b" user=im " in client for client in clients) == 2, "the reader and the writer"


async def test_a_node_reads_the_password_from_a_file(redis_user: RedisServer, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("p@ss:w/rd\n")
    await serves(
        redis_user,
        redis_url=f"redis://im@127.0.0.1:{redis_user.port}",
        redis_password_file=str(tmp_path / "password"),
    )


async def test_a_wrong_password_is_told_without_showing_it(redis_user: RedisServer) -> None:
    running = Running(redis_user, redis_url=f"redis://im:wr0ng@127.0.0.1:{redis_user.port}")
    with pytest.raises(RedisUnavailable, match="WRONGPASS") as caught:
        await bounded(running.node.start())
    assert "wr0ng" not in str(caught.value)


async def test_a_node_uses_the_database_of_its_url(redis_server: RedisServer) -> None:
    with redis_server.wire() as wire:
        wire("SELECT", 3)
        async with Running(redis_server, redis_url=f"{redis_server.url}/3") as running:
            assert wire("EXISTS", running.names.nodes) == 1
            assert redis_server.command("EXISTS", running.names.nodes) == 0


class TlsProxy(socketserver.ThreadingTCPServer):
    """Ends TLS in front of a Redis. In threads: a transport of the test's own would outlive the loop of the node."""

    daemon_threads = True

    def __init__(self, server: RedisServer, context: ssl.SSLContext) -> None:
        self.context = context
        self.path = server.socket_path
        super().__init__(("127.0.0.1", 0), TlsRelay)


class TlsRelay(socketserver.BaseRequestHandler):
    server: TlsProxy

    def handle(self) -> None:
        # One thread for both directions: a TLS connection must not be read and written at the same time.
        with (
            contextlib.suppress(OSError),
            self.server.context.wrap_socket(self.request, server_side=True) as outer,
            socket.socket(socket.AF_UNIX) as inner,
        ):
            inner.connect(self.server.path)
            while True:
                ready = [outer] if outer.pending() else select.select([outer, inner], [], [])[0]
                source, target = (outer, inner) if outer in ready else (inner, outer)
                data = source.recv(65536)
                if not data:
                    return
                target.sendall(data)


async def test_a_node_reaches_redis_over_tls_and_checks_its_certificate(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with TlsProxy(redis_server, context) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True).start()
        url = f"rediss://127.0.0.1:{proxy.server_address[1]}"
        with pytest.raises(RedisUnavailable, match=r"(?i)certificate"):
            await bounded(Running(redis_server, redis_url=url).node.start())
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        await serves(redis_server, redis_url=url)
        proxy.shutdown()


async def test_a_start_on_a_redis_that_does_not_answer_ends_in_time(own_redis_server: RedisServer) -> None:
    own_redis_server.pause()
    try:
        with pytest.raises(RedisUnavailable, match="no answer in time"):
            await bounded(Running(own_redis_server).node.start(), SECONDS)
    finally:
        own_redis_server.resume()
