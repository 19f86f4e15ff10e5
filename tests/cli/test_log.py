"""The log of the command: one readable line per message."""

from __future__ import annotations

import logging
import re
import sys

from freeim.log import LineFormatter
from tests.cli.command import run_program

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
