"""The proxies of the README and docs/deployment.md, as they stand there: the real programs do as the pages say."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from freeim import ImHelper
from tests.certificates import Certificates
from tests.cli.command import Server, free_ports
from tests.docs.pages import README, Page
from tests.docs.proxies import caddy, files_with, haproxy, nginx
from tests.servers import RedisServer, free_port

DEPLOYMENT = Page("docs/deployment.md")
HOST = "im.example.com"

PROXIES = [
    pytest.param(README, "nginx", id="nginx of README.md", marks=pytest.mark.nginx),
    pytest.param(DEPLOYMENT, "nginx", id="nginx", marks=pytest.mark.nginx),
    pytest.param(DEPLOYMENT, "caddyfile", id="Caddy", marks=pytest.mark.caddy),
]


class Site:
    """A group of nodes behind a proxy that runs as a page says.

    Args:
        page: The page.
        language: Of the page's block.
        redis_url: What the nodes and the helper use.
        folder: For files and logs.
        options: More options of the nodes.
    """

    def __init__(self, page: Page, language: str, redis_url: str, folder: Path, *options: str) -> None:
        [block] = page.written_in(language)
        self.folder = folder
        self.port, first = free_port(), free_ports(4)
        self.redis_url = redis_url
        self.certificates = Certificates(folder, HOST)
        text = re.sub(r"127\.0\.0\.1:600(\d)", lambda match: f"127.0.0.1:{first + int(match[1]) - 1}", block.text)
        self.secure = language == "caddyfile" or "ssl_certificate" in text
        self._text = self._for_caddy(text) if language == "caddyfile" else self._for_nginx(text)
        self._run = caddy if language == "caddyfile" else nginx
        self.count = len(re.findall(r"(?:location|handle_path) /n\d/", text))
        self.public = f"{'wss' if self.secure else 'ws'}://{HOST}:{self.port}/n{{index}}"
        bind = ("--bind", f"127.0.0.1:{first}", "--workers", str(self.count), "--public-url", self.public)
        self._command = (*bind, "--redis-url", redis_url, *options)

    def _for_nginx(self, text: str) -> str:
        if not self.secure:
            return f"server {{ listen 127.0.0.1:{self.port};\n{text}\n}}"
        text = re.sub(r"(ssl_certificate +)\S+;", rf"\1{self.certificates.cert};", text)
        text = re.sub(r"(ssl_certificate_key +)\S+;", rf"\1{self.certificates.key};", text)
        return text.replace("listen 443 ssl", f"listen 127.0.0.1:{self.port} ssl").replace(
            "/var/log/nginx", str(self.folder)
        )

    def _for_caddy(self, text: str) -> str:
        # The test has a certificate of its own and no right to the ports 80 and 443.
        text = text.replace("{\n", "{\n\tadmin off\n\tauto_https disable_redirects\n", 1)
        site = f"{HOST}:{self.port} {{\n\tbind 127.0.0.1\n\ttls {self.certificates.cert} {self.certificates.key}\n"
        assert f"\n{HOST} {{\n" in text
        return text.replace(f"\n{HOST} {{\n", f"\n{site}")

    @contextlib.contextmanager
    def running(self) -> Iterator[Server]:
        """Run the nodes and the proxy."""
        with Server(*self._command) as group:
            group.banner()
            with self._run(self._text, self.port, self.folder):
                yield group

    def connect(self, url: str, source: str = "127.0.0.1", **headers: str) -> ClientConnection:
        """Connect through the proxy; no name server knows the host: its name is checked, its address is ours."""
        more: dict[str, Any] = {"ssl": self.certificates.trust} if self.secure else {}
        lines = {name.replace("_", "-"): value for name, value in headers.items()}
        return connect(
            url, address=("127.0.0.1", self.port), source_address=(source, 0), additional_headers=lines, **more
        )

    def status(self, url: str, source: str = "127.0.0.1", **headers: str) -> int:
        """Return the status of an attempt to connect that fails."""
        with pytest.raises(InvalidStatus) as refused:
            self.connect(url, source, **headers)
        return refused.value.response.status_code


@pytest.mark.parametrize(("page", "language"), PROXIES)
def test_a_proxy_hands_each_client_to_its_node(
    page: Page, language: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    site = Site(page, language, redis_server.url, tmp_path)
    with site.running(), ImHelper(redis_server.url) as helper, contextlib.ExitStack() as stack:
        for client in range(1, site.count + 1):
            url = helper.prev_connect_server(client)
            assert url.startswith(f"{site.public.format(index=client % site.count)}/ws?token=")
            terminal = stack.enter_context(site.connect(url))
            helper.send_message(0, client, "through the proxy")
            assert terminal.recv(10) == '"through the proxy"'
        assert site.status(url) == 401, "the token was used"


@pytest.mark.parametrize(("page", "language"), PROXIES[1:])
def test_the_node_learns_from_the_proxy_where_terminals_are_and_no_terminal_can_say_so_itself(
    page: Page, language: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    options = ("--trusted-proxies", "127.0.0.1", "--max-per-address", "1")
    site = Site(page, language, redis_server.url, tmp_path, *options)
    with site.running() as group, ImHelper(redis_server.url) as helper:
        client = site.count  # of the node 0

        def url() -> str:
            return helper.prev_connect_server(client)

        with site.connect(url(), "127.0.0.2"), site.connect(url(), "127.0.0.3"):
            assert site.status(url(), "127.0.0.2") == 429
            assert site.status(url(), "127.0.0.3", X_Forwarded_For="203.0.113.9") == 429
            with site.connect(url(), "127.0.0.4", X_Forwarded_For="127.0.0.2"):
                helper.send_message(0, client, "hi")
        lines = group.logged(r"refused (127\.0\.0\.\d) through 127\.0\.0\.1:\d+ with 429", 2)
        assert lines == ["127.0.0.2", "127.0.0.3"]


@pytest.mark.parametrize(("page", "language"), PROXIES[1:])
def test_no_token_is_in_a_log_of_the_proxy_whatever_fails(
    page: Page, language: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    site = Site(page, language, redis_server.url, tmp_path)
    tokens = []
    with site.running() as group, ImHelper(redis_server.url) as helper:

        def url() -> str:
            made = helper.prev_connect_server(site.count)
            tokens.append(made.partition("token=")[2])
            return made

        with site.connect(url()) as terminal:
            helper.send_message(0, site.count, "hi")
            assert terminal.recv(10) == '"hi"'
        used = url()
        with site.connect(used):
            pass
        assert site.status(used) == 401
        assert site.status(url().replace("/ws?", "/other?")) == 404
        too_late = url()
        with site.connect(url()) as terminal:
            group.tell_group(signal.SIGKILL)
            with pytest.raises(ConnectionClosed):
                terminal.recv(10)
        assert site.status(too_late) == 502
    assert len(tokens) == 5
    assert files_with(tmp_path, "/n0/ws"), "what is logged at all"
    for token in tokens:
        assert len(token) == 128
        assert files_with(tmp_path, token) == []


@pytest.mark.haproxy
@pytest.mark.parametrize("version", ["send-proxy-v2", "send-proxy"])
@pytest.mark.parametrize("secure", [True, False], ids=["TLS at the node", "no TLS"])
def test_haproxy_says_where_terminals_are_without_looking_into_their_bytes(
    redis_server: RedisServer, tmp_path: Path, version: str, secure: bool
) -> None:
    [block] = DEPLOYMENT.written_in("haproxy")
    port, first = free_ports(2), free_ports(2)
    text = re.sub(r"bind :700(\d)", lambda match: f"bind 127.0.0.1:{port + int(match[1])}", block.text)
    text = re.sub(r"127\.0\.0\.1:600(\d)", lambda match: f"127.0.0.1:{first + int(match[1]) - 1}", text)
    text = text.replace("send-proxy-v2", version)
    certificates = Certificates(tmp_path, HOST)
    files = ("--tls-cert", str(certificates.cert), "--tls-key", str(certificates.key)) if secure else ()
    bind = ("--bind", f"127.0.0.1:{first}", "--workers", "2", "--redis-url", redis_server.url)
    # This process, too, must get on between its handshake of TLS and its request; a busy machine may let it wait.
    limits = ("--trusted-proxies", "127.0.0.1", "--max-per-address", "1", "--handshake-timeout", "30")
    with (
        Server(*bind, *limits, *files, "--public-url", f"{'wss' if secure else 'ws'}://{HOST}:{{port}}") as group,
        haproxy(text, port, tmp_path),
        ImHelper(redis_server.url) as helper,
    ):
        group.banner()

        def through(client: int, source: str) -> ClientConnection:
            more: dict[str, Any] = {"ssl": certificates.trust} if secure else {}
            address = ("127.0.0.1", port + client % 2)
            url = helper.prev_connect_server(client)
            return connect(url, address=address, source_address=(source, 0), open_timeout=40, **more)

        with through(1, "127.0.0.2") as one, through(2, "127.0.0.2") as two, through(1, "127.0.0.3"):
            for client, terminal in ((1, one), (2, two)):
                helper.send_message(0, client, "hi")
                assert terminal.recv(10) == '"hi"'
            with pytest.raises(InvalidStatus, match="429"):
                through(1, "127.0.0.2")
        assert group.logged(r"refused (\S+) (?:through 127\.0\.0\.1:\d+ )?with 429") == ["127.0.0.2"]
