"""Logging of the command on stderr: one line per message, for people or for programs."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final

from freeim.config import LogFormat, LogLevel
from freeim.printable import printable

_NAMES: Final = {"WARNING": "warn", "CRITICAL": "fatal"}


class LineFormatter(logging.Formatter):
    """``2026-01-31 12:00:00.123 info  message``, with the worker's name before the message in a group.

    Control characters in a message are escaped, so that nothing a terminal or Redis sent can forge a line. Only a
    traceback spans several lines, each indented.
    """

    default_msec_format = "%s.%03d"

    def __init__(self, label: str = "") -> None:
        super().__init__()
        self._label = f"[{label}] " if label else ""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of one message."""
        level = _NAMES.get(record.levelname, record.levelname.lower())
        message = printable(record.getMessage())
        line = f"{self.formatTime(record)} {level:5} {self._label}{message}"
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            line += "".join(f"\n    {part}" for part in trace.splitlines())
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``message``; where there is one ``node``, ``exception``.

    ``time`` is in UTC and in the form of RFC 3339, ``level`` is debug, info, warning, error or critical, ``node`` is
    the worker's name in a group, and ``exception`` is the whole traceback. The line is ASCII, so that no character of
    a message ends it for anybody.
    """

    def __init__(self, label: str = "") -> None:
        super().__init__()
        self._node = {"node": label} if label else {}

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of one message."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            **self._node,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def configure(level: LogLevel, form: LogFormat = "text", label: str = "") -> None:
    """Send the log to stderr: freeim's own from this level on, that of libraries from warnings on.

    Args:
        level: The least severe level of freeim's own messages.
        form: Whether lines are for people or for programs. For programs, Python's own warnings are messages too.
        label: Who speaks, e.g. the name of a worker.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(label) if form == "json" else LineFormatter(label))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(form == "json")
    logging.getLogger("freeim").setLevel(level.upper())
