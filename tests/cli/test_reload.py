"""SIGHUP: the options are read again, nobody is disconnected; and the end of a terminal, which sends it too."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import ClientConnection, connect

from freeim import ImHelper
from freeim.config import Options
from freeim.lifeline import REFUSED, Lifeline, pack, unpack
from tests.certificates import Certificates
from tests.cli.command import MODULE, Server, environment, free_ports, wait_until_gone
from tests.node.scrape import Scrape, fetch
from tests.servers import RedisServer, free_port

RELOADED = r"reloaded, changed: .*"


class Deployment:
    """A file of options, and the server that reads it."""

    def __init__(self, redis: RedisServer, folder: Path, workers: int = 1) -> None:
        self.file = folder / "node.toml"
        self.workers = workers
        first = free_ports(2 * workers)
        self.ports = range(first, first + workers)
        self.admin_ports = range(first + workers, first + 2 * workers)
        self.fixed = f"bind = '127.0.0.1:{first}'\nadmin_bind = '127.0.0.1:{first + workers}'\n"
        self.fixed += f"redis_url = '{redis.url}'\nworkers = {workers}\n"
        self.args = ("--config", str(self.file))
        self.write("")

    def write(self, text: str) -> None:
        """Write these options beside those that stay."""
        self.file.write_text(self.fixed + text)

    def scrape(self, worker: int = 0) -> Scrape:
        return Scrape(fetch(f"http://127.0.0.1:{self.admin_ports[worker]}/metrics")[0].decode())


@pytest.fixture
def deployment(redis_server: RedisServer, tmp_path: Path) -> Deployment:
    return Deployment(redis_server, tmp_path)


@pytest.fixture
def group(redis_server: RedisServer, tmp_path: Path) -> Deployment:
    return Deployment(redis_server, tmp_path, workers=2)


@contextlib.contextmanager
def terminal_of(helper: ImHelper, client: int, **options: Any) -> Iterator[ClientConnection]:
    with connect(helper.prev_connect_server(client), proxy=None, **options) as connection:
        yield connection


def still_served(helper: ImHelper, client: int, connection: ClientConnection) -> None:
    helper.send_message(0, client, "still here")
    assert connection.recv(timeout=10) == '"still here"'


def shown(port: int, certificates: Certificates) -> bytes:
    """Return the certificate that a new connection is shown."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
        certificates.trust.wrap_socket(raw, server_hostname="localhost") as secure,
    ):
        return secure.getpeercert(binary_form=True) or b""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_renewed_certificate_is_shown_after_sighup_and_connections_stand(
    redis_server: RedisServer, tmp_path: Path, workers: int
) -> None:
    certificates, deployment = Certificates(tmp_path), Deployment(redis_server, tmp_path, workers)
    deployment.write(f"tls_cert = '{certificates.cert}'\ntls_key = '{certificates.key}'")
    with Server(*deployment.args) as server, ImHelper(redis_server.url) as helper:
        server.banner()
        with (
            terminal_of(helper, 2, ssl=certificates.trust) as even,
            terminal_of(helper, 3, ssl=certificates.trust) as odd,
        ):
            before = [shown(port, certificates) for port in deployment.ports]
            certificates.renew()
            server.reload()
            assert server.logged(RELOADED, workers) == ["reloaded, changed: --tls-cert, --tls-key"] * workers
            renewed = ssl.PEM_cert_to_DER_cert(certificates.cert.read_text())
            assert [shown(port, certificates) for port in deployment.ports] == [renewed] * workers
            assert renewed not in before
            still_served(helper, 2, even)
            still_served(helper, 3, odd)
            certificates.key.write_text("no key")
            server.reload()
            (error,) = server.logged("error (.*)")
            assert "must be PEM files, the certificate with its chain, and the key must belong to it" in error
            assert [shown(port, certificates) for port in deployment.ports] == [renewed] * workers
            still_served(helper, 2, even)
        server.tell(signal.SIGTERM)
        assert server.wait() == 0


