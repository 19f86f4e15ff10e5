"""TLS at the node itself: what holds for plain connections holds for these, and a certificate can be renewed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from freeim import AsyncImHelper
from freeim.config import Options
from freeim.errors import ConfigError
from freeim.node import Node
from tests.certificates import Certificates
from tests.cli.command import Server, free_ports, run
from tests.node.harness import Peer, Raw, Running, bounded, direct, frame, head, refused, running, told, until
from tests.node.proxy_headers import block, line
from tests.servers import RedisServer


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


async def secure(run: Running, certificates: Certificates, client: int) -> Peer:
    """Connect a terminal with TLS."""
    url = run.url(run.token(client)).replace("ws:", "wss:")
    socket_ = await connect(url, ssl=certificates.trust, compression=None, ping_interval=None, proxy=None)
    run.peers.append(peer := Peer(run, client, socket_))
    return peer


async def raw_secure(run: Running, certificates: Certificates, limit: int = 65536) -> Raw:
    reader, writer = await asyncio.open_connection("127.0.0.1", run.node.port, ssl=certificates.trust, limit=limit)
    run._raw.append(raw := Raw(reader, writer))
    return raw


async def served(run: Running, certificates: Certificates) -> bytes:
    """Return the certificate that a new connection is shown."""
    raw = await raw_secure(run, certificates)
    shown = raw.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    raw.close()
    return bytes(shown)


async def test_terminals_connect_by_wss_and_the_helper_hands_that_out(
    redis_server: RedisServer, certificates: Certificates
) -> None:
    async with running(redis_server, **certificates.options) as run, AsyncImHelper(redis_server.url) as helper:
        assert f"listens on   127.0.0.1:{run.node.port} (TLS)" in run.node.banner()
        url = await helper.prev_connect_server(7)
        assert url.startswith(f"wss://127.0.0.1:{run.node.port}/ws?token=")
        async with connect(url, ssl=certificates.trust, proxy=None) as terminal:
            await helper.send_message(0, 7, "hi")
            assert await terminal.recv() == '"hi"'
        await until(lambda: run.online == {})


async def test_messages_of_any_size_arrive_whole_and_in_order(
    redis_server: RedisServer, certificates: Certificates
) -> None:
    async with running(redis_server, queue_limit=2**26, **certificates.options) as run:
        peers = [await secure(run, certificates, client) for client in (1, 2, 3)]
        texts = [chr(97 + number) * size for number, size in enumerate([1, 125, 126, 65_535, 65_536, 1_000_000, 3] * 3)]
        run.publish_all(direct([1, 2, 3], text) for text in texts)
        for peer in peers:
            assert await peer.fence() == [f'"{text}"' for text in texts]


async def test_a_refusal_is_read_whole(redis_server: RedisServer, certificates: Certificates) -> None:
    async with running(redis_server, **certificates.options) as run:
        raw = await raw_secure(run, certificates)
        raw.send(run.request("unknown"))
        status, headers, _ = await raw.response()
        assert status == 401
        assert len(await raw.rest()) == int(headers["content-length"])
        with pytest.raises(InvalidStatus, match="401"):
            await connect(run.url("x").replace("ws:", "wss:"), ssl=certificates.trust, proxy=None)
        await until(lambda: run.node._connections.accepted == 0)


async def test_pings_closes_and_forced_offline_work(redis_server: RedisServer, certificates: Certificates) -> None:
    async with running(redis_server, ping_interval=0.3, ping_timeout=0.3, **certificates.options) as run:
        pinged = await raw_secure(run, certificates)
        pinged.send(run.request(run.token(1)) + frame(9, b"early"))
        assert (await pinged.response())[0] == 101
        assert await pinged.frame() == (10, b"early")
        assert await pinged.frame() == (9, b"")
        # It does not answer.
        assert await pinged.frame() == (8, (4003).to_bytes(2, "big") + b"no pong")
        pinged.close()
        peer, closing = await secure(run, certificates, 2), await secure(run, certificates, 3)
        await closing.close(4321)
        assert closing.socket.close_code == 4321
        run.publish("__FreeIM__(ForceOffline)2")
        assert await peer.ended() == (1001, "disconnect")
        await until(lambda: run.online == {} and run.node._connections.accepted == 0)


async def test_a_terminal_that_does_not_read_is_cut_and_the_others_get_everything(
    redis_server: RedisServer, certificates: Certificates
) -> None:
    options = {"queue_limit": 1_000_000, "close_timeout": 0.5, **certificates.options}
    async with running(redis_server, **options) as run:
        other = await secure(run, certificates, 2)
        sock = socket.create_connection(("127.0.0.1", run.node.port))
        slow = certificates.trust.wrap_socket(sock, server_hostname="localhost", do_handshake_on_connect=False)
        await bounded(asyncio.to_thread(slow.do_handshake))
        slow.sendall(run.request(run.token(1)))
        await until(lambda: run.online == {"1": "1", "2": "1"})
        most = 0
        for _ in range(200):
            run.publish(direct([1, 2], "x" * 100_000))
            assert await other.next() == f'"{"x" * 100_000}"'
            most = max(most, run.node._connections.fanout.waiting)
        assert 500_000 < most < 2_000_000, "it counts for the node, too"
        await until(lambda: run.online == {"2": "1"}, "cut")
        assert run.node._connections.fanout.too_slow == 1
        assert await other.fence() == []
        slow.close()


async def test_who_speaks_no_tls_is_let_go_and_told_in_few_lines(
    redis_server: RedisServer, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(redis_server, **certificates.options) as run:
        peer = await secure(run, certificates, 1)
        for _ in range(30):
            raw = await run.raw()
            raw.send(run.request(run.token(2)))
            with contextlib.suppress(ConnectionError):
                assert b"HTTP" not in await raw.rest()
            raw.close()
        lines = [line for line in told(caplog) if "TLS handshake" in line]
        assert len(lines) == 20
        await until(lambda: run.node._acceptor.open == 1)
        run.publish(direct([1], "hi"))
        assert await peer.next() == '"hi"'


async def test_who_begins_a_handshake_and_stops_is_cut_in_time(
    redis_server: RedisServer, certificates: Certificates
) -> None:
    async with running(redis_server, handshake_timeout=0.3, **certificates.options) as run:
        for start in (b"", bytes.fromhex("16030100f8010000f40303")):
            raw = await run.raw()
            raw.send(start)
            with contextlib.suppress(ConnectionError):
                await raw.rest()
            await until(lambda: run.node._acceptor.open == 0)
        late = await raw_secure(run, certificates)  # and who stops right behind it
        assert (await late.response())[0] == 408


async def test_who_ends_tls_while_redis_is_asked_leaves_nothing_behind(
    own_redis_server: RedisServer, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(own_redis_server, **certificates.options) as run:
        sock = socket.create_connection(("127.0.0.1", run.node.port), timeout=10)
        leaving = await asyncio.to_thread(certificates.trust.wrap_socket, sock, server_hostname="localhost")
        request = run.request(run.token(1))
        handshakes = run.node._connections._handshakes
        own_redis_server.pause()
        try:
            leaving.sendall(request)
            await until(lambda: [handshake.token for handshake in handshakes.things() if handshake.token])
            (await asyncio.to_thread(leaving.unwrap)).close()
            await until(lambda: run.node._connections.accepted == 0)
        finally:
            own_redis_server.resume()
        await run.settled()
        assert run.online == {}
        assert [record.name for record in caplog.records if record.name == "asyncio"] == []


async def test_old_versions_of_tls_are_refused(redis_server: RedisServer, certificates: Certificates) -> None:
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        certificates.trust.minimum_version = certificates.trust.maximum_version = ssl.TLSVersion.TLSv1_1
    certificates.trust.set_ciphers("ALL:@SECLEVEL=0")
    async with running(redis_server, **certificates.options) as run:
        gate = run.node._acceptor.gate
        assert gate is not None
        gate._context.set_ciphers("ALL:@SECLEVEL=0")  # so that it is not OpenSSL's own level that refuses them
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await raw_secure(run, certificates)
        await until(lambda: run.node._acceptor.open == 0)


async def test_a_renewed_certificate_is_served_after_the_reload_and_connections_stay(
    redis_server: RedisServer, certificates: Certificates
) -> None:
    async with running(redis_server, **certificates.options) as run:
        peer = await secure(run, certificates, 1)
        before = await served(run, certificates)
        certificates.renew()
        assert await served(run, certificates) == before, "read at the start"
        assert run.node.reload()[1:] == (("tls_cert", "tls_key"), ())
        assert await served(run, certificates) == ssl.PEM_cert_to_DER_cert(certificates.cert.read_text()) != before
        run.publish(direct([1], "hi"))
        assert await peer.next() == '"hi"'


async def test_a_reload_of_files_that_do_not_fit_leaves_all_as_it_was(
    redis_server: RedisServer, certificates: Certificates
) -> None:
    async with running(redis_server, **certificates.options) as run:
        before = await served(run, certificates)
        key = certificates.key.read_bytes()
        certificates.renew()
        certificates.key.write_bytes(key)  # the certificate is new already, its key is not
        with pytest.raises(ConfigError, match="must belong to it"):
            run.node.reload()
        assert await served(run, certificates) == before
        certificates.cert.unlink()
        with pytest.raises(ConfigError, match=r"tls_cert .* cannot be read: No such file"):
            run.node.reload()
        assert await served(run, certificates) == before


async def test_a_reload_without_tls_does_nothing(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        assert run.node.reload()[1:] == ((), ())
        await run.connect(1)


async def behind_proxy(run: Running, certificates: Certificates, start: bytes) -> ssl.SSLSocket:
    """Connect as a proxy does that passes TLS on, behind its header, and return the terminal's end."""
    sock = socket.create_connection(("127.0.0.1", run.node.port), timeout=10)
    for byte in start:
        sock.sendall(bytes([byte]))
    return await asyncio.to_thread(certificates.trust.wrap_socket, sock, server_hostname="localhost")


