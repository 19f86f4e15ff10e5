"""A node and an app for each test."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from playwright.async_api import expect

from tests.cli.command import Server
from tests.demo.browser import Stage, Window
from tests.demo.demo import Demo, Visitor, running_app
from tests.embedded.runtime import runtime
from tests.servers import RedisServer

__all__ = ["app", "node", "pair", "runtime", "shared_page", "stage", "visit"]


@pytest.fixture
def node(redis_server: RedisServer) -> Iterator[Server]:
    """A node that serves."""
    with Server("--bind", "127.0.0.1:0", "--redis-url", redis_server.url) as server:
        server.banner()
        yield server


@pytest.fixture
def app(redis_server: RedisServer, node: Server) -> Iterator[Demo]:
    """The app, on that node."""
    with running_app(redis_server.url) as demo:
        yield demo


@pytest.fixture(scope="module")
def shared_page() -> Iterator[str]:
    """The address of an app that the tests of one file share, since none of them leaves anything behind."""
    with RedisServer() as redis, Server("--bind", "127.0.0.1:0", "--redis-url", redis.url) as node:
        node.banner()
        with running_app(redis.url) as demo:
            yield demo.page()


@pytest.fixture
def visit(app: Demo) -> Iterator[Callable[[str], Visitor]]:
    """Make a visitor with a name, who is connected."""
    with contextlib.ExitStack() as stack:
        yield lambda name: stack.enter_context(Visitor(app.page(), name))


@pytest.fixture
async def stage(redis_server: RedisServer) -> AsyncIterator[Stage]:
    """All that the page needs. At the end no window may have complained, about its policy for one."""
    async with Stage(redis_server) as made:
        yield made
        assert [window.complaints for window in made.windows] == [[] for _ in made.windows]


@pytest.fixture
async def pair(stage: Stage) -> tuple[Window, Window]:
    """Ana and Bo, who are both in the room "lobby", where everybody begins."""
    ana, bo = await stage.window(), await stage.window()
    await ana.enter("Ana")
    await bo.enter("Bo")
    await expect(ana.row("lobby")).to_contain_text("2 members")
    return ana, bo
