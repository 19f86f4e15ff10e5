"""`freeim.Node` inside of a program's own event loop: it serves, and it leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import stat
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import uvloop

from freeim.config import Options
from freeim.errors import ConfigError, RedisUnavailable
from freeim.helper import ImHelper
from freeim.node import Node
from tests.cli.command import Server
from tests.node.harness import (
    SECONDS,
    Raw,
    Running,
    bounded,
    channel_message,
    direct,
    event,
    head,
    refused,
    running,
    until,
)
from tests.servers import RedisServer, free_port

RunInLoop = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run_in_loop(request: pytest.FixtureRequest) -> RunInLoop:
    """Run a coroutine in a loop of a program's own; what goes wrong unseen in the loop fails the test."""

    def run_in_loop(work: Coroutine[Any, Any, None]) -> None:
        complaints: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.get_loop().set_exception_handler(lambda _, context: complaints.append(context))
            runner.run(work)
        assert complaints == []

    return run_in_loop


def open_sockets() -> set[tuple[int, int]]:
    """Return descriptor and inode of every socket of this process."""
    found = set()
    for descriptor in range(512):
        with contextlib.suppress(OSError):
            status = os.fstat(descriptor)
            if stat.S_ISSOCK(status.st_mode):
                found.add((descriptor, status.st_ino))
    return found


