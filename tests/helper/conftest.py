"""The helper's fixtures: most tests run on both helpers through one face."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from freeim import AsyncImHelper, ImHelper
from tests.helper.buses import Both
from tests.servers import RedisServer


class Blocking:
    """An `AsyncImHelper` behind the methods of `ImHelper`: each call runs on one loop until it is done."""

    def __init__(self, runner: asyncio.Runner, helper: AsyncImHelper) -> None:
        self._runner = runner
        self.helper = helper

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.helper, name)
        if not inspect.iscoroutinefunction(method):
            return method

        def call(*args: Any, **options: Any) -> Any:
            return self._runner.run(method(*args, **options))

        return call

    def run_batch(self, fill: Callable[[Any], object]) -> Any:
        async def run() -> Any:
            async with self.helper.batch() as batch:
                fill(batch)
            return batch

        return self._runner.run(run())


class Direct:
    """An `ImHelper` with `run_batch` beside its methods."""

    def __init__(self, helper: ImHelper) -> None:
        self.helper = helper

    def __getattr__(self, name: str) -> Any:
        return getattr(self.helper, name)

    def run_batch(self, fill: Callable[[Any], object]) -> Any:
        with self.helper.batch() as batch:
            fill(batch)
        return batch


MakeHelper = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def make(request: pytest.FixtureRequest) -> Iterator[MakeHelper]:
    """``make(url, **options)`` returns a helper that is closed after the test."""
    made: list[Any] = []
    with asyncio.Runner() as runner:

        def make_helper(*args: Any, **options: Any) -> Any:
            helper: Any
            if request.param == "sync":
                helper = Direct(ImHelper(*args, **options))
            else:
                helper = Blocking(runner, AsyncImHelper(*args, **options))
            made.append(helper)
            return helper

        yield make_helper
        for helper in made:
            if isinstance(helper, Direct):
                helper.close()
            else:
                helper.aclose()


@pytest.fixture
def helper(make: MakeHelper, redis_server: RedisServer) -> Any:
    """A helper of one node, named ``a``, on an empty Redis."""
    return make(redis_server.url, nodes=["a"])


@pytest.fixture(params=["sync", "async"])
def both(request: pytest.FixtureRequest) -> Any:
    with contextlib.ExitStack() as stack:

        def make(url: str, **callbacks: Any) -> Both:
            made = Both(request.param, url, **callbacks)
            stack.callback(made.close)
            return made

        yield make
