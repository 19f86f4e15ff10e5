"""Wall clocks jump, back and forth: no lease, no presence and no take-over depends on them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.sync.client import connect

from freeim import ImHelper
from freeim.names import Names
from freeim.node.session import BEAT_INTERVAL
from tests.cli.command import MODULE, Server
from tests.clocks.wall_clock import WallClock
from tests.helper.buses import OFFLINE
from tests.helper.test_event_group_processes import Workers, check, check_frozen
from tests.servers import RedisServer, Subscriber, free_port, server_binary

pytestmark = [pytest.mark.clock, pytest.mark.slow, pytest.mark.timeout(180)]

DAY = 86_400
NAMES = Names("im_v2_ws")
NODE_LEASE_SECONDS = 3 * BEAT_INTERVAL


@pytest.fixture
def clock(tmp_path: Path) -> WallClock:
    return WallClock(tmp_path)


def test_the_clock_of_a_program_jumps_while_it_runs_and_what_counts_goes_on(clock: WallClock) -> None:
    program = "import time\nwhile input():\n print(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, **clock.environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for shift in (0, DAY, -DAY):
            clock.set(shift)
            process.stdin.write("tell\n")
            process.stdin.flush()
            wall, counted = map(float, process.stdout.readline().split())
            assert abs(wall - time.time() - shift) < 5
            assert abs(counted - time.clock_gettime(time.CLOCK_BOOTTIME)) < 5
        process.stdin.write("\n")


@pytest.fixture(params=["gunicorn", "asyncio"])
def workers(
    request: pytest.FixtureRequest, own_redis_server: RedisServer, tmp_path: Path, clock: WallClock
) -> Iterator[Workers]:
    found = Workers(own_redis_server, tmp_path, request.param, clock.environment)
    try:
        found.ready()
        yield found
    finally:
        found.close()
        print(found.log.read_text(encoding="utf-8"))


def test_a_group_whose_clocks_jump_keeps_its_leader_and_still_takes_over(workers: Workers, clock: WallClock) -> None:
    old = workers.leader()
    for shift in (DAY, -DAY):
        clock.set(shift)
        time.sleep(8)  # longer than the lease
        assert workers.leader() == old
    os.kill(old, signal.SIGKILL)
    assert workers.wait_for_another(old) < 10.0
    check(workers.finish(), workers.published)


def test_a_frozen_leader_whose_clock_goes_back_knows_all_the_same_that_its_lease_is_over(
    workers: Workers, clock: WallClock
) -> None:
    check_frozen(workers, lambda: clock.set(-DAY))


def test_a_node_whose_clock_jumps_keeps_its_lease_its_terminals_and_their_presence(
    own_redis_server: RedisServer, clock: WallClock
) -> None:
    bind = f"127.0.0.1:{free_port()}"
    program = (clock.program(MODULE[0]), *MODULE[1:])
    with (
        Server("--bind", bind, "--redis-url", own_redis_server.url, program=program) as node,
        ImHelper(own_redis_server.url) as helper,
        Subscriber(own_redis_server, OFFLINE) as offline,
    ):
        node.banner()
        with connect(helper.prev_connect_server(1)) as terminal:
            epoch = own_redis_server.command("GET", NAMES.lease(bind))
            for shift in (DAY, -DAY):
                clock.set(shift)
                time.sleep(NODE_LEASE_SECONDS + 1)  # whatever was counted by the wall clock would have run out
                assert own_redis_server.command("GET", NAMES.lease(bind)) == epoch
                assert helper.get_client_list_by_online() == [1]
                helper.send_message(0, 1, "still here")
                assert terminal.recv(5) == '"still here"'
                with connect(
                    helper.prev_connect_server(2)
                ):  # its token lives 10 s by Redis's clock, whatever ours says
                    pass
            assert "Redis lost" not in node.stderr
            assert {payload.split(",")[0] for _, payload in offline.drain()} == {'{"Item1":2'}


@pytest.fixture
def jumping_redis(clock: WallClock) -> Iterator[RedisServer]:
    with RedisServer(clock.program(server_binary())) as server:
        yield server


def test_when_redis_own_clock_jumps_nobody_is_offline_for_it(jumping_redis: RedisServer, clock: WallClock) -> None:
    bind = f"127.0.0.1:{free_port()}"
    with (
        Server("--bind", bind, "--redis-url", jumping_redis.url) as node,
        ImHelper(jumping_redis.url) as helper,
        Subscriber(jumping_redis, OFFLINE) as offline,
    ):
        node.banner()
        with connect(helper.prev_connect_server(1)) as terminal:
            for shift in (DAY, 0):
                clock.set(shift)
                time.sleep(2 * BEAT_INTERVAL)  # so the node has beaten since
                assert jumping_redis.command("EXISTS", NAMES.lease(bind)) == 1
                assert 0 < jumping_redis.command("PTTL", NAMES.lease(bind)) <= NODE_LEASE_SECONDS * 1000
                assert helper.get_client_list_by_online() == [1]
                helper.send_message(0, 1, "still here")
                assert terminal.recv(5) == '"still here"'
                with connect(helper.prev_connect_server(2)) as other:
                    helper.send_message(0, 2, "welcome")
                    assert other.recv(5) == '"welcome"'
            assert {payload.split(",")[0] for _, payload in offline.drain()} == {'{"Item1":2'}


def test_when_redis_own_clock_goes_back_a_dead_leader_is_not_waited_for(
    jumping_redis: RedisServer, tmp_path: Path, clock: WallClock
) -> None:
    workers = Workers(jumping_redis, tmp_path, "asyncio")
    try:
        workers.ready()
        old = workers.leader()
        os.kill(old, signal.SIGKILL)
        clock.set(-DAY)
        assert workers.wait_for_another(old) < 10.0
        check(workers.finish(), workers.published)
    finally:
        workers.close()


def test_when_redis_own_clock_goes_forward_a_group_goes_on_and_loses_nothing(
    jumping_redis: RedisServer, tmp_path: Path, clock: WallClock
) -> None:
    """Its lease has run out then: the leader or another takes it at the next beat."""
    workers = Workers(jumping_redis, tmp_path, "asyncio")
    try:
        workers.ready()
        clock.set(DAY)
        time.sleep(3)  # some beats, with events before and after the jump
        handled = workers.finish()
        assert {entry.client_id for entry in handled} == set(range(workers.published + 1))
        assert len({entry.process_id for entry in handled[-10:]}) == 1
    finally:
        workers.close()