@contextlib.asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Show that the block leaves neither a task nor a socket behind."""
    tasks, sockets = asyncio.all_tasks(), open_sockets()
    yield
    await until(lambda: open_sockets() <= sockets, "the sockets are closed")
    await until(lambda: asyncio.all_tasks() <= tasks, "the tasks have ended")


def can_listen(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        probe.listen()
        return True
    return False


# ---- serving


def test_a_node_serves_beside_the_programs_own_tasks(redis_server: RedisServer, run_in_loop: RunInLoop) -> None:
    async def program() -> None:
        async with nothing_left():
            turns = 0

            async def work() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            async with running(redis_server) as run:
                working = asyncio.ensure_future(work())
                peers = [await run.connect(client) for client in (1, 2)]
                run.join(1, "room")
                run.publish(channel_message("room", "members"))
                run.publish(direct([2], "direct"))
                assert [await peer.fence() for peer in peers] == [['"members"'], ['"direct"']]
                before = turns
                await until(lambda: turns > before, "the program goes on")
                working.cancel()
            assert run.online == {}

    run_in_loop(program())


def test_two_nodes_of_one_list_serve_in_one_loop(redis_server: RedisServer, run_in_loop: RunInLoop) -> None:
    async def program() -> None:
        nodes = ("a", "b")
        with ImHelper(redis_server.unix_url, nodes=nodes) as helper:
            helper.get_chan_list()  # so that its connection is no socket of the node's
            async with (
                nothing_left(),
                running(redis_server, node="a", nodes=nodes) as a,
                running(redis_server, node="b", nodes=nodes) as b,
                a.events() as events,
            ):
                peers = [await a.connect(2), await b.connect(1)]
                helper.send_message(0, [1, 2], "both")
                assert [await peer.fence() for peer in peers] == [['"both"']] * 2
                await events.heard()
                await a.node.stop()
                assert await events.heard() == [(a.names.event_offline, event(2, 0))]
                assert await peers[1].fence() == [], "the other one is not disturbed"

    run_in_loop(program())


def test_two_deployments_in_one_loop_know_nothing_of_each_other(
    redis_server: RedisServer, run_in_loop: RunInLoop
) -> None:
    async def program() -> None:
        with ImHelper(redis_server.unix_url, path="/im") as helper:
            helper.get_chan_list()  # so that its connection is no socket of the node's
            async with (
                nothing_left(),
                running(redis_server) as first,
                running(redis_server, path="/im") as second,
            ):
                peers = [await first.connect(1), await second.connect(1)]
                helper.send_broadcast_message("second")
                assert [await peer.fence() for peer in peers] == [[], ['"second"']]
                token = first.token(2)
                assert (await second.http(second.request(token)))[0] == 401
                await first.node.stop()
                assert second.online == {"1": "1"}

    run_in_loop(program())


def test_a_node_can_be_made_before_there_is_a_loop(redis_server: RedisServer, run_in_loop: RunInLoop) -> None:
    node = Node(Options(bind="127.0.0.1:0", redis_url=redis_server.url))

    async def program() -> None:
        async with nothing_left(), node:
            assert node.port > 0
            assert node.name == f"127.0.0.1:{node.port}"
            assert node.nodes == (node.name,)
            assert node.url == f"ws://{node.name}/ws"

    run_in_loop(program())


# ---- a start that fails


def test_a_start_without_redis_leaves_nothing_behind(redis_server: RedisServer, run_in_loop: RunInLoop) -> None:
    async def program() -> None:
        port = free_port()
        async with nothing_left():
            node = Node(Options(bind=f"127.0.0.1:{port}", redis_url=f"redis://127.0.0.1:{free_port()}"))
            await refused(node, RedisUnavailable)
            assert can_listen(port)
            await bounded(node.stop())  # harmless
            async with running(redis_server, bind=f"127.0.0.1:{port}") as run:
                await run.connect(1)

    run_in_loop(program())


def test_a_start_that_redis_refuses_leaves_nothing_behind(redis_server: RedisServer, run_in_loop: RunInLoop) -> None:
    async def program() -> None:
        port = free_port()
        async with nothing_left():
            url = f"redis://nobody:wrong@127.0.0.1:{redis_server.port}"
            await refused(Node(Options(bind=f"127.0.0.1:{port}", redis_url=url)), RedisUnavailable, "WRONGPASS")
            assert can_listen(port)

    run_in_loop(program())


def test_a_start_that_is_cancelled_leaves_nothing_behind(own_redis_server: RedisServer, run_in_loop: RunInLoop) -> None:
    async def program() -> None:
        port = free_port()
        async with nothing_left():
            own_redis_server.pause()
            try:
                starting = asyncio.ensure_future(
                    Node(Options(bind=f"127.0.0.1:{port}", redis_url=own_redis_server.url)).start()
                )
                await until(lambda: not can_listen(port), "it listens")
                starting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asyncio.wait_for(starting, SECONDS)
                assert can_listen(port)
            finally:
                own_redis_server.resume()

    run_in_loop(program())


def test_a_start_on_a_port_that_is_taken_leaves_nothing_behind(
    redis_server: RedisServer, run_in_loop: RunInLoop
) -> None:
    async def program() -> None:
        async with nothing_left(), running(redis_server) as first:
            await first.heard_all()  # all of its tasks run
            async with nothing_left():
                second = Running(redis_server, bind=f"127.0.0.1:{first.node.port}", node="second")
                await refused(second.node, OSError, "in use")
            assert not any("second" in key for key in sorted(first.keys()))
            assert await (await first.connect(1)).fence() == []

    run_in_loop(program())


@pytest.mark.parametrize("options", [{"node": "n"}, {"node": "m"}, {"node": "m", "nodes": ("m", "n")}])
def test_a_start_that_is_refused_leaves_nothing_behind(
    redis_server: RedisServer, run_in_loop: RunInLoop, options: dict[str, Any]
) -> None:
    async def program() -> None:
        async with nothing_left(), running(redis_server, node="n") as first:
            await first.heard_all()  # all of its tasks run
            keys = first.keys()
            port = free_port()
            async with nothing_left():
                await refused(Running(redis_server, bind=f"127.0.0.1:{port}", **options).node, ConfigError)
            assert can_listen(port)
            assert first.keys() == keys
            names = first.names
            await until(lambda: redis_server.subscribers(names.server("n")) == 1)
            await until(lambda: redis_server.subscribers(names.server("m")) == 0)

    run_in_loop(program())


# ---- the end


@pytest.mark.parametrize("error", [RuntimeError("oops"), KeyboardInterrupt(), asyncio.CancelledError()])
def test_whatever_ends_the_body_ends_the_node_cleanly(
    redis_server: RedisServer, run_in_loop: RunInLoop, error: BaseException
) -> None:
    async def program() -> None:
        async with nothing_left():
            run = Running(redis_server)

            async def serve_and_fail() -> None:
                async with run.node:
                    run.peers = [await run.connect(client) for client in (1, 1, 2)]
                    run.join(1, "room")
                    raise error

            with pytest.raises(type(error)) as caught:
                await serve_and_fail()
            assert caught.value is error
            assert len(run.peers) == 3
            for peer in run.peers:
                assert await peer.ended() == (1012, "service restart")
            assert run.keys() == {run.names.nodes}

    run_in_loop(program())


def test_a_cancelled_task_stops_its_node_cleanly(redis_server: RedisServer, run_in_loop: RunInLoop) -> None:
    async def program() -> None:
        async with nothing_left():
            run = Running(redis_server)
            started = asyncio.Event()

            async def serve() -> None:
                async with run.node as node:
                    started.set()
                    await node.finished()

            serving = asyncio.ensure_future(serve())
            await bounded(started.wait())
            peer = await run.connect(1)
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(serving, SECONDS)
            assert await peer.ended() == (1012, "service restart")
            assert run.keys() == {run.names.nodes}

    run_in_loop(program())


def test_whoever_stops_waiting_for_the_end_does_not_end_the_node(
    redis_server: RedisServer, run_in_loop: RunInLoop
) -> None:
    async def program() -> None:
        async with nothing_left(), running(redis_server) as run:
            waiting = [asyncio.ensure_future(run.node.finished()) for _ in range(2)]
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(waiting[0], 0.01)
            assert not waiting[1].done()
            assert await (await run.connect(1)).fence() == []
            waiting[1].cancel()

    run_in_loop(program())


def test_a_node_can_be_started_again_on_its_address_at_once(redis_server: RedisServer, run_in_loop: RunInLoop) -> None:
    async def program() -> None:
        port = free_port()
        async with nothing_left():
            for _ in range(3):
                async with running(redis_server, bind=f"127.0.0.1:{port}") as run:
                    peer = await run.connect(1)
                    assert await peer.fence() == []

    run_in_loop(program())


def test_a_node_that_lost_redis_ends_without_a_task_that_goes_on_connecting(
    own_redis_server: RedisServer, run_in_loop: RunInLoop
) -> None:
    async def program() -> None:
        async with nothing_left():
            async with running(own_redis_server) as run:
                own_redis_server.stop()
                await until(lambda: not run.node._session.up)
            own_redis_server.start()

    run_in_loop(program())


# ---- descriptors

LIMIT = 120

FEW_DESCRIPTORS = (
    "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit})); "
    "import freeim.node.accept as accept; {change}; from freeim.cli import main; sys.exit(main())"
)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        # As it is: the node counts, and leaves some descriptors to others.
        ("pass", rf"(\d+) connections are open and the limit of {LIMIT} descriptors allows no more"),
        # It counts on more than there are; and tells how many it has got.
        (
            "accept.RESERVED_DESCRIPTORS = -1000; tell = accept.Acceptor._tell; "
            "accept.Acceptor._tell = lambda self, why: tell(self, f'{self.open} and {why}')",
            r"(\d+) and the system has no descriptor left \(Too many open files\)",
        ),
    ],
    ids=["by its own count", "by the system"],
)
async def test_connections_beyond_the_descriptors_wait_and_are_served_when_others_leave(
    redis_server: RedisServer, change: str, reason: str
) -> None:
    program = (sys.executable, "-P", "-c", FEW_DESCRIPTORS.format(limit=LIMIT, change=change))
    port = free_port()
    args = ("--bind", f"127.0.0.1:{port}", "--redis-url", redis_server.url)
    with (
        Server(*args, program=program) as server,
        ImHelper(redis_server.unix_url, token_ttl=60) as helper,
    ):
        assert f"({LIMIT} descriptors)" in server.banner()
        raws: list[Raw] = []
        answers: list[asyncio.Task[int]] = []

        async def open_one() -> None:
            raw = Raw(*await asyncio.open_connection("127.0.0.1", port))
            raws.append(raw)
            token = helper.prev_connect_server(len(raws)).partition("?token=")[2]
            raw.send(head(f"/ws?token={token}"))
            answers.append(asyncio.ensure_future(status_of(raw)))

        async def status_of(raw: Raw) -> int:
            start = await raw.reader.readuntil(b"\r\n\r\n")
            return int(start.split()[1])

        def online() -> int:
            return int(redis_server.command("HLEN", "im_v2_wsOnline"))

        try:
            for _ in range(LIMIT + 20):
                await open_one()
            server.logged("accepting is paused")
            served = int(re.findall(reason, server.stderr)[0])
            assert LIMIT // 2 < served < LIMIT
            await until(lambda: sum(answer.done() for answer in answers) == served, "those that fit are served")
            assert [answer.done() for answer in answers] == [True] * served + [False] * (len(answers) - served)
            assert online() == served

            # One that leaves makes room for the next one.
            raws[0].close()
            await until(lambda: answers[served].done(), "the next one")
            # As many leave as wait: then everybody is served.
            for raw in raws[1 : len(raws) - served]:
                raw.close()
            await until(lambda: all(answer.done() for answer in answers), "all have been served")
            assert {answer.result() for answer in answers} == {101}
            await until(lambda: online() == served, "those that left are out")
            assert server.stderr.count("accepting is paused") == 1
            assert "Traceback" not in server.stderr
        finally:
            for answer in answers:
                answer.cancel()
            await asyncio.gather(*answers, return_exceptions=True)
            for raw in raws:
                raw.close()
