"""``python -m freeim``: listen as a client and send, from the command line."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from freeim import ImHelper
from freeim.tool import main
from tests.cli.command import Server, environment, run_program
from tests.servers import RedisServer, free_port

PROGRAM = (sys.executable, "-P", "-m", "freeim")


@pytest.fixture
def node(redis_server: RedisServer) -> Iterator[Server]:
    with Server("--bind", "127.0.0.1:0", "--redis-url", redis_server.url) as server:
        server.banner()
        yield server


class Listener:
    """A running ``python -m freeim listen``: what it prints, and what it says beside it."""

    def __init__(self, server: RedisServer, *args: str, encoding: str = "utf-8") -> None:
        self.process = subprocess.Popen(
            [*PROGRAM, "listen", "--redis-url", server.url, *args],
            env=environment() | {"PYTHONIOENCODING": encoding},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )

    def prints(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def says(self, pattern: str) -> None:
        """Read what it says, up to a line that matches."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if re.search(pattern, line):
                return
        raise AssertionError(f"ended without {pattern!r}")

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        with self.process:
            pass


def send(server: RedisServer, *args: str) -> subprocess.CompletedProcess[str]:
    return run_program(*PROGRAM, args[0], "--redis-url", server.url, *args[1:])


@pytest.mark.usefixtures("node")
def test_a_listener_prints_what_is_sent_to_it_to_its_channels_and_to_everybody(redis_server: RedisServer) -> None:
    with Listener(redis_server, "5", "--chan", "room", "--chan", "hall") as listener:
        listener.says(r"^\* connected as 5 to ws://127.0.0.1:\d+/ws, in room, hall$")
        for command in (("send", "5", "hello 你好"), ("send-chan", "hall", "to all of it"), ("broadcast", "all")):
            done = send(redis_server, *command)
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout.startswith("published to 1 node\n")
            assert listener.prints() == f'"{command[-1]}"'
        assert send(redis_server, "send-chan", "hall", "x").stdout.endswith("the channel 'hall' has 1 member\n")


@pytest.mark.usefixtures("node")
def test_who_sends_is_the_system_or_the_client_that_is_named(redis_server: RedisServer) -> None:
    with Listener(redis_server, "5") as listener:
        listener.says("connected")
        send(redis_server, "send", "--from", "5", "5", "a sender with one connection does not get it")
        send(redis_server, "send", "5", "from nobody")
        assert listener.prints() == '"from nobody"'


@pytest.mark.usefixtures("node")
def test_sending_to_somebody_who_is_not_there_is_said(redis_server: RedisServer) -> None:
    done = send(redis_server, "send", "6", "x")
    assert done.returncode == 0
    assert done.stderr == "client 6 is not online\n"


@pytest.mark.usefixtures("node")
def test_a_listener_that_is_forced_offline_ends(redis_server: RedisServer) -> None:
    with Listener(redis_server, "5") as listener, ImHelper(redis_server.url) as helper:
        listener.says("connected")
        helper.force_offline(5)
        listener.says(r"^\* forced offline$")
        assert listener.process.wait(10) == 0


def test_a_listener_that_is_replaced_by_a_newer_login_leaves_it_alone(redis_server: RedisServer) -> None:
    limits = ("--max-per-client", "1", "--per-client-policy", "replace-oldest")
    with Server("--bind", f"127.0.0.1:{free_port()}", "--redis-url", redis_server.url, *limits) as node:
        node.banner()
        with Listener(redis_server, "5") as older:
            older.says("connected")
            with Listener(redis_server, "5") as newer:
                newer.says("connected")
                older.says(r"^\* replaced by a newer login$")
                assert older.process.wait(10) == 0
                send(redis_server, "send", "5", "hi")
                assert newer.prints() == '"hi"'


def test_a_listener_that_is_refused_shows_the_status_the_nodes_reason_and_what_to_do(redis_server: RedisServer) -> None:
    limits = ("--max-per-client", "1", "--per-client-policy", "reject")
    with Server("--bind", f"127.0.0.1:{free_port()}", "--redis-url", redis_server.url, *limits) as node:
        node.banner()
        with Listener(redis_server, "5") as first:
            first.says("connected")
            with Listener(redis_server, "5") as second:
                second.says(
                    r"^\* not connected: the answer was 429 Too Many Requests \(a client may have 1 connections "
                    r"here, and this one has them\); end other connections, or see the node's --max-per-client, "
                    r".*; trying again$"
                )


