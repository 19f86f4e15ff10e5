"""The life of the embedded Redis: several users share one server, which ends with the last of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from freeim.embedded import watch
from freeim.embedded.join import join
from freeim.errors import RedisUnavailable
from tests.cli.command import environment
from tests.embedded.runtime import Runtime, User, until
from tests.servers import Wire

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


def test_a_server_that_crashes_is_started_again(runtime: Runtime) -> None:
    redis = join()
    try:
        crashed = runtime.server
        os.kill(crashed, signal.SIGKILL)
        until(lambda: watch.answers(str(runtime.socket)), "another one answers")
        again = runtime.server
        assert again != crashed
    finally:
        redis.close()
    runtime.assert_gone(again)


def test_a_server_whose_watcher_was_killed_gets_another_one_with_the_next_user(runtime: Runtime) -> None:
    first = join()
    server, [watcher] = runtime.server, runtime.watchers
    os.kill(watcher, signal.SIGKILL)
    until(lambda: not runtime.watchers, "the watcher is gone")
    second = join()
    assert runtime.server == server
    assert len(runtime.watchers) == 1
    first.close()
    assert watch.answers(str(runtime.socket))
    second.close()
    runtime.assert_gone(server)


def test_a_watcher_that_is_told_to_end_ends_its_server(runtime: Runtime) -> None:
    redis = join()
    server, [watcher] = runtime.server, runtime.watchers
    os.kill(watcher, signal.SIGTERM)
    runtime.assert_gone(server)
    redis.close()


def test_a_server_that_does_not_answer_is_told_in_time(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "START_SECONDS", 0.3)
    redis = join()
    server = runtime.server
    os.kill(server, signal.SIGSTOP)
    try:
        with pytest.raises(RedisUnavailable, match="does not answer"):
            join()
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
