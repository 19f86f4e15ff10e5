"""The event loop that the tests of the hand-over run in: that of `freeim-server`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

from tests.node.conftest import uvloop_and_epoll


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run all tests as `freeim-server` does."""
    return {"uvloop": uvloop_and_epoll}
