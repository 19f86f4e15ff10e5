"""Warnings that would come with every message are given once a minute."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

logger: Final = logging.getLogger("freeim")

NOTICE_SECONDS: Final = 60.0
"""How long a kind of warning keeps silent after it was given."""


class Notices:
    """Writes warnings to the logger ``freeim``, each kind at most once a minute.

    Args:
        clock: Tells seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._next: dict[str, float] = {}

    def warn(self, kind: str, text: str, *args: object) -> None:
        """Log a warning, unless one of its kind was logged within the last minute.

        Args:
            kind: What is warned of.
            text: A %-format.
            *args: What the format takes.
        """
        now = self.clock()
        if now >= self._next.get(kind, now):
            self._next[kind] = now + NOTICE_SECONDS
            logger.warning(text, *args)
