"""Fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import RedisServer


@pytest.fixture(scope="session")
def session_redis_server() -> Iterator[RedisServer]:
    """The one server of the whole run; tests take `redis_server`, which empties it first."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_server(session_redis_server: RedisServer) -> RedisServer:
    """A running server without any key. Do not stop it, and resume it if you paused it."""
    session_redis_server.flush()
    return session_redis_server


@pytest.fixture
def own_redis_server() -> Iterator[RedisServer]:
    """A server for this test alone, which may pause, stop and start it."""
    with RedisServer() as server:
        yield server
