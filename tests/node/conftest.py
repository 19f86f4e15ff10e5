"""The event loops that the tests of the node run in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

from freeim import _core
from freeim.node import accept

# What a peer sees here depends on the transport below, and a node is to work on both.
ON_BOTH_TRANSPORTS = {
    "test_bad_frames",
    "test_closing",
    "test_handshake",
    "test_health",
    "test_limits",
    "test_metrics",
    "test_origins",
    "test_proxies",
    "test_refused",
    "test_resume",
    "test_slow_terminals",
    "test_tls",
    "test_tls_pieces",
}


def uvloop_and_epoll() -> asyncio.AbstractEventLoop:
    """Sockets under the core's epoll, as `freeim-server` has them."""
    vars(accept)["HAVE_EPOLL"] = _core.HAVE_EPOLL
    return uvloop.new_event_loop()


def asyncio_transports() -> asyncio.AbstractEventLoop:
    """Transports of the loop, as on a system without epoll; and asyncio's own loop."""
    vars(accept)["HAVE_EPOLL"] = False
    return asyncio.new_event_loop()


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run all tests as `freeim-server` does, and some on the transports of a loop too."""
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"uvloop": uvloop_and_epoll}
    if item.path.stem in ON_BOTH_TRANSPORTS:
        loops["asyncio"] = asyncio_transports
    return loops
