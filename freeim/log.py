"""Logging of the command: one readable line per message, on stderr."""

from __future__ import annotations

import logging
import sys
from typing import Final

from freeim.config import LogLevel

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
        message = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in record.getMessage())
        line = f"{self.formatTime(record)} {level:5} {self._label}{message}"
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            line += "".join(f"\n    {part}" for part in trace.splitlines())
        return line


def configure(level: LogLevel, label: str = "") -> None:
    """Send the log to stderr: freeim's own from this level on, that of libraries from warnings on.

    Args:
        level: The least severe level of freeim's own messages.
        label: What stands before each message, e.g. the name of a worker.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(label))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("freeim").setLevel(level.upper())