def test_a_listener_connects_again_with_a_fresh_token_and_is_in_its_channels_again(redis_server: RedisServer) -> None:
    command = ("--bind", f"127.0.0.1:{free_port()}", "--redis-url", redis_server.url)
    with Server(*command) as node:
        node.banner()
        listener = Listener(redis_server, "5", "--chan", "room")
        listener.says("connected")
        node.tell(signal.SIGTERM)
        node.wait()
    with listener:
        listener.says(r"ended with 1012 \(service restart\); connecting again")
        listener.says("not connected: .*; trying again")
        with Server(*command) as node:
            listener.says("connected as 5")
            with ImHelper(redis_server.url) as helper:
                helper.send_chan_message(0, "room", "again")
            assert listener.prints() == '"again"'


def test_ctrl_c_ends_a_listener_without_a_traceback(redis_server: RedisServer, node: Server) -> None:
    with Listener(redis_server, "5") as listener:
        listener.says("connected")
        listener.process.send_signal(signal.SIGINT)
        assert listener.process.stderr is not None
        assert listener.process.stderr.read() == ""
        assert listener.process.wait(10) == 130


@pytest.mark.usefixtures("node")
def test_a_listener_whose_reader_has_gone_ends_quietly(redis_server: RedisServer) -> None:
    with Listener(redis_server, "5") as listener:
        listener.says("connected")
        assert listener.process.stdout is not None
        listener.process.stdout.close()
        for _ in range(3):
            send(redis_server, "send", "5", "x")
        assert listener.process.wait(10) == 0
        listener.process.stdout = None


@pytest.mark.usefixtures("node")
def test_what_the_terminal_cannot_show_is_no_reason_to_stop(redis_server: RedisServer) -> None:
    with Listener(redis_server, "5", encoding="ascii") as listener:
        listener.says("connected")
        send(redis_server, "send", "5", "你好")
        assert listener.prints() == r'"\u4f60\u597d"'


@pytest.mark.usefixtures("node")
def test_guids_and_other_names_are_options(redis_server: RedisServer) -> None:
    guid = "0a0b0c0d-1111-2222-3333-00000000abcd"
    options = ("--ids", "guid", "--path", "/im", "--prefix", "p")
    with Server("--bind", "127.0.0.1:0", "--redis-url", redis_server.url, *options) as server:
        server.banner()
        with Listener(redis_server, *options, guid) as listener:
            listener.says(f"connected as {guid} to .*/im")
            assert send(redis_server, "send", *options, guid, "hi").returncode == 0
            assert listener.prints() == '"hi"'


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "no command": ((), "required: COMMAND; see python -m freeim --help"),
    "another command": (("sned",), "invalid choice: 'sned'"),
    "no text": (("send", "5"), "required: TEXT; see python -m freeim send --help"),
    "no number": (("send", "five", "x"), "a client id must be a whole number, not 'five' (or use --ids guid)"),
    "the system": (("listen", "0"), "client id 0 stands for the system"),
    "no guid": (("send", "--ids", "guid", "5", "x"), "'5'"),
    "an empty channel": (("send-chan", "", "x"), "a channel's name must not be empty"),
    "no Redis URL": (("send", "--redis-url", "http://h", "5", "x"), "must specify one of the following schemes"),
    "no node": (("send", "5", "x"), "no node has registered in Redis"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    args, expected = BAD[what]
    monkeypatch.setenv("FREEIM_REDIS_URL", redis_server.url)
    assert main(args) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("freeim: ")
    assert said.err.count("\n") == 1
    assert expected in said.err


@pytest.mark.parametrize("command", [("listen", "5"), ("send", "5", "x"), ("broadcast", "x")])
def test_no_redis_is_one_sentence_and_exit_code_3(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command[0], "--redis-url", f"redis://127.0.0.1:{free_port()}", *command[1:]]) == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_where_no_node_can_run_listening_says_what_it_lacks() -> None:
    code = (
        "import importlib.util, sys\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'picows' else real(name, *more)\n"
        "from freeim.tool import main; sys.exit(main(['listen', '5']))"
    )
    done = run_program(sys.executable, "-c", code)
    assert done.returncode == 2
    assert done.stderr == "freeim: listening needs picows, which installs with freeim where a node can run\n"