MISTAKES = {
    "originz = ['https://a']": "unknown key 'originz'; did you mean origins?",
    "queue_limit = 0": "queue_limit must be a whole number of bytes from 1",
    "queue_limit": "is not valid TOML",
    "tls_key = '/nowhere'": "tls_key is given but no tls_cert",
    "tls_cert = '/nowhere'": "tls_cert '/nowhere' cannot be read: No such file",
    "redis_password_file = '/nowhere'": "redis_password_file '/nowhere' cannot be read",
}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_mistake_changes_nothing_and_is_one_line_that_says_what_to_mend(
    redis_server: RedisServer, tmp_path: Path, workers: int
) -> None:
    deployment = Deployment(redis_server, tmp_path, workers)
    with Server(*deployment.args) as server, ImHelper(redis_server.url) as helper:
        server.banner()
        with terminal_of(helper, 2) as connection:
            for number, (mistake, said) in enumerate(MISTAKES.items(), 1):
                deployment.write(f"log_format = 'json'\nbus_queue_limit = 5\nmax_connections = 1\n{mistake}")
                server.reload()
                lines = server.logged(r"error not reloaded, and nothing has changed: (.*)\n", number)
                assert len(lines) == number
                assert said in lines[-1]
            deployment.file.unlink()
            server.reload()
            lines = server.logged(r"error (.*)\n", len(MISTAKES) + 1)
            assert "cannot be read: No such file or directory" in lines[-1]
            deployment.write("bus_queue_limit = 7")
            server.reload()
            assert server.logged(RELOADED, workers) == ["reloaded, changed: --bus-queue-limit"] * workers
            for worker in range(workers):
                found = deployment.scrape(worker)
                assert found("bus_queue_limit_bytes") == 7
                assert found.labelled("reloads_total") == {("error",): len(MISTAKES) + 1, ("ok",): 1}
            still_served(helper, 2, connection)


def test_what_needs_a_restart_is_named_in_one_line_at_each_reload_and_stays_as_it_was(
    redis_server: RedisServer, group: Deployment
) -> None:
    with Server(*group.args) as server:
        server.banner()
        other = (
            f"bind = '127.0.0.1:{free_port()}'\nredis_url = 'redis://:s3cret@other'\nadmin_bind = 'off'\nworkers = 3\n"
        )
        group.fixed = other + "path = '/other'\n"
        for count in (1, 2):
            group.write(f"bus_queue_limit = {count}")
            server.reload()
            server.logged(RELOADED, 2 * count)
            lines = server.logged(r"warn  (.*)\n", count)
            assert (
                lines
                == [
                    "needs a restart: --bind, --admin-bind, --redis-url, --path, --workers; until then the old "
                    "values are in force"
                ]
                * count
            )
        assert [group.scrape(worker)("bus_queue_limit_bytes") for worker in (0, 1)] == [2, 2]
        assert "s3cret" not in server.stderr


def test_a_password_is_in_no_line(own_redis_server: RedisServer, tmp_path: Path) -> None:
    password = tmp_path / "password"
    own_redis_server.command("ACL", "SETUSER", "node", "on", ">s3cret", ">zebra", "~*", "&*", "+@all")
    deployment = Deployment(own_redis_server, tmp_path)
    deployment.fixed = deployment.fixed.replace("redis://", "redis://node@")
    deployment.write(f"redis_password_file = '{password}'\nlog_level = 'debug'")
    password.write_text("s3cret")
    with Server(*deployment.args) as server:
        server.banner()
        password.write_text("zebra")
        server.reload()
        assert server.logged(RELOADED) == ["reloaded, changed: --redis-password-file"]
        assert server.stderr.count("s3cret") + server.stderr.count("zebra") == 0


def test_the_command_line_and_the_environment_still_win_over_the_file(deployment: Deployment) -> None:
    with Server(*deployment.args, "--bus-queue-limit", "3") as server:
        server.banner()
        deployment.write("bus_queue_limit = 5\nnode_queue_limit = 6")
        server.reload()
        assert server.logged(RELOADED) == ["reloaded, changed: --node-queue-limit"]
        assert deployment.scrape()("bus_queue_limit_bytes") == 3


