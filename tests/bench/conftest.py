"""What the benchmarks' tests share: each needs Linux and a C compiler."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.servers import RedisServer

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.bench)
            item.add_marker(pytest.mark.slow)  # they measure the same on each Python, and with the newest redis-py


@pytest.fixture(scope="session")
def bench_url(session_redis_server: RedisServer) -> str:
    """A Redis for scenarios, which keep to names of their own and remove them."""
    return session_redis_server.unix_url
