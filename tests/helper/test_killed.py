"""The app is killed in the middle of a call: between any two commands of it, and in the middle of each."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from freeim import AsyncImHelper, ImHelper
from freeim.names import Names
from tests.helper.buses import wait_for
from tests.helper.killing import KillingRedis
from tests.recording import RecordingRedis
from tests.servers import RedisServer, Subscriber

NAMES = Names("im_v2_ws")
NODES = ["a", "b"]
TOKEN_SECONDS = 10

State = tuple[dict[str, dict[str, str]], list[str]]
"""The hashes by name, and the token keys."""

CALLS: dict[str, Callable[[Any], Any]] = {
    "prev_connect_server": lambda helper: helper.prev_connect_server(1, "m"),
    "send_message": lambda helper: helper.send_message(0, [1, 2], "hi", report_offline=True),
    "send_chan_message": lambda helper: helper.send_chan_message(0, "room", "hi"),
    "send_broadcast_message": lambda helper: helper.send_broadcast_message("hi"),
    "force_offline": lambda helper: helper.force_offline(1),
    "join_chan": lambda helper: helper.join_chan(1, "x", "y", "z"),
    "leave_chan": lambda helper: helper.leave_chan(1, "room", "hall"),
    "leave_chan_clients": lambda helper: helper.leave_chan_clients("room", 1, 2),
    "clear_chan_client": lambda helper: helper.clear_chan_client("room"),
}


def fill(batch: Any) -> None:
    batch.join_chan(1, "x", "y")
    batch.send_chan_message(0, "x", "hi")
    batch.leave_chan(2, "room")
    batch.prev_connect_server(1)


def call_sync(url: str, name: str) -> None:
    with ImHelper(url) as helper:
        if name == "batch":
            with helper.batch() as batch:
                fill(batch)
        else:
            CALLS[name](helper)


def call_async(url: str, name: str) -> None:
    async def run() -> None:
        async with AsyncImHelper(url) as helper:
            if name == "batch":
                async with helper.batch() as batch:
                    fill(batch)
            else:
                await CALLS[name](helper)

    asyncio.run(run())


def set_up(server: RedisServer) -> None:
    """Two nodes have registered; client 1 is online and in two channels, client 2 offline and in one."""
    server.flush()
    server.command("SET", NAMES.nodes, json.dumps({"v": 1, "by": "mod", "nodes": NODES, "prev": None}))
    server.command("HSET", NAMES.online, 1, 1)
    with ImHelper(server.url) as helper:
        helper.join_chan(1, "room", "hall")
        helper.join_chan(2, "room")


def state(server: RedisServer) -> State:
    """Return all that is in Redis; whatever else there is than what the protocol names fails the test."""
    hashes, tokens = {}, []
    for key in (key.decode() for key in server.command("KEYS", "*")):
        if key.startswith(NAMES.token("")):
            tokens.append(key)
        elif key != NAMES.nodes:
            hashes[key] = server.hash(key)
    return hashes, tokens


def check_whole(server: RedisServer) -> None:
    """`Chan`, `Client` and `ListChan` agree, and each token ends by itself."""
    hashes, tokens = state(server)
    chan, client = NAMES.chan(""), NAMES.client("")
    channels = {key.removeprefix(chan): set(ids) for key, ids in hashes.items() if chan in key}
    clients = {key.removeprefix(client): set(names) for key, names in hashes.items() if client in key}
    assert {(c, channel) for channel, ids in channels.items() for c in ids} == {
        (c, channel) for c, names in clients.items() for channel in names
    }
    assert hashes.get(NAMES.list_chan, {}) == {channel: str(len(ids)) for channel, ids in channels.items()}
    assert len(hashes) == len(channels) + len(clients) + 1 + (NAMES.list_chan in hashes), "nothing else, but Online"
    for token in tokens:
        assert 0 < server.command("PTTL", token) <= TOKEN_SECONDS * 1000


def run_killed(server: RedisServer, commands: int, work: Callable[[str], None]) -> int:
    """Run `work` in a process that is killed after so many commands; return its exit code."""
    with KillingRedis(server, commands) as proxy:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads around
            process_id = os.fork()
        if process_id == 0:
            try:
                work(proxy.url)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        proxy.arm(process_id)
        return os.waitstatus_to_exitcode(os.waitpid(process_id, 0)[1])


@pytest.mark.parametrize("call", [call_sync, call_async])
@pytest.mark.parametrize("name", [*CALLS, "batch"])
def test_a_call_cut_short_leaves_a_whole_state_and_the_same_call_of_another_app_completes_it(
    call: Callable[[str, str], None], name: str, redis_server: RedisServer
) -> None:
    channels = [NAMES.server(node) for node in NODES]
    set_up(redis_server)
    before = state(redis_server)[0]
    with RecordingRedis(redis_server) as recorder, Subscriber(redis_server, *channels) as nodes:
        call(recorder.url, name)
        published = nodes.drain()
    commands = len(recorder.commands)
    after = state(redis_server)[0]
    steps = [before]  # what each single command makes of the state
    for cut in range(commands):
        set_up(redis_server)
        with Subscriber(redis_server, *channels) as nodes:
            assert run_killed(redis_server, cut, lambda url: call(url, name)) == -signal.SIGKILL
            # The server has read all of the dead app's connections when it has closed them.
            wait_for(lambda: redis_server.command("CLIENT", "LIST", "TYPE", "normal").count(b"id=") == 1)
            heard = nodes.drain()
        check_whole(redis_server)
        assert heard == published[: len(heard)], "the nodes got the first of the messages, whole"
        if (now := state(redis_server)[0]) != steps[-1]:
            steps.append(now)
        call(redis_server.url, name)
        assert state(redis_server)[0] == after
        check_whole(redis_server)
    if name != "batch":
        assert steps == [before], "a call changes what is kept in one step"


@pytest.mark.parametrize("cut", range(4))
def test_a_process_that_dies_while_it_takes_the_lease_of_a_group_keeps_nobody_out(
    cut: int, redis_server: RedisServer
) -> None:
    def work(url: str) -> None:
        with ImHelper(url, nodes=NODES) as helper, helper.event_bus(group="g"):
            time.sleep(20)  # it is killed long before

    assert run_killed(redis_server, cut, work) == -signal.SIGKILL
    assert redis_server.command("PTTL", NAMES.group("g")) <= 6000
    with ImHelper(redis_server.url, nodes=NODES) as helper, helper.event_bus(group="g") as bus:
        wait_for(lambda: bus.leading, 10.0)
