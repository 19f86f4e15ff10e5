"""What can happen a thousand times in a second is logged in a few lines a minute and a number."""

from __future__ import annotations

import logging
import time
from typing import Final

log = logging.getLogger("freeim")

SECONDS: Final = 60.0
"""How long a line counts against those that follow."""


class SparseLog:
    """Logs the first few lines of a kind in each minute; the others are told as a number.

    Args:
        level: The lines' level, as `logging` has it.
        lines: How many a minute.
        rest: What to log of those that were not told; holds one ``%d``.
    """

    def __init__(self, level: int, lines: int, rest: str) -> None:
        self._level = level
        self._lines = lines
        self._rest = rest
        self._since = 0.0
        self._told = 0
        self._untold = 0

    def tell(self, message: str, *args: object) -> None:
        """Log a line, or count it."""
        now = time.monotonic()
        if now - self._since > SECONDS:
            self._since, self._told = now, 0
        if self._told < self._lines:
            self._told += 1
            log.log(self._level, message, *args)
        else:
            self._untold += 1

    def tell_rest(self) -> None:
        """Log how many were only counted since the last call; to be called now and then."""
        untold, self._untold = self._untold, 0
        if untold:
            log.log(self._level, self._rest, untold)
