"""The event loops that the tests of the node run in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

# What a peer sees here depends on the transport below, and a node is to work on both.
ON_BOTH_LOOPS = {"test_bad_frames", "test_closing", "test_handshake", "test_health", "test_refused"}


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run all tests in uvloop, as `freeim-server` does, and some in plain asyncio too."""
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"uvloop": uvloop.new_event_loop}
    if item.path.stem in ON_BOTH_LOOPS:
        loops["asyncio"] = asyncio.new_event_loop
    return loops
