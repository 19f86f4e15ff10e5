"""The log of the command: one line per message, for people or for programs."""

from __future__ import annotations

import json
import logging
import re
import signal
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from freeim.log import JsonFormatter, LineFormatter
from tests.cli.command import Server, free_ports, run, run_program
from tests.servers import RedisServer, free_port

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"


def record(level: int, message: str, *args: object, exc_info: object = None) -> logging.LogRecord:
    return logging.LogRecord("freeim.x", level, "x.py", 1, message, args, exc_info)  # type: ignore[arg-type]


def test_a_line_holds_time_level_and_message() -> None:
    line = LineFormatter().format(record(logging.WARNING, "cut %d", 3))
    assert re.fullmatch(STAMP + " warn  cut 3", line)


def test_a_worker_is_named_before_its_message() -> None:
    line = LineFormatter("127.0.0.1:6002").format(record(logging.INFO, "hi"))
    assert re.fullmatch(STAMP + r" info  \[127\.0\.0\.1:6002\] hi", line)


def test_what_somebody_sent_cannot_forge_a_line_or_steer_the_terminal() -> None:
    line = LineFormatter().format(record(logging.ERROR, "path %s", "/\n2026 error \x1b[2J\r\u2028é发"))
    assert line.endswith(r" error path /\n2026 error \x1b[2J\r\u2028é发")


def test_a_traceback_follows_its_line_indented() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        lines = LineFormatter().format(record(logging.CRITICAL, "defect", exc_info=sys.exc_info())).splitlines()
    assert lines[0].endswith(" fatal defect")
    assert lines[-1] == "    ValueError: broken"
    assert all(line.startswith("    ") for line in lines[1:])


def test_freeim_logs_from_its_level_on_and_libraries_from_warnings_on() -> None:
    code = (
        "import logging; from freeim.log import configure; configure('debug')\n"
        "logging.getLogger('freeim.x').debug('ours'); logging.getLogger('redis').info('theirs')\n"
        "logging.getLogger('redis').warning('theirs too')"
    )
    done = run_program(sys.executable, "-c", code)
    assert re.fullmatch(f"{STAMP} debug ours\n{STAMP} warn  theirs too\n", done.stderr)
    assert done.stdout == ""


# ---- --log-format json


def entry(level: int, message: str, *args: object, label: str = "", exc_info: object = None) -> dict[str, Any]:
    line = JsonFormatter(label).format(record(level, message, *args, exc_info=exc_info))
    assert line.isascii()
    assert len(line.splitlines()) == 1
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


def test_a_json_line_holds_time_in_utc_level_logger_and_message() -> None:
    moment = record(logging.WARNING, "cut %d", 3)
    moment.created = 1_769_860_800.0456
    assert json.loads(JsonFormatter().format(moment)) == {
        "time": "2026-01-31T12:00:00.045Z",
        "level": "warning",
        "logger": "freeim.x",
        "message": "cut 3",
    }
    now = datetime.fromisoformat(entry(logging.INFO, "now")["time"])
    assert abs(now - datetime.now(UTC)) < timedelta(seconds=60)


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error", "critical"])
def test_json_levels_are_those_of_the_option(level: str) -> None:
    assert entry(logging.getLevelNamesMapping()[level.upper()], "x")["level"] == level


def test_a_worker_is_named_in_json_too() -> None:
    assert entry(logging.INFO, "hi", label="127.0.0.1:6002")["node"] == "127.0.0.1:6002"
    assert "node" not in entry(logging.INFO, "hi")


@given(st.text())
@example("/\n2026 error \x1b[2J\r\u2028\x85é发\ud800")
def test_any_text_is_one_line_of_json_and_comes_out_as_it_was(text: str) -> None:
    assert entry(logging.ERROR, "%s", text)["message"] == text


def test_a_traceback_is_in_the_same_json_line() -> None:
    try:
        raise ValueError("broken\nin two")
    except ValueError:
        found = entry(logging.CRITICAL, "defect", exc_info=sys.exc_info())
    assert found["exception"].startswith("Traceback (most recent call last):\n")
    assert found["exception"].endswith("ValueError: broken\nin two")
    assert "exception" not in entry(logging.CRITICAL, "defect")


def lines_of(stderr: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in stderr.splitlines()]
    assert all(list(each)[:3] == ["time", "level", "logger"] for each in found)
    return found


def test_a_warning_of_python_is_a_json_line_too() -> None:
    code = "import warnings; from freeim.log import configure; configure('info', 'json'); warnings.warn('old', Warning)"
    (found,) = lines_of(run_program(sys.executable, "-c", code).stderr)
    assert (found["level"], found["logger"]) == ("warning", "py.warnings")
    assert "old" in found["message"]


def test_all_that_a_node_logs_is_json_and_the_banner_is_not(redis_server: RedisServer) -> None:
    port = free_port()
    args = ("--bind", f"127.0.0.1:{port}", "--redis-url", redis_server.url, "--log-format", "json")
    with Server(*args) as server:
        assert server.banner().startswith("freeim ")
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/nowhere", timeout=10)
        server.tell(signal.SIGTERM)
        assert server.wait() == 0
        refused, stopping = lines_of(server.stderr)
    assert (refused["level"], refused["logger"]) == ("info", "freeim")
    assert "with 404: nothing is served here" in refused["message"]
    assert (stopping["logger"], stopping["message"]) == ("freeim.server", "stopping: SIGTERM")


def test_all_that_a_group_logs_is_json_with_the_node_of_each_worker(redis_server: RedisServer) -> None:
    port = free_ports(2)
    args = ("--bind", f"127.0.0.1:{port}", "--workers", "2", "--redis-url", redis_server.url, "--log-format", "json")
    with Server(*args) as server:
        server.banner()
        server.tell(signal.SIGTERM)
        assert server.wait() == 0
        found = lines_of(server.stderr)
    assert {each.get("node") for each in found} == {None, f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"}


@pytest.mark.parametrize("more", [("--redis-password-file", "/nowhere"), ("--redis-url", "redis://127.0.0.1:1")])
def test_what_keeps_a_node_from_starting_is_json_too(more: tuple[str, str]) -> None:
    done = run("--redis-url", "redis://h", "--bind", f"127.0.0.1:{free_port()}", "--log-format", "json", *more)
    (found,) = lines_of(done.stderr)
    assert found["level"] == "error"
    assert done.returncode == (2 if "/nowhere" in more else 3)
