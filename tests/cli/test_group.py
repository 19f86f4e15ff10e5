"""``freeim-server --workers N``: one group that starts, restarts and stops together."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time

import pytest

from freeim.config import Options
from freeim.lifeline import pack
from freeim.supervisor import merge_banners, next_pause
from freeim.worker import unpack_banner
from tests.cli.command import Server, free_ports, is_running, run, run_program, wait_until_gone
from tests.node.scrape import Scrape, fetch
from tests.servers import RedisServer, free_port

WORKERS = 3


def group_args(server: RedisServer, *more: str, workers: int = WORKERS) -> tuple[int, list[str]]:
    port = free_ports(workers)
    return port, ["--bind", f"127.0.0.1:{port}", "--workers", str(workers), "--redis-url", server.url, *more]


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_all_workers_serve_on_consecutive_ports_under_one_banner(redis_server: RedisServer) -> None:
    port, args = group_args(redis_server)
    with Server(*args) as server:
        banner = server.banner()
        lines = banner.splitlines()
        assert len(lines) == len(set(lines))  # what all workers share is said once
        for worker in range(WORKERS):
            assert f"127.0.0.1:{port + worker}" in banner
            assert accepts(port + worker)
        assert len(set(server.worker_ids(WORKERS))) == WORKERS


def test_each_worker_has_its_own_metrics_at_its_own_port(redis_server: RedisServer) -> None:
    first = free_ports(2 * WORKERS)
    args = ["--bind", f"127.0.0.1:{first}", "--admin-bind", f"127.0.0.1:{first + WORKERS}"]
    with Server(*args, "--workers", str(WORKERS), "--redis-url", redis_server.url) as server:
        banner = server.banner()
        for worker in range(WORKERS):
            url = f"http://127.0.0.1:{first + WORKERS + worker}/metrics"
            assert f"  metrics      {url}\n" in banner
            page, _ = fetch(url)
            ((node, _version),) = Scrape(page.decode()).labelled("node_info")
            assert node == f"127.0.0.1:{first + worker}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_ends_all_with_exit_code_0(redis_server: RedisServer, number: signal.Signals) -> None:
    _, args = group_args(redis_server)
    with Server(*args) as server:
        workers = server.worker_ids(WORKERS)
        server.tell(number)
        assert server.wait() == 0
        wait_until_gone(workers, 0.5)
        assert "killing" not in server.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_process_group_ends_all_once(redis_server: RedisServer, number: signal.Signals) -> None:
    _, args = group_args(redis_server)
    with Server(*args) as server:
        workers = server.worker_ids(WORKERS)
        server.tell_group(number)
        assert server.wait() == 0
        wait_until_gone(workers, 0.5)
        assert "Traceback" not in server.stderr
        assert server.stderr.count("stopping: SIGTERM") == WORKERS
        assert "starting it again" not in server.stderr


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.2, 0.3, 0.4, 0.6])
def test_ctrl_c_while_the_workers_start_ends_all_quietly(redis_server: RedisServer, delay: float) -> None:
    _, args = group_args(redis_server)
    with Server(*args) as server:
        server.logged("starting 3 workers")
        time.sleep(delay)  # at several moments of the start: what goes on in it does not show from outside
        server.tell_group(signal.SIGINT)
        assert server.wait() == 0
        assert "Traceback" not in server.stderr
        assert "KeyboardInterrupt" not in server.stderr


def test_a_second_ctrl_c_kills_all_with_exit_code_130(own_redis_server: RedisServer) -> None:
    _, args = group_args(own_redis_server)
    with Server(*args) as server:
        workers = server.worker_ids(WORKERS)
        own_redis_server.pause()  # so that saying goodbye takes its time
        server.tell_group(signal.SIGINT)
        server.logged("stopping: Ctrl-C")
        server.tell_group(signal.SIGINT)
        assert server.wait(2) == 130
        wait_until_gone(workers, 2)


def test_a_crashed_worker_is_started_again_and_the_others_stay(redis_server: RedisServer) -> None:
    port, args = group_args(redis_server)
    with Server(*args) as server:
        before = server.worker_ids(WORKERS)
        banner = server.banner()
        os.kill(before[1], signal.SIGKILL)
        after = server.worker_ids(WORKERS + 1)
        assert after[0] == before[0]
        assert after[1] != before[1]
        assert after[2] == before[2]
        assert accepts(port + 1)
        said = server.logged(r"error worker .*")
        assert said == [f"error worker 1 (127.0.0.1:{port + 1}) was killed by SIGKILL; starting it again in 0.5 s"]
        server.tell(signal.SIGTERM)
        assert server.wait() == 0
        assert server.stdout == banner  # said once, not again for a restart


def test_a_worker_that_cannot_start_ends_the_group_with_its_exit_code(redis_server: RedisServer) -> None:
    port, args = group_args(redis_server)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port + 2))
        taken.listen()
        done = run(*args)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port + 2}" in done.stderr
    assert "starting it again" not in done.stderr
    assert not accepts(port)


def test_a_redis_that_cannot_be_reached_at_the_start_is_exit_code_3() -> None:
    port = free_ports(2)
    url = f"redis://127.0.0.1:{free_port()}"
    done = run("--bind", f"127.0.0.1:{port}", "--workers", "2", "--redis-url", url)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr


def test_a_worker_whose_name_is_taken_over_ends_the_group_with_exit_code_4(redis_server: RedisServer) -> None:
    port, args = group_args(redis_server)
    nodes = ",".join(f"127.0.0.1:{port + worker}" for worker in range(WORKERS))
    with Server(*args) as server:
        workers = server.worker_ids(WORKERS)
        other = ["--bind", f"127.0.0.1:{free_port()}", "--redis-url", redis_server.url, "--takeover"]
        with Server(*other, "--node", f"127.0.0.1:{port + 1}", "--nodes", nodes) as thief:
            thief.banner()
            assert server.wait() == 4
            wait_until_gone(workers, 0.5)


def test_the_workers_end_when_the_supervisor_is_killed(redis_server: RedisServer) -> None:
    _, args = group_args(redis_server)
    with Server(*args) as server:
        workers = server.worker_ids(WORKERS)
        server.tell(signal.SIGKILL)
        server.wait()
        wait_until_gone(workers)
        assert server.stderr.count("stopping: the process that started this worker is gone") == WORKERS
        assert "Traceback" not in server.stderr


def test_a_worker_that_does_not_stop_is_killed_within_a_bounded_time(redis_server: RedisServer) -> None:
    code = "import sys, freeim.supervisor as s; s.KILL_SECONDS = 1.0; from freeim.cli import main; sys.exit(main())"
    _, args = group_args(redis_server)
    with Server(*args, program=(sys.executable, "-c", code)) as server:
        workers = server.worker_ids(WORKERS)
        os.kill(workers[0], signal.SIGSTOP)
        server.tell(signal.SIGTERM)
        assert server.wait(10) == 0
        assert not any(is_running(worker) for worker in workers)
        server.logged("1 of 3 workers did not stop in time")


def test_a_file_in_the_current_folder_shadows_no_module_of_a_worker(redis_server: RedisServer) -> None:
    _, args = group_args(redis_server, workers=2)
    with Server(*args) as server:
        (server.folder / "json.py").write_text("raise SystemExit('shadowed')", encoding="utf-8")
        (first, _) = server.worker_ids(2)
        os.kill(first, signal.SIGKILL)
        server.worker_ids(3)
        assert "shadowed" not in server.stderr


def test_the_workers_search_packages_where_the_supervisor_does(redis_server: RedisServer) -> None:
    code = (
        "import json, sys; from freeim.cli import main; sys.path.insert(0, 'mine')\n"
        "import os; os.mkdir('mine'); open('mine/json.py', 'w').write('raise SystemExit(7)'); sys.exit(main())"
    )
    _, args = group_args(redis_server, workers=2)
    with Server(*args, program=(sys.executable, "-P", "-c", code)) as server:
        server.logged("ended with exit code 7; starting it again", 2)


@pytest.mark.parametrize("text", ["", '{"bind": '])
def test_a_worker_whose_supervisor_is_gone_before_it_told_the_options_ends_at_once(text: str) -> None:
    done = run_program(sys.executable, "-m", "freeim.worker", stdin=text)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_a_worker_prints_does_not_get_into_its_banner() -> None:
    code = (
        "import asyncio, sys, freeim.node, freeim.worker\n"
        "class Node:\n"
        "    def __init__(self, options): self.options = options; print('made', options.node, flush=True)\n"
        "    async def start(self): pass\n"
        "    async def stop(self): print('stopped', flush=True)\n"
        "    async def finished(self): await asyncio.Event().wait()\n"
        "    def banner(self): return 'line 1\\nline 2'\n"
        "freeim.node.Node = Node; sys.exit(freeim.worker.main())"
    )
    done = run_program(sys.executable, "-c", code, stdin=pack(Options(nodes=("n",), node="n")).decode())
    assert done.returncode == 0
    assert unpack_banner(done.stdout.encode()) == "line 1\nline 2"
    assert "made n" in done.stderr
    assert done.stderr.endswith("stopped\n")


def test_the_pause_before_a_restart_doubles_up_to_30_seconds_and_a_steady_minute_resets_it() -> None:
    pauses = [0.0]
    for _ in range(8):
        pauses.append(next_pause(pauses[-1], 59.9))
    assert pauses[1:] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert next_pause(30, 60) == 0.5


def test_banners_merge_line_by_line_and_lines_in_common_are_said_once() -> None:
    assert merge_banners(["v1\nnode a\nredis", "v1\nnode b\nredis"]) == "v1\nnode a\nnode b\nredis"
    assert merge_banners(["v1\nnode a", "v1\nnode b\nwarning"]) == "v1\nnode a\nv1\nnode b\nwarning"
