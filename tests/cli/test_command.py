"""``freeim-server`` with one node: what it prints, how it stops, its exit codes."""

from __future__ import annotations

import importlib.metadata
import re
import resource
import signal
import socket
import sys
from pathlib import Path

import pytest

from freeim.limits import raise_descriptor_limit
from tests.cli.command import Server, run, run_program
from tests.servers import RedisServer, free_port

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (debug|info |warn |error|fatal) \S.*")
NEEDED = ("freeim._core", "hiredis", "picows", "prometheus_client", "uvloop")


def node_args(server: RedisServer, *more: str) -> list[str]:
    return ["--bind", f"127.0.0.1:{free_port()}", "--redis-url", server.url, *more]


def run_python(code: str, *args: str) -> tuple[int, str, str]:
    done = run_program(sys.executable, "-c", code, *args)
    return done.returncode, done.stdout, done.stderr


def test_the_installed_command_is_this_one() -> None:
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="freeim-server")
    assert entry.value == "freeim.cli:main"


def test_version_help_and_print_config_answer_on_stdout_and_import_nothing_that_only_a_node_needs() -> None:
    code = (
        "import sys; from freeim.cli import main; code = main(sys.argv[1:])\n"
        f"print([name for name in {NEEDED} if name in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    for args, said in (("--version", "freeim-server "), ("--help", "usage: "), ("--print-config", "# freeim-server")):
        code_, stdout, stderr = run_python(code, args)
        assert (code_, stderr) == (0, "[]\n")
        assert stdout.startswith(said)


@pytest.mark.parametrize("missing", NEEDED)
def test_without_a_package_that_a_node_needs_the_command_says_so_and_help_still_works(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from freeim.cli import main; sys.exit(main())"
    exit_code, stdout, stderr = run_python(code)
    assert (exit_code, stdout) == (2, "")
    assert stderr.startswith("freeim-server: a node needs CPython on Linux or macOS")
    assert f"and {missing} is missing here" in stderr
    assert stderr.count("\n") == 1
    for action in ("--help", "--version", "--print-config"):
        assert run_python(code, action)[0] == 0


@pytest.mark.parametrize("change", ["sys.platform = 'win32'", "sys.implementation.name = 'pypy'"])
def test_on_another_platform_the_command_says_what_a_node_needs(change: str) -> None:
    exit_code, _, stderr = run_python(f"import sys; from freeim.cli import main; {change}; sys.exit(main())")
    assert exit_code == 2
    assert re.fullmatch(r"freeim-server: a node needs CPython on Linux or macOS, and this is .* works here\n", stderr)


def test_a_wrong_option_is_one_line_and_exit_code_2() -> None:
    done = run("--workers", "0")
    assert done.returncode == 2
    assert done.stderr == "freeim-server: --workers: workers must be a whole number from 1 to 1024, not 0\n"
    assert done.stdout == ""


def test_a_missing_password_file_is_exit_code_2() -> None:
    done = run("--redis-url", "redis://h", "--redis-password-file", "/nowhere/password", "--workers", "2")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "'/nowhere/password' cannot be read" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_serving_node_with_exit_code_0(redis_server: RedisServer, number: signal.Signals) -> None:
    args = node_args(redis_server)
    with Server(*args) as server:
        assert args[1] in server.banner()
        host, _, port = args[1].rpartition(":")
        socket.create_connection((host, int(port))).close()
        server.tell(number)
        assert server.wait() == 0
        assert "stopping: " in server.stderr
        for line in server.stderr.splitlines():
            assert LINE.fullmatch(line)


def test_ctrl_c_ends_a_node_that_still_waits_for_redis(own_redis_server: RedisServer) -> None:
    own_redis_server.pause()
    with Server(*node_args(own_redis_server, "--log-level", "debug")) as server:
        server.logged("starting the node")
        server.tell(signal.SIGINT)
        assert server.wait(3) == 0
        assert server.stdout == ""
        assert "Traceback" not in server.stderr


def test_a_second_ctrl_c_ends_at_once_with_exit_code_130(own_redis_server: RedisServer) -> None:
    with Server(*node_args(own_redis_server)) as server:
        server.banner()
        own_redis_server.pause()  # so that saying goodbye takes its time
        server.tell(signal.SIGINT)
        server.logged("stopping: Ctrl-C")
        server.tell(signal.SIGINT)
        assert server.wait(2) == 130
        assert "Traceback" not in server.stderr


def test_a_redis_that_cannot_be_reached_is_exit_code_3_without_its_password() -> None:
    port = free_port()
    done = run("--bind", f"127.0.0.1:{free_port()}", "--redis-url", f"redis://:s3cret@127.0.0.1:{port}")
    assert done.returncode == 3
    assert str(port) in done.stderr
    assert "s3cret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_redis_password_is_exit_code_3_and_one_from_a_file_is_used(tmp_path: Path) -> None:
    file = tmp_path / "password"
    with RedisServer(args=("--requirepass", "s3 cret")) as redis:
        file.write_text("zebra\n", encoding="utf-8")
        done = run(*node_args(redis, "--redis-password-file", str(file)))
        assert done.returncode == 3
        assert "zebra" not in done.stderr
        file.write_text("s3 cret\n", encoding="utf-8")
        with Server(*node_args(redis, "--redis-password-file", str(file))) as server:
            assert "cret" not in server.banner()
            server.tell(signal.SIGTERM)
            assert server.wait() == 0


def test_an_address_that_is_taken_is_exit_code_2_and_named(redis_server: RedisServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("--bind", bind, "--redis-url", redis_server.url)
    assert done.returncode == 2
    assert f"cannot listen on {bind}: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_name_that_a_living_node_has_is_refused_and_takeover_replaces_that_node(redis_server: RedisServer) -> None:
    with Server(*node_args(redis_server, "--node", "n")) as first:
        first.banner()
        refused = run(*node_args(redis_server, "--node", "n"))
        assert refused.returncode == 2
        assert "Traceback" not in refused.stderr
        with Server(*node_args(redis_server, "--node", "n", "--takeover")) as second:
            second.banner()
            assert first.wait() == 4
            assert "Traceback" not in first.stderr
            second.tell(signal.SIGTERM)
            assert second.wait() == 0


def test_the_log_level_hides_lesser_messages(redis_server: RedisServer) -> None:
    with Server(*node_args(redis_server, "--log-level", "error")) as server:
        server.banner()
        server.tell(signal.SIGTERM)
        assert server.wait() == 0
        assert server.stderr == ""


def test_the_soft_limit_of_descriptors_is_raised_to_the_hard_one() -> None:
    code = (
        "import resource as r; hard = r.getrlimit(r.RLIMIT_NOFILE)[1]; r.setrlimit(r.RLIMIT_NOFILE, (256, hard))\n"
        "from freeim.limits import raise_descriptor_limit as up; print(up(), r.getrlimit(r.RLIMIT_NOFILE)[0], up())"
    )
    exit_code, stdout, stderr = run_python(code)
    assert (exit_code, stderr) == (0, "")
    first, in_effect, second = map(int, stdout.split())
    assert first == in_effect == second
    assert first > 256


def test_a_hard_limit_that_the_system_does_not_grant_is_approached(monkeypatch: pytest.MonkeyPatch) -> None:
    granted: list[int] = []

    def grant(_: int, limits: tuple[int, int]) -> None:
        if limits[0] > 300_000:
            raise ValueError("not allowed")
        granted.append(limits[0])

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", grant)
    assert raise_descriptor_limit() == 2**18
    assert granted == [2**18]
