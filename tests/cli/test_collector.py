"""The pace of the garbage collector."""

from __future__ import annotations

import asyncio
import gc

from freeim.collector import pace_collector
from tests.node.harness import until


async def test_young_garbage_is_collected_and_what_survives_is_not_looked_at_again() -> None:
    class Cycle:
        made = 0

        def __init__(self) -> None:
            self.me = self
            Cycle.made += 1

        def __del__(self) -> None:
            Cycle.made -= 1

    frozen = gc.get_freeze_count()
    try:
        pace_collector(asyncio.get_running_loop())
        assert not gc.isenabled()
        assert gc.get_freeze_count() > frozen
        Cycle()
        assert Cycle.made == 1
        await until(lambda: Cycle.made == 0, "the young cycle is collected")
    finally:
        gc.unfreeze()
        gc.enable()
