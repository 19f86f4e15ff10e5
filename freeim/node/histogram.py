"""How long things took, as Prometheus wants to know it."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Final

BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""From a loop or a bus that has nothing else to do, in seconds, to one that counts as lost."""


class Histogram:
    """Counts durations by the first bound that they do not pass.

    Args:
        bounds: In seconds, the shortest first.
    """

    def __init__(self, bounds: Sequence[float] = BOUNDS) -> None:
        self.sum = 0.0
        """All durations together, in seconds."""
        self._bounds = (*bounds, math.inf)
        self._counts = [0] * len(self._bounds)

    def observe(self, seconds: float) -> None:
        """Count a duration."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self.sum += seconds

    def __iter__(self) -> Iterator[tuple[float, int]]:
        """Yield each bound, the last of them infinite, with how many durations stand between it and the one before."""
        return zip(self._bounds, self._counts, strict=True)
