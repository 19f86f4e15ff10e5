"""The deployment that the README and docs/deployment.md show: their commands start."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
from pathlib import Path

import pytest

from freeim import ImHelper
from freeim.config_load import load
from tests.certificates import Certificates
from tests.cli.command import Server, free_ports
from tests.docs.pages import README, Block, Page
from tests.servers import RedisServer

DEPLOYMENT = Page("docs/deployment.md")

BLOCKS = [block for page in (README, DEPLOYMENT) for block in page.written_in("sh") if "freeim-server --" in block.text]


def commands(block: Block, redis_url: str, certificates: Certificates, folder: str) -> list[list[str]]:
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
        if "--handover" in arguments:
            path = arguments[arguments.index("--handover") + 1]
            arguments[arguments.index("--handover") + 1] = path.replace("/run/freeim", str(folder))
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
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="freeim-"))  # short enough for a socket
        for arguments in commands(block, redis_server.url, certificates, folder):
            stack.enter_context(Server(*arguments)).banner()
        with ImHelper(redis_server.url) as helper:
            urls = {helper.prev_connect_server(client).partition("?")[0] for client in range(1, 9)}
            assert helper.send_broadcast_message("x").silent == ()
    options = [load(arguments, {})[0] for arguments in commands(block, redis_server.url, certificates, folder)]
    workers = [each.for_worker(index) for each in options for index in range(each.workers)]
    if any(each.public_url for each in workers):
        assert urls == {f"{each.public_url}{each.path}" for each in workers}
