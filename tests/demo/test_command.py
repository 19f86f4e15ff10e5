"""``python -m freeim.demo``: a node and an app that begin and end together, and what it says when one cannot."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from freeim.demo import __main__ as command
from freeim.demo.options import app_hosts, node_options
from tests.cli.command import is_running, run_program, wait_until_gone
from tests.demo.demo import Demo, Visitor, program
from tests.embedded.runtime import Runtime
from tests.servers import RedisServer, free_port


def both(redis_server: RedisServer, *args: str) -> Demo:
    """Return the demo with a node of its own, on free ports."""
    options = ("--bind", "127.0.0.1:0", "--node-bind", f"127.0.0.1:{free_port()}", *args)
    return Demo(*options, program=program(redis_server.url))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_signal_ends_the_app_and_the_node(redis_server: RedisServer, number: signal.Signals) -> None:
    with both(redis_server) as demo:
        with Visitor(demo.page(), "Ana") as ana:
            ana.hear("online", id=ana.id)
            children = demo.children()
            assert len(children) == 1
            demo.tell_group(number)  # as a terminal does
            assert ana.ended()[0] == 1012
        assert demo.wait() == 0
        wait_until_gone(children)
        assert "Traceback" not in demo.stderr
        assert redis_server.hash("im_v2_wsOnline") == {}


def test_a_signal_while_the_node_starts_ends_both(redis_server: RedisServer) -> None:
    redis_server.pause()
    try:
        with both(redis_server) as demo:
            demo._wait_for(lambda: demo.children() != [], "a node", 10)
            children = demo.children()
            demo.tell(signal.SIGTERM)
            assert demo.wait() == 0
            wait_until_gone(children)
            assert demo.stdout == ""
    finally:
        redis_server.resume()


def test_a_node_that_dies_is_reported_and_ends_the_app(redis_server: RedisServer) -> None:
    with both(redis_server) as demo:
        demo.page()
        [node] = demo.children()
        os.kill(node, signal.SIGKILL)
        assert demo.wait() == 1
        assert demo.stderr.endswith("python -m freeim.demo: the node ended by SIGKILL; its log is above\n")


def test_the_node_ends_by_itself_when_the_demo_is_killed(redis_server: RedisServer) -> None:
    with both(redis_server) as demo:
        with Visitor(demo.page(), "Ana") as ana:
            ana.hear("online", id=ana.id)
            children = demo.children()
            demo.tell(signal.SIGKILL)
            assert ana.ended()[0] == 1012  # in an orderly way
        wait_until_gone(children)
        assert redis_server.hash("im_v2_wsOnline") == {}


def test_a_killed_demo_leaves_no_redis_either(runtime: Runtime) -> None:
    options = ("--bind", "127.0.0.1:0", "--node-bind", f"127.0.0.1:{free_port()}")
    with Demo(*options, program=program("")) as demo:
        demo.page()
        server = runtime.server
        demo.tell(signal.SIGKILL)
        demo.wait()
        runtime.assert_gone(server)


def test_a_second_ctrl_c_ends_at_once(redis_server: RedisServer) -> None:
    with both(redis_server) as demo:
        demo.page()
        [node] = demo.children()
        os.kill(node, signal.SIGSTOP)
        try:
            demo.tell(signal.SIGINT)
            demo.logged("once more")
            demo.tell(signal.SIGINT)
            assert demo.wait(3) == 130
        finally:
            os.kill(node, signal.SIGCONT)
        wait_until_gone([node])


def test_a_node_that_cannot_start_is_reported() -> None:
    address = f"127.0.0.1:{free_port()}"
    done = run_program(*program("redis://127.0.0.1:1"), "--bind", "127.0.0.1:0", "--node-bind", address)
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == ("python -m freeim.demo: the node ended with exit code 3; its log is above")


def test_the_advice_for_an_address_of_the_node_that_is_taken_names_the_option_of_the_demo() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run_program(*program("redis://127.0.0.1:1"), "--bind", "127.0.0.1:0", "--node-bind", address)
    assert done.returncode == 2
    assert done.stderr == (
        f"python -m freeim.demo: cannot listen on {address}: Address already in use; choose another --node-bind\n"
    )


def test_variables_that_are_options_of_a_node_are_not_for_that_of_the_demo(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    config = tmp_path / "freeim.toml"
    config.write_text('redis_url = "redis://127.0.0.1:1"\n')
    variables = {
        "FREEIM_CONFIG": str(config),
        "FREEIM_PREFIX": "other",
        "FREEIM_PATH": "/other",
        "FREEIM_IDS": "guid",
        "FREEIM_NODES": "elsewhere:1",
        "FREEIM_WORKERS": "3",
        "FREEIM_EMBEDDED": "1",
    }
    options = ("--bind", "127.0.0.1:0", "--node-bind", f"127.0.0.1:{free_port()}")
    with Demo(*options, program=program(redis_server.url, **variables)) as demo, Visitor(demo.page(), "Ana") as ana:
        ana.hear("online", id=ana.id)


@pytest.mark.parametrize(
    ("variable", "args", "sentence"),
    [
        ("redis://127.0.0.1:1", ("--node-url", "http://x"), "--node-url: public_url must be a base such as"),
        ("rubbish", (), "FREEIM_REDIS_URL: redis_url 'rubbish' is not usable"),
    ],
)
def test_what_no_node_takes_is_told_by_the_name_that_it_has_in_the_demo(
    variable: str, args: tuple[str, ...], sentence: str
) -> None:
    done = run_program(*program(variable), "--bind", "127.0.0.1:0", *args)
    assert done.returncode == 2
    assert done.stderr.startswith(f"python -m freeim.demo: {sentence}")
    assert len(done.stderr.splitlines()) == 1


def test_an_address_that_is_taken_is_told_before_a_node_starts(redis_server: RedisServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run_program(*program(redis_server.url), "--bind", address)
    assert done.returncode == 2
    assert done.stderr == (
        f"python -m freeim.demo: cannot listen on {address}: Address already in use; choose another --bind\n"
    )


@pytest.mark.parametrize("missing", [("starlette",), ("uvicorn", "itsdangerous")])
def test_what_is_not_installed_is_told_in_one_sentence(
    missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec

    def find_others(name: str, *args: Any) -> Any:
        return None if name in missing else find(name, *args)

    monkeypatch.setattr(importlib.util, "find_spec", find_others)
    assert command.main(["--no-node"]) == 2
    [sentence] = capsys.readouterr().err.splitlines()
    assert sentence == f'python -m freeim.demo: {" and ".join(missing)} is missing here: pip install "freeim[demo]"'


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--bind", "8000"), "must be HOST:PORT"),
        (("--node-bind", "x"), "must be HOST:PORT"),
        (("--max-upload", "0"), "must be a number of bytes"),
        (("--max-upload", "10M"), "must be a number of bytes"),
        (("--secret", "short"), "--secret: the secret needs at least 16 characters"),
    ],
)
def test_wrong_options_are_refused_with_exit_code_2(args: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    done = run_program(*program("redis://127.0.0.1:1"), *args)
    assert done.returncode == 2
    assert sentence in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("every", ["0.0.0.0", "[::]"])
def test_on_every_address_of_the_machine_the_browsers_get_one_that_others_reach(
    redis_server: RedisServer, every: str
) -> None:
    options = ("--bind", f"{every}:0", "--node-bind", f"{every}:{free_port()}")
    with Demo(*options, program=program(redis_server.url)) as demo:
        host = command.own_address()
        assert demo.page().startswith(f"http://{host}:")
        with Visitor(demo.page(), "Ana") as ana:
            assert ana.url.startswith(f"ws://{host}:")
            ana.hear("online", id=ana.id)
        assert httpx.get(demo.page(), trust_env=False).status_code == 200


def test_the_name_of_a_node_with_a_url_has_its_ipv6_address_in_brackets() -> None:
    options = node_options(("::1", 6001), "wss://im.example.com", "::1", {})
    assert (options.node, options.public_url) == ("[::1]:6001", "wss://im.example.com")
    assert node_options(("::1", 0), "wss://im.example.com", "::1", {}).node == "[::1]:{port}"


def test_only_an_app_on_the_loopback_asks_for_its_name() -> None:
    assert app_hosts("0.0.0.0", None) is None
    assert app_hosts("192.0.2.7", "wss://im.example.com") is None
    assert app_hosts("127.0.0.2", "wss://IM.example.com:444/n") == frozenset(
        ("127.0.0.1", "127.0.0.2", "::1", "localhost", "im.example.com")
    )
    assert app_hosts("localhost", "wss://[x") == frozenset(("127.0.0.1", "::1", "localhost"))


def test_a_node_that_runs_already_stays(redis_server: RedisServer) -> None:
    with both(redis_server) as first:
        first.page()
        [node] = first.children()
        with Demo("--no-node", "--bind", "127.0.0.1:0", program=program(redis_server.url)) as second:
            second.page()
            second.tell(signal.SIGINT)
            assert second.wait() == 0
        assert is_running(node)
