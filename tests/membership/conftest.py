"""Redis as a node finds it: with CLIENT TRACKING, and without."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.membership.cluster import redis_without
from tests.servers import RedisServer


@pytest.fixture(params=["tracking", "fallback"])
def either_redis(request: pytest.FixtureRequest, redis_server: RedisServer) -> Iterator[RedisServer]:
    """A Redis of each kind, without any key."""
    if request.param == "tracking":
        yield redis_server
    else:
        with redis_without("CLIENT") as server:
            yield server
