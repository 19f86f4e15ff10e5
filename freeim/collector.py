"""Paces the garbage collector of a server process.

A full collection looks at every object of every connection: at 50,000 it would stop the loop for tens of milliseconds.
What belongs to a connection is freed by its reference count when the connection ends. So only what is young is looked
at, and what survives that is put out of the collector's sight.
"""

from __future__ import annotations

import asyncio
import gc
from typing import Final

INTERVAL: Final = 0.1
"""Seconds between two looks: so short that a storm of connections leaves little to look at."""


def pace_collector(loop: asyncio.AbstractEventLoop) -> None:
    """Collect a little every `INTERVAL`, instead of everything now and then, for as long as the loop runs."""
    gc.disable()

    def collect() -> None:
        gc.collect(0)
        gc.freeze()
        loop.call_later(INTERVAL, collect)

    collect()
