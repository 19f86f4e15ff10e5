"""The life of the embedded Redis: several users share one server, which ends with the last of them."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from freeim.embedded import watch
from freeim.embedded.join import EmbeddedRedis, join, join_in_thread
from freeim.errors import ConfigError, RedisUnavailable
from tests.cli.command import environment
from tests.embedded.runtime import Runtime, User, until
from tests.servers import Wire

Joined = Callable[[], EmbeddedRedis]


@pytest.fixture
def joined(runtime: Runtime) -> Iterator[Joined]:
    """Join, and leave at the end of the test in any case."""
    with contextlib.ExitStack() as stack:

        def join_once() -> EmbeddedRedis:
            redis = join()
            stack.callback(redis.close)
            return redis

        yield join_once


CROWD = """
import sys
from freeim.embedded.join import join
from tests.servers import Wire
for turn in range(int(sys.argv[1])):
    redis = join()
    with Wire(redis.url.removeprefix("unix://")) as wire:
        assert wire("PING") == b"PONG"
    redis.close()
"""


def test_six_that_start_together_share_one_server_which_ends_with_the_last(runtime: Runtime) -> None:
    users = [User() for _ in range(6)]
    try:
        assert {user.joined() for user in users} == {f"unix://{runtime.socket}"}
        server = runtime.server
        assert len(runtime.watchers) == 1
        for user in users[:-1]:
            user.leave()
            assert runtime.server == server
        users[-1].leave()
        runtime.assert_gone(server)
    finally:
        for user in users:
            user.__exit__()


def test_a_killed_first_user_is_not_noticed_by_the_second_and_a_killed_last_leaves_nothing(runtime: Runtime) -> None:
    with User() as first, User() as second:
        first.joined()
        second.joined()
        with runtime.wire() as wire:
            wire("SET", "key", "value")
            server = runtime.server
            first.kill()
            time.sleep(0.3)  # longer than the watcher needs to end a server
            assert wire("GET", "key") == b"value"
            assert runtime.server == server
        second.kill()
        runtime.assert_gone(server)


def test_nothing_listens_on_tcp_and_the_settings_fit_a_node(runtime: Runtime) -> None:
    redis = join()
    try:
        process = Path(f"/proc/{runtime.server}")
        if process.exists():  # Linux
            open_files = {os.readlink(entry) for entry in (process / "fd").iterdir()}
            sockets = [
                line.split()[9]
                for name in ("tcp", "tcp6")
                for line in (process / "net" / name).read_text().splitlines()
            ]
            assert not [inode for inode in sockets if f"socket:[{inode}]" in open_files]
        with runtime.wire() as wire:
            for name, value in {
                "port": b"0",
                "save": b"",
                "appendonly": b"no",
                "maxmemory-policy": b"noeviction",
                "tracking-table-max-keys": b"0",
            }.items():
                assert wire("CONFIG", "GET", name)[1] == value, name
            assert b"pubsub 268435456 134217728 30" in wire("CONFIG", "GET", "client-output-buffer-limit")[1]
        assert runtime.folder.stat().st_mode & 0o777 == 0o700
    finally:
        redis.close()
    runtime.assert_gone()


def test_who_joins_and_leaves_all_the_time_never_meets_a_server_that_ends(runtime: Runtime) -> None:
    program = [sys.executable, "-c", CROWD, "15"]
    env = environment() | {"PYTHONPATH": os.pathsep.join(sys.path)}
    crowd = [subprocess.Popen(program, env=env, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in crowd:
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == 0
    runtime.assert_gone()


def test_a_server_that_crashes_is_started_again(runtime: Runtime, joined: Joined) -> None:
    redis = joined()
    crashed = runtime.server
    os.kill(crashed, signal.SIGKILL)
    until(lambda: watch.answers(str(runtime.socket)), "another one answers")
    again = runtime.server
    assert again != crashed
    redis.close()
    runtime.assert_gone(again)


def test_a_server_whose_connections_are_cut_stays(runtime: Runtime, joined: Joined) -> None:
    redis = joined()
    server = runtime.server
    for _ in range(3):
        runtime.command("CLIENT", "KILL", "TYPE", "normal")
        time.sleep(watch.RESTART_SECONDS + 0.2)  # as long as a new one would take to be started
        assert runtime.server == server
    redis.close()
    runtime.assert_gone(server)


def test_a_server_whose_watcher_was_killed_gets_another_one_with_the_next_user(
    runtime: Runtime, joined: Joined
) -> None:
    first = joined()
    server, [watcher] = runtime.server, runtime.watchers
    os.kill(watcher, signal.SIGKILL)
    until(lambda: not runtime.watchers, "the watcher is gone")
    second = joined()
    assert runtime.server == server
    assert len(runtime.watchers) == 1
    os.kill(server, signal.SIGKILL)
    until(lambda: watch.answers(str(runtime.socket)), "the new watcher starts it again")
    server = runtime.server
    first.close()
    assert watch.answers(str(runtime.socket))
    second.close()
    runtime.assert_gone(server)


def test_a_last_user_whose_watcher_was_killed_leaves_nothing_behind(runtime: Runtime, joined: Joined) -> None:
    redis = joined()
    server, [watcher] = runtime.server, runtime.watchers
    os.kill(watcher, signal.SIGKILL)
    until(lambda: not runtime.watchers, "the watcher is gone")
    redis.close()
    runtime.assert_gone(server)


def test_a_watcher_that_is_told_to_end_ends_its_server(runtime: Runtime, joined: Joined) -> None:
    redis = joined()
    server, [watcher] = runtime.server, runtime.watchers
    os.kill(watcher, signal.SIGTERM)
    runtime.assert_gone(server)
    assert not redis.intact


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.02, 0.05])
def test_a_starter_that_is_killed_in_the_middle_is_no_obstacle_for_the_next(
    runtime: Runtime, joined: Joined, delay: float
) -> None:
    with User() as starter:
        until(lambda: runtime.watchers, "its watcher comes up")
        time.sleep(delay)  # at several moments of the start: what goes on in it does not show from outside
        starter.kill()
        began = time.monotonic()
        redis = joined()
        assert time.monotonic() - began < watch.START_SECONDS
    until(lambda: len(runtime.watchers) == 1, "one watcher")
    assert watch.answers(str(runtime.socket))
    redis.close()
    runtime.assert_gone()


def test_lock_files_that_somebody_cleaned_away_end_no_server_under_its_users_for_good(
    runtime: Runtime, joined: Joined
) -> None:
    first = joined()
    for name in watch.LOCKS:
        (runtime.folder / name).unlink()
    assert not first.intact
    second = joined()  # as a node does that has noticed
    first.close()
    until(lambda: len(runtime.watchers) == 1, "the former watcher has gone")
    until(lambda: watch.answers(str(runtime.socket)), "the server is back")
    assert second.intact
    second.close()
    runtime.assert_gone()


def test_a_forked_child_does_not_keep_the_server(runtime: Runtime) -> None:
    program = (
        "import os, sys\n"
        "from freeim.embedded.join import join\n"
        "redis = join()\n"
        "if os.fork() == 0:\n    sys.stdin.read(); os._exit(0)\n"
        "redis.close(); print('closed', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    with subprocess.Popen(command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"closed\n"
            runtime.assert_gone()
        finally:
            process.communicate()


def test_nothing_is_kept_on_disk_whatever_a_client_asks_for(runtime: Runtime, joined: Joined) -> None:
    redis = joined()
    assert runtime.command("SET", "key", "value") == b"OK"
    assert runtime.command("SAVE") == b"OK"
    redis.close()
    runtime.assert_gone()
    joined()
    assert runtime.command("GET", "key") is None


def test_a_python_that_is_gone_is_told(runtime: Runtime, joined: Joined, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ConfigError, match="its watcher cannot be run: /nowhere/python: No such file"):
        joined()
    monkeypatch.undo()
    assert not runtime.folder.exists()


async def test_joining_that_takes_long_holds_up_neither_the_loop_nor_the_end(runtime: Runtime) -> None:
    runtime.folder.mkdir(0o700)
    with (runtime.folder / watch.START_LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        joining = asyncio.ensure_future(join_in_thread())
        await asyncio.sleep(0.1)
        joining.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await joining
        assert time.monotonic() - began < 1
    # The thread gets through now, and what it brings is closed.
    await asyncio.to_thread(runtime.assert_gone)


def test_a_server_that_does_not_answer_is_told_in_time(
    runtime: Runtime, joined: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis = joined()
    monkeypatch.setattr(watch, "START_SECONDS", 0.3)
    [watcher] = runtime.watchers
    server = runtime.server
    os.kill(server, signal.SIGSTOP)
    try:
        with pytest.raises(RedisUnavailable, match=rf"does not answer; end its watcher \(process {watcher}\)"):
            joined()
    finally:
        os.kill(server, signal.SIGCONT)
    with Wire(str(runtime.socket)) as wire:
        assert wire("PING") == b"PONG", "it was left alone"
    redis.close()
    runtime.assert_gone(server)


def test_what_a_crash_of_the_machine_left_behind_is_no_obstacle(runtime: Runtime) -> None:
    runtime.folder.mkdir(0o700)
    for name in (watch.USERS_LOCK, watch.START_LOCK, watch.WATCH_LOCK, watch.LOG):
        (runtime.folder / name).touch()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(runtime.socket))
    redis = join()
    assert watch.answers(str(runtime.socket))
    redis.close()
    runtime.assert_gone()


def test_a_user_hands_its_share_to_no_program_that_it_starts(runtime: Runtime) -> None:
    redis = join()
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    redis.close()
    runtime.assert_gone()
    child.communicate()