def test_a_reload_without_a_change_says_so(deployment: Deployment) -> None:
    with Server(*deployment.args) as server:
        server.banner()
        server.reload()
        assert server.logged(RELOADED) == ["reloaded, changed: nothing"]


def test_a_drain_that_was_reloaded_is_kept_by_the_node_and_by_the_supervisor(
    redis_server: RedisServer, group: Deployment
) -> None:
    program = (
        *MODULE[:2],
        "-c",
        "import freeim.supervisor as s; s.KILL_SECONDS = 0.5; import freeim.cli; freeim.cli.main()",
    )
    with Server(*group.args, program=program) as server, ImHelper(redis_server.url) as helper:
        server.banner()
        with terminal_of(helper, 2) as first, terminal_of(helper, 4):
            group.write("drain = 2")
            server.reload()
            server.logged(RELOADED, 2)
            begun = time.monotonic()
            server.tell(signal.SIGTERM)
            with pytest.raises(ConnectionClosedError, match="1012"):
                first.recv(timeout=10)
            assert server.wait() == 0
            assert time.monotonic() - begun >= 2
            assert "killing" not in server.stderr


def test_a_worker_that_starts_later_has_what_was_reloaded(redis_server: RedisServer, group: Deployment) -> None:
    with Server(*group.args) as server:
        before = server.worker_ids(2)
        server.banner()
        group.write("bus_queue_limit = 5\nlog_format = 'json'")
        server.reload()
        server.logged(RELOADED, 2)
        os.kill(before[1], signal.SIGKILL)
        server.logged(r"worker 1 .* serves as process", 2)
        assert [group.scrape(worker)("bus_queue_limit_bytes") for worker in (0, 1)] == [5, 5]
        assert group.scrape(1).labelled("reloads_total") == {}
        assert server.worker_ids(2)[0] == before[0]


# Starting takes a second longer, until the supervisor knows the process.
SLOW_START = """
import asyncio, sys
import freeim.supervisor as supervisor
from freeim.cli import main

start = supervisor.start

async def slowly(*args, **more):
    process = await start(*args, **more)
    await asyncio.sleep(1)
    return process

supervisor.start = slowly
sys.exit(main())
"""


@pytest.mark.parametrize("program", [MODULE, (*MODULE[:2], "-c", SLOW_START)], ids=["as it is", "slowly"])
def test_a_worker_that_starts_while_options_are_reloaded_has_them(
    redis_server: RedisServer, group: Deployment, program: tuple[str, ...]
) -> None:
    with Server(*group.args, program=program) as server:
        server.logged("starting 2 workers")
        group.write("bus_queue_limit = 5")
        for _ in range(10):
            server.tell_group(signal.SIGHUP)
            time.sleep(0.05)  # at several moments of the start: what goes on in it does not show from outside
        server.banner()
        assert "starting it again" not in server.stderr
        deadline = time.monotonic() + 10
        while [group.scrape(worker)("bus_queue_limit_bytes") for worker in (0, 1)] != [5, 5]:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_sighup_to_the_whole_process_group_reloads_each_worker_once(
    redis_server: RedisServer, group: Deployment
) -> None:
    with Server(*group.args) as server:
        workers = server.worker_ids(2)
        server.banner()
        server.tell_group(signal.SIGHUP)
        server.logged(RELOADED, 2)
        assert [group.scrape(worker).labelled("reloads_total") for worker in (0, 1)] == [{("ok",): 1}] * 2
        assert server.worker_ids(2) == workers


def test_a_node_that_is_still_starting_reloads_once_it_serves(own_redis_server: RedisServer, tmp_path: Path) -> None:
    deployment = Deployment(own_redis_server, tmp_path)
    own_redis_server.pause()
    with Server(*deployment.args, "--log-level", "debug") as server:
        server.logged("starting the node")
        deployment.write("bus_queue_limit = 5")
        server.reload()
        own_redis_server.resume()
        server.banner()
        server.logged(RELOADED)
        assert deployment.scrape()("bus_queue_limit_bytes") == 5


