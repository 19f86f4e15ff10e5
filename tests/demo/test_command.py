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
from tests.cli.command import is_running, run_program, wait_until_gone
from tests.demo.demo import Demo, Visitor, program
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
        assert demo.stderr.endswith(
            "python -m freeim.demo: the node (freeim-server) ended by SIGKILL; its log is above\n"
        )


def test_a_node_that_cannot_start_is_reported(redis_server: RedisServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run_program(*program(redis_server.url), "--bind", "127.0.0.1:0", "--node-bind", address)
    assert done.returncode == 2
    assert done.stdout == ""
    first, last = done.stderr.splitlines()
    assert f"cannot listen on {address}" in first
    assert last == "python -m freeim.demo: the node (freeim-server) ended with exit code 2; its log is above"


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


def test_on_every_address_of_the_machine_the_browsers_get_one_that_others_reach(redis_server: RedisServer) -> None:
    options = ("--bind", "0.0.0.0:0", "--node-bind", f"0.0.0.0:{free_port()}")
    with Demo(*options, program=program(redis_server.url)) as demo:
        host = command.own_address()
        assert demo.page().startswith(f"http://{host}:")
        with Visitor(demo.page(), "Ana") as ana:
            assert ana.url.startswith(f"ws://{host}:")
            ana.hear("online", id=ana.id)
        assert httpx.get(demo.page(), trust_env=False).status_code == 200


def test_a_node_that_runs_already_stays(redis_server: RedisServer) -> None:
    with both(redis_server) as first:
        first.page()
        [node] = first.children()
        with Demo("--no-node", "--bind", "127.0.0.1:0", program=program(redis_server.url)) as second:
            second.page()
            second.tell(signal.SIGINT)
            assert second.wait() == 0
        assert is_running(node)
