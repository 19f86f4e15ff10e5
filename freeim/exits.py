"""The exit codes of ``freeim-server``."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """How a command, or one worker of a group, ended."""

    STOPPED = 0
    DEFECT = 1
    CONFIG = 2
    REDIS = 3
    REPLACED = 4
    HANDED_OVER = 5
    """Of a worker alone: another process has taken its place, so it is not to be started again."""
    INTERRUPTED = 130