def test_a_defect_in_a_reload_is_a_traceback_in_the_log_and_the_node_goes_on(deployment: Deployment) -> None:
    change = "import freeim.node; freeim.node.Node.reload = lambda *_: 1 / 0; import freeim.cli; freeim.cli.main()"
    with Server(*deployment.args, program=(*MODULE[:2], "-c", change)) as server:
        server.banner()
        for count in (1, 2):
            server.reload()
            server.logged("not reloaded because of a defect", count)
            assert deployment.scrape().labelled("reloads_total") == {("error",): count}


# ---- the end of a terminal


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_reloads_while_its_terminal_is_there_and_ends_with_it(
    redis_server: RedisServer, tmp_path: Path, workers: int
) -> None:
    deployment = Deployment(redis_server, tmp_path, workers)
    leader, terminal = pty.openpty()
    try:
        with Server(*deployment.args, terminal=terminal) as server:
            os.close(terminal)
            server.banner()
            for count in (1, 2):
                server.reload()
                server.logged(RELOADED, workers * count)
            ids = server.worker_ids(workers) if workers > 1 else []
            os.close(leader)  # the kernel tells the session: SIGHUP
            leader = -1
            assert server.wait() == 0
            wait_until_gone(ids, 0.5)
            assert server.stderr.count("stopping: SIGHUP, the terminal is gone") == 1
    finally:
        if leader >= 0:
            os.close(leader)


def test_a_sighup_that_comes_shortly_before_the_end_of_the_terminal_is_its_end(
    redis_server: RedisServer, deployment: Deployment
) -> None:
    leader, terminal = pty.openpty()
    with Server(*deployment.args, terminal=terminal) as server:
        os.close(terminal)
        server.banner()
        server.reload()  # from a shell, say
        time.sleep(0.05)  # less than it waits for the end of the terminal
        os.close(leader)
        assert server.wait() == 0
        assert "stopping: SIGHUP, the terminal is gone" in server.stderr
        assert "reloaded" not in server.stderr


def test_under_nohup_the_end_of_the_terminal_is_survived(redis_server: RedisServer, deployment: Deployment) -> None:
    leader, terminal = pty.openpty()
    with Server(*deployment.args, program=("nohup", *MODULE), terminal=terminal) as server:
        os.close(terminal)
        server.banner()
        os.close(leader)
        server.logged(RELOADED)
        server.reload()
        server.logged(RELOADED, 2)
        server.tell(signal.SIGTERM)
        assert server.wait() == 0


# ---- the lifeline of a worker


def test_a_worker_that_gets_new_options_together_with_the_first_takes_both(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    first = Options(bind=f"127.0.0.1:{free_port()}", redis_url=redis_server.url).for_worker()
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*MODULE[:2], "-m", "freeim.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment(),
        )
    with process:
        assert process.stdin is not None
        process.stdin.write(pack(first) + pack(replace(first, origins=("https://a",))) + REFUSED)
        process.stdin.flush()
        deadline = time.monotonic() + 20
        while "reloaded, changed: --origins" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        process.stdin.close()
        assert process.wait(20) == 0


def test_a_lifeline_brings_each_line_once_however_they_come() -> None:
    lines = [Options(), None, Options(origins=("https://a",), max_head=600)]
    packed = b"".join(REFUSED if options is None else pack(options) for options in lines)
    for step in (1, 7, len(packed)):
        reader, writer = os.pipe()
        lifeline = Lifeline(reader)
        found: list[Options | None] = []
        os.write(writer, packed[: len(pack(Options())) + step - 1] if step < len(packed) else packed)
        sent = len(pack(Options())) + step - 1 if step < len(packed) else len(packed)
        found.append(unpack(lifeline.first()))
        found += [unpack(line) for line in lifeline.take()]
        for start in range(sent, len(packed), step):
            os.write(writer, packed[start : start + step])
            found += [unpack(line) for line in lifeline.receive() or ()]
        assert found == lines
        os.close(writer)
        assert lifeline.receive() is None
        os.close(reader)
