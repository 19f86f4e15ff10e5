"""The deployment that the README and docs/deployment.md show: their commands start, and nginx does as they say."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.sync.client import connect

from freeim import ImHelper
from freeim.config_load import load
from tests.certificates import Certificates
from tests.cli.command import Server, free_ports
from tests.docs.pages import README, Block, Page
from tests.node.harness import until
from tests.servers import RedisServer, free_port

DEPLOYMENT = Page("docs/deployment.md")
HOST = "im.example.com"

BLOCKS = [block for page in (README, DEPLOYMENT) for block in page.written_in("sh") if "freeim-server --" in block.text]


def commands(block: Block, redis_url: str, certificates: Certificates) -> list[list[str]]:
    """Return the arguments of the block's commands, on free ports of this machine and with the files of the test."""
    found = []
    for line in block.lines:
        arguments = shlex.split(line)[1:]
        options = load(arguments, {})[0]
        port = free_ports(options.workers)
        for name, value in (("--bind", f"127.0.0.1:{port}"), ("--redis-url", redis_url)):
            if name in arguments:
                arguments[arguments.index(name) + 1] = value
            else:
                arguments += [name, value]
        for name, file in (("--tls-cert", certificates.cert), ("--tls-key", certificates.key)):
            if name in arguments:
                arguments[arguments.index(name) + 1] = str(file)
        found.append(arguments)
    return found


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_each_command_starts_nodes_whose_public_urls_the_helper_hands_out(
    block: Block, redis_server: RedisServer, tmp_path: Path
) -> None:
    certificates = Certificates(tmp_path)
    with contextlib.ExitStack() as stack:
        for arguments in commands(block, redis_server.url, certificates):
            stack.enter_context(Server(*arguments)).banner()
        with ImHelper(redis_server.url) as helper:
            urls = {helper.prev_connect_server(client).partition("?")[0] for client in range(1, 9)}
            assert helper.send_broadcast_message("x").silent == ()
    options = [load(arguments, {})[0] for arguments in commands(block, redis_server.url, certificates)]
    workers = [each.for_worker(index) for each in options for index in range(each.workers)]
    if any(each.public_url for each in workers):
        assert urls == {f"{each.public_url}{each.path}" for each in workers}


@contextlib.contextmanager
def nginx(server: str, folder: Path) -> Iterator[None]:
    """Run nginx with one server, in a folder of its own."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/local/bin:/usr/bin:/opt/homebrew/bin")
    assert program is not None, "no nginx to test with (Debian: apt install nginx-light)"
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;"
        f"events {{ worker_connections 100; }} http {{ access_log off; {paths}\n{server}\n}}",
        encoding="utf-8",
    )
    process = subprocess.Popen([program, "-p", str(folder), "-e", f"{folder}/error.log", "-c", str(config)])
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.proxy
@pytest.mark.parametrize("page", [README, DEPLOYMENT], ids=lambda page: page.name)
async def test_nginx_hands_each_client_to_its_node(page: Page, redis_server: RedisServer, tmp_path: Path) -> None:
    [block] = page.written_in("nginx")
    port, first = free_port(), free_ports(4)
    text = re.sub(r"127\.0\.0\.1:600(\d)", lambda match: f"127.0.0.1:{first + int(match[1]) - 1}", block.text)
    secure = "ssl_certificate" in text
    tls = None
    if secure:
        tls = Certificates(tmp_path, HOST).trust
        text = re.sub(r"(ssl_certificate +)\S+;", rf"\1{tmp_path}/cert.pem;", text)
        text = re.sub(r"(ssl_certificate_key +)\S+;", rf"\1{tmp_path}/key.pem;", text)
        text = text.replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
    else:
        text = f"server {{ listen 127.0.0.1:{port};\n{text}\n}}"
    count = len(re.findall(r"location /n\d/", text))
    public = f"{'wss' if secure else 'ws'}://{HOST}:{port}/n{{index}}"
    options = ("--bind", f"127.0.0.1:{first}", "--workers", str(count), "--public-url", public)
    with Server(*options, "--redis-url", redis_server.url) as group, nginx(text, tmp_path):
        group.banner()
        await until(lambda: (tmp_path / "pid").exists(), "nginx runs")
        with ImHelper(redis_server.url) as helper, contextlib.ExitStack() as stack:
            for client in range(1, count + 1):
                url = helper.prev_connect_server(client)
                assert url.startswith(f"{public.format(index=client % count)}/ws?token=")
                # No name server knows the host: its name and certificate are checked, its address is ours.
                terminal = stack.enter_context(connect(url, address=("127.0.0.1", port), ssl=tls))
                helper.send_message(0, client, "through nginx")
                assert terminal.recv(10) == '"through nginx"'