@pytest.mark.parametrize("header", [line, block])
async def test_a_proxy_that_passes_tls_on_says_before_it_where_the_terminal_is(
    redis_server: RedisServer, certificates: Certificates, caplog: pytest.LogCaptureFixture, header: Any
) -> None:
    caplog.set_level(logging.INFO)
    options = {"trusted_proxies": ("127.0.0.1",), "max_per_address": 2, **certificates.options}
    async with running(redis_server, **options) as run:
        socks = []
        for address in ("203.0.113.1", "203.0.113.2") * 2:
            socks.append(sock := await behind_proxy(run, certificates, header(address)))
            sock.sendall(run.request(run.token(1)))
            assert b" 101 " in await asyncio.to_thread(sock.recv, 4096)
        socks.append(third := await behind_proxy(run, certificates, header("203.0.113.1")))
        third.sendall(run.request(run.token(1)))
        assert b" 429 " in await asyncio.to_thread(third.recv, 4096)
        assert any("refused 203.0.113.1 through 127.0.0.1:" in line for line in told(caplog))
        third.close()
        # Without the header, the proxy's own probe; and a proxy of its own TLS, which says it in HTTP.
        raw = await raw_secure(run, certificates)
        raw.send(head("/ws?token=x", "X-Forwarded-For: 203.0.113.3"))
        assert (await raw.response())[0] == 401
        assert any("refused 203.0.113.3 through" in line for line in told(caplog))
        for sock in socks:
            sock.close()


