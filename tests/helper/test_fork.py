"""A helper that was made, and used, before a fork works on both sides of it."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
import traceback
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import pytest

from freeim import AsyncImHelper, ImHelper, Published
from tests.servers import RedisServer, Subscriber, free_port

NODE_A = "im_v2_wsServera"


def in_child(work: Any) -> None:
    """Run `work` in a forked child and fail if it raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: forking with threads around; that is the point here
        pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_after_a_fork_both_sides_have_connections_of_their_own(redis_server: RedisServer) -> None:
    helper = ImHelper(redis_server.url, nodes=["a"])
    with helper, Subscriber(redis_server, NODE_A):
        mine = helper._client.client_id()

        def work() -> None:
            for _ in range(100):
                assert helper.send_message(0, 1, "x") == Published(1, 1, ())
            assert helper._client.client_id() != mine

        in_child(work)
        for _ in range(100):
            assert helper.send_message(0, 1, "x") == Published(1, 1, ())
        assert helper._client.client_id() == mine, "the child closed nothing of ours"


def test_after_a_fork_the_old_bus_is_dead_in_the_child_and_a_new_one_works(redis_server: RedisServer) -> None:
    with ImHelper(redis_server.url, nodes=["a"]) as helper:
        bus = helper.event_bus()
        assert bus.wait_subscribed(5)

        def work() -> None:
            assert not bus.alive
            bus.stop(1)
            events: list[Any] = []
            with helper.event_bus(online=events.append) as mine:
                assert mine.wait_subscribed(5)
                helper._client.publish("evt_im_v2_wsOnline", '{"Item1":1,"Item2":null}')
                deadline = time.monotonic() + 5
                while not events:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)

        in_child(work)
        assert bus.alive
        assert bus.subscribed


def test_after_a_fork_an_async_helper_works(redis_server: RedisServer) -> None:
    helper = AsyncImHelper(redis_server.url, nodes=["a"])
    assert asyncio.run(helper.has_online(1)) is False

    def work() -> None:
        assert asyncio.run(helper.has_online(1)) is False

    in_child(work)
    assert asyncio.run(helper.has_online(1)) is False


_shared: ImHelper | None = None


def send_from_worker(number: int) -> tuple[int, Published]:
    assert _shared is not None
    return os.getpid(), _shared.send_message(0, number, number)


def test_a_pool_of_prefork_workers_shares_the_helper_of_its_parent(redis_server: RedisServer) -> None:
    """As Celery's prefork pool does it: the app module, with its helper, is loaded and used before the fork."""
    global _shared
    with ImHelper(redis_server.url, nodes=["a"]) as _shared, Subscriber(redis_server, NODE_A) as node:
        _shared.send_message(0, 1000, 1000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            with multiprocessing.get_context("fork").Pool(4) as pool:
                results = pool.map(send_from_worker, range(1, 401), chunksize=5)
        assert {published for _, published in results} == {Published(1, 1, ())}
        assert os.getpid() not in {pid for pid, _ in results}
        got = sorted(int(node.next()[1].split('"Item3":"')[1].split('"')[0]) for _ in range(401))
        assert got == sorted([1000, *range(1, 401)])


APP = """
    import os
    from freeim import ImHelper

    helper = ImHelper(os.environ["REDIS"], nodes=["a"])
    helper.join_chan(1, "loaded")
    loaded = os.getpid()

    def app(environ, start_response):
        published = helper.send_message(0, 1, {"pid": os.getpid()})
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"{os.getpid() != loaded} {published.heard}".encode()]
"""


def test_gunicorn_with_preload(redis_server: RedisServer, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(textwrap.dedent(APP), encoding="utf-8")
    port = free_port()
    root = Path(sys.modules["freeim"].__file__ or "").parent.parent
    log = tmp_path / "log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "shop:app", "--preload", "--workers", "3", "--threads", "4"),
                *("--bind", f"127.0.0.1:{port}"),
            ],
            cwd=tmp_path,
            env={**os.environ, "REDIS": redis_server.url, "PYTHONPATH": str(root), "HOME": str(tmp_path)},
            stdout=out,
            stderr=out,
        )
    try:
        with Subscriber(redis_server, NODE_A) as node:
            deadline = time.monotonic() + 30
            answers: list[bytes] = []
            while len(answers) < 60:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as response:
                        answers.append(response.read())
                except OSError:
                    if server.poll() is not None or time.monotonic() > deadline:
                        pytest.fail(log.read_text())
                    time.sleep(0.05)
            assert set(answers) == {b"True 1"}
            assert len([node.next() for _ in range(60)]) == 60
        assert redis_server.hash("im_v2_wsListChan") == {"loaded": "1"}
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)
