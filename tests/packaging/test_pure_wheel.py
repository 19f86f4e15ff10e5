"""The pure wheel, with redis-py as its only company: the oldest that we allow, and the newest there is."""

from __future__ import annotations

import importlib.metadata
import os

import pytest

from tests.packaging.dist import CHECKOUT, EmptyVenv, floor_of, pure_wheel
from tests.servers import RedisServer

AUTHORISE = """
import asyncio, sys
from freeim import AsyncImHelper, ImHelper

with ImHelper(sys.argv[1], nodes=["127.0.0.1:6001"]) as helper:
    print(helper.prev_connect_server(1))

async def main():
    async with AsyncImHelper(sys.argv[1], nodes=["127.0.0.1:6001"]) as helper:
        print(await helper.prev_connect_server(1))

asyncio.run(main())
"""


@pytest.fixture(scope="module", params=["lowest", "newest"])
def pure(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EmptyVenv:
    """An environment with the pure wheel, redis-py, and no other package that freeim uses."""
    wheel = pure_wheel()
    venv = EmptyVenv(tmp_path_factory.mktemp(request.param) / "venv")
    venv.install("--no-deps", wheel)
    venv.install(floor_of("redis") if request.param == "lowest" else "redis")
    for module in ("hiredis", "uvloop", "picows", "prometheus_client", "freeim._core"):
        assert venv.run("python", "-c", f"import {module}").returncode == 1
    return venv


def test_both_helpers_work_on_the_pure_wheel(pure: EmptyVenv, redis_server: RedisServer) -> None:
    done = pure.run("python", "-W", "error", "-c", AUTHORISE, redis_server.url)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split()
    assert first.startswith("ws://127.0.0.1:6001/ws?token=")
    assert second.startswith("ws://127.0.0.1:6001/ws?token=")
    assert first != second


def test_freeim_server_says_in_one_sentence_what_a_node_needs(pure: EmptyVenv) -> None:
    done = pure.run("freeim-server")
    assert done.returncode == 2
    assert done.stdout == ""
    (sentence,) = done.stderr.splitlines()
    assert "a node needs CPython on Linux or macOS" in sentence


@pytest.mark.timeout(300)
def test_the_helper_sends_what_the_vectors_show_on_the_pure_wheel(pure: EmptyVenv) -> None:
    tools = ("pytest", "pytest-asyncio", "pytest-timeout")
    pure.install(*(f"{tool}=={importlib.metadata.version(tool)}" for tool in tools))
    done = pure.run(
        *("python", "-m", "pytest", "-q", "-c", str(CHECKOUT / "pyproject.toml"), "--rootdir", str(CHECKOUT)),
        *("-p", "tests.strict", "-p", "no:cacheprovider", str(CHECKOUT / "tests" / "helper" / "test_vectors.py")),
        env={name: os.environ[name] for name in ("PYTHONPATH", "FREEIM_TEST_REDIS")},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