async def test_a_header_before_tls_that_is_wrong_or_of_a_stranger_ends_the_connection(
    redis_server: RedisServer, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for trusted, start, reason in (
        (("127.0.0.1",), b"PROXY TCP4 x y 1 2\r\n", "malformed PROXY header"),
        (("127.0.0.1",), b"PROXY TCP4 1.2", "no answer in time"),
        (("127.0.0.1",), b"", "no answer in time"),
        (("127.0.0.9",), line("203.0.113.1"), ""),
    ):
        caplog.clear()
        options = {"trusted_proxies": trusted, "handshake_timeout": 0.3, **certificates.options}
        async with running(redis_server, **options) as run:
            raw = await run.raw()
            raw.send(start)
            with contextlib.suppress(ConnectionError):
                await raw.rest()
            await until(lambda: run.node._acceptor.open == 0)
            [line_] = [each for each in told(caplog) if "TLS handshake" in each]
            assert reason in line_


async def test_addresses_are_limited_before_the_handshake_of_tls(
    redis_server: RedisServer, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(redis_server, max_per_address=2, handshake_timeout=60, **certificates.options) as run:
        for _ in range(4):
            await run.raw()
        await until(lambda: run.node._acceptor.open == 4)
        beyond = await run.raw()
        with contextlib.suppress(ConnectionError):
            assert await beyond.rest() == b""
        assert any("far more than --max-per-address" in line for line in told(caplog))
        for raw in run._raw:
            raw.close()
        await until(lambda: run.node._acceptor.open == 0)
        await secure(run, certificates, 1)


async def test_a_node_that_stops_tells_its_terminals_and_waits_for_no_handshake(
    redis_server: RedisServer, certificates: Certificates
) -> None:
    async with running(redis_server, handshake_timeout=60, **certificates.options) as run:
        peer = await secure(run, certificates, 1)
        await run.raw()
        await until(lambda: run.node._acceptor.open == 2)
        await bounded(run.node.stop(), 5)
        await until(lambda: not run.node._acceptor._tasks, "no handshake is left", 2)
        assert await peer.ended() == (1012, "service restart")
        assert run.online == {}


async def test_files_that_cannot_be_used_end_the_start_with_a_sentence(
    redis_server: RedisServer, certificates: Certificates
) -> None:
    folder, cert, key = certificates.folder, certificates.cert, certificates.key
    other = trustme.CA().issue_cert("localhost").private_key_pem
    other.write_to_path(folder / "other.pem")
    (folder / "garbage.pem").write_text("garbage")
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    secret = serialization.BestAvailableEncryption(b"secret")
    (folder / "locked.pem").write_bytes(
        private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret)
    )
    for files, sentence in (
        ({"tls_cert": str(folder / "none.pem")}, "tls_cert .* cannot be read: No such file"),
        ({"tls_cert": str(cert), "tls_key": str(folder / "none.pem")}, "tls_key .* cannot be read: No such file"),
        ({"tls_cert": str(cert)}, "both must be PEM files"),
        ({"tls_cert": str(folder / "garbage.pem"), "tls_key": str(key)}, "both must be PEM files"),
        ({"tls_cert": str(cert), "tls_key": str(folder / "other.pem")}, "must belong to it"),
        ({"tls_cert": str(cert), "tls_key": str(folder / "locked.pem")}, "is encrypted"),
        ({"tls_key": str(key)}, "no tls_cert"),
    ):
        options = Options(bind="127.0.0.1:0", redis_url=redis_server.url, **files)  # type: ignore[arg-type]
        await refused(Node(options), ConfigError, sentence)


def test_the_command_tells_of_a_missing_certificate_and_ends_with_2(tmp_path: Path) -> None:
    ended = run("--tls-cert", str(tmp_path / "none.pem"), "--workers", "2", "--redis-url", "redis://127.0.0.1:1")
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "tls_cert" in ended.stderr


async def test_a_group_of_workers_serves_tls(redis_server: RedisServer, certificates: Certificates) -> None:
    both = certificates.folder / "both.pem"
    both.write_bytes(certificates.cert.read_bytes() + certificates.key.read_bytes())
    bind = ("--bind", f"127.0.0.1:{free_ports(2)}")
    with Server(*bind, "--tls-cert", str(both), "--workers", "2", "--redis-url", redis_server.url) as group:
        group.banner()
        async with AsyncImHelper(redis_server.url) as helper:
            for client in (1, 2):
                url = await helper.prev_connect_server(client)
                async with connect(url, ssl=certificates.trust, proxy=None) as terminal:
                    await helper.send_message(0, client, "hi")
                    assert await terminal.recv() == '"hi"'
