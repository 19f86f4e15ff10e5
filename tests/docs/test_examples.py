"""The programs that the README sends newcomers to."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.sync.client import connect

from freeim import ImHelper
from tests.cli.command import Server, environment, wait_until_gone
from tests.docs.pages import ROOT
from tests.servers import RedisServer, Wire, free_port, server_binary

CHAT = ROOT / "examples" / "chat.py"
RUN = ROOT / "tools" / "run.py"


@contextlib.contextmanager
def running(*command: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, *command],
        env=environment() | {"PYTHONIOENCODING": "utf-8"} | environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    """Read whole lines until one of them matches, and return all."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if re.search(pattern, line):
            return text
    raise AssertionError(f"ended without {pattern!r}:\n{text}")


@pytest.fixture
def node(redis_server: RedisServer) -> Iterator[Server]:
    with Server("--bind", "127.0.0.1:0", "--redis-url", redis_server.url) as server:
        server.banner()
        yield server


def test_a_chat_ends_when_it_is_forced_offline(redis_server: RedisServer, node: Server) -> None:
    with running(str(CHAT), "1", "2", "--redis", redis_server.url) as chat, ImHelper(redis_server.url) as helper:
        read_until(chat, "connected as 1")
        helper.send_message(0, 1, ["any", "message"])
        read_until(chat, r'^\["any", "message"\]$')
        helper.force_offline(1)
        read_until(chat, "forced offline")


def test_a_chat_tells_that_the_friend_is_not_there(redis_server: RedisServer, node: Server) -> None:
    with running(str(CHAT), "1", "2", "--redis", redis_server.url) as chat:
        read_until(chat, "connected as 1")
        assert chat.stdin is not None
        chat.stdin.write("hello\n")
        chat.stdin.flush()
        read_until(chat, r"^  \(not online: hello\)$")


def test_a_chat_connects_again_after_the_node_has_restarted(redis_server: RedisServer) -> None:
    command = ("--bind", f"127.0.0.1:{free_port()}", "--redis-url", redis_server.url)
    with running(str(CHAT), "1", "2", "--redis", redis_server.url) as chat:
        read_until(chat, "not connected: no node has registered")
        with Server(*command) as node:
            read_until(chat, "connected as 1")
            node.tell(signal.SIGTERM)
            read_until(chat, "not connected: received 1012")
        with Server(*command):
            read_until(chat, "connected as 1")


def test_make_run_shows_how_to_connect_on_a_redis_that_is_named(redis_server: RedisServer) -> None:
    with running(str(RUN), "--bind", "127.0.0.1:0", FREEIM_REDIS_URL=redis_server.url) as run:
        text = read_until(run, "Ctrl-C ends the node.$")
        url = re.findall(r'-m websockets "(ws://.+)"', text)[0]
        assert f"{CHAT} 1 2 --redis {redis_server.url}\n" in text
        assert f"{CHAT} 2 1 --redis {redis_server.url}\n" in text
        assert redis_server.command("TTL", "im_v2_wsToken" + url.partition("token=")[2]) > 590
        with connect(url), ImHelper(redis_server.url) as helper:
            assert helper.has_online(1)
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait(15) == 0
        assert redis_server.command("EXISTS", "im_v2_wsShares") == 0, "the node took its leave"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda each: each.name)
def test_make_run_ends_the_redis_that_it_started(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "redis-server").symlink_to(server_binary())
    port = free_port()
    program = (
        f"import sys; sys.path.insert(0, {str(RUN.parent)!r}); import run; run.REDIS_PORT = {port}; "
        f"run.DEFAULT_URL = 'redis://127.0.0.1:{port}'; sys.exit(run.main())"
    )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    with running("-P", "-c", program, "--bind", "127.0.0.1:0", PATH=path, TMPDIR=str(tmp_path)) as run:
        text = read_until(run, "Ctrl-C ends the node and the Redis that was started for it.")
        assert " --redis " not in text, "at its usual port the Redis need not be named"
        with Wire(("127.0.0.1", port)) as wire:
            server = int(re.findall(rb"process_id:(\d+)", wire("INFO", "server"))[0])
        os.killpg(run.pid, number)
        run.wait(15)
        wait_until_gone([server])
        assert not list(tmp_path.glob("freeim-run-*"))


def test_make_run_refuses_options_that_the_chat_does_not_know(redis_server: RedisServer) -> None:
    with running(str(RUN), "--ids", "guid", FREEIM_REDIS_URL=redis_server.url) as run:
        assert run.wait(15) == 1
