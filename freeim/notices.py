"""Warnings that would come with every message are given once a minute."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

NOTICE_SECONDS: Final = 60.0
"""How long a kind of warning keeps silent after it was given."""


class Notices:
    """Decides which warnings are given: each kind at most once a minute.

    Args:
        clock: Tells seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._next: dict[str, float] = {}

    def due(self, kind: str) -> bool:
        """Tell whether to warn now; if so, the next minute says no.

        Args:
            kind: What is warned of.
        """
        now = self.clock()
        if now < self._next.get(kind, now):
            return False
        self._next[kind] = now + NOTICE_SECONDS
        return True
