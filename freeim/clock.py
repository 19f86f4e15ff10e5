"""The clock by which leases are counted: nobody sets it, and it goes on while the machine sleeps, as Redis's does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final


def _boot_clock() -> Callable[[], float]:
    if not hasattr(time, "clock_gettime"):
        return time.monotonic
    # On Linux the monotonic clock stands still while the machine sleeps; on macOS it is Python's own that does.
    clock: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return lambda: time.clock_gettime(clock)


boot_time: Final = _boot_clock()
"""Return the time since the machine was started, its sleep included where the system can tell, in seconds."""
