"""The terminals of docs/resume.md, as they stand there: in a browser and in Python, and without a window."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from playwright.async_api import Page as Tab

from tests.demo.browser import chromium
from tests.docs.pages import Page
from tests.faults.proxy import Proxy
from tests.node.harness import Running, direct, running, until
from tests.node.resuming import results
from tests.servers import RedisServer, free_port

RESUME = Page("docs/resume.md")
[IN_BROWSER] = RESUME.written_in("js")
[IN_PYTHON] = RESUME.written_in("python")


class Losses:
    """Sends numbers to client 1, and breaks its connection in between."""

    def __init__(self, run: Running, proxy: Proxy) -> None:
        self.run = run
        self.proxy = proxy
        self.sent = 0

    def send(self, count: int = 5) -> None:
        for _ in range(count):
            self.run.publish(direct([1], self.sent))
            self.sent += 1

    def url(self) -> str:
        return f"ws://127.0.0.1:{self.proxy.port}/ws?token={self.run.token(1)}"

    async def lose(self) -> None:
        """Send what does not arrive, and reset the connection."""
        self.proxy.freeze()
        self.send()
        await self.run.heard_all()
        self.proxy.cut()
        self.proxy.thaw()

    @property
    def numbers(self) -> list[int]:
        return list(range(self.sent))


async def go_through(losses: Losses, got: list[Any], missed: list[Any]) -> None:
    """What both terminals must stand."""
    run = losses.run
    await until(lambda: run.node._connections.living, "it is connected")
    losses.send()
    await until(lambda: got == losses.numbers, "all arrive")
    for times in (1, 2):
        await losses.lose()
        losses.send()
        await until(lambda: got == losses.numbers, "what was lost arrives", 30)
        assert results(run) == {"resumed": times}
    assert missed == []
    # The log goes, and the connection breaks: nobody knows what was in between.
    run.node._connections.resume.gap()
    await losses.lose()
    await until(lambda: missed, "it is told", 30)
    assert results(run) == {"resumed": 2, "gap": 1}
    del got[:]
    run.publish(direct([1], "new"))
    await until(lambda: got == ["new"], "and goes on")
    run.publish("__FreeIM__(ForceOffline)1")


async def python_terminal(losses: Losses, got: list[Any], missed: list[Any]) -> asyncio.Task[None]:
    names: dict[str, Any] = {}
    exec(IN_PYTHON.text, names)

    async def fresh_url() -> str:
        return losses.url()

    return asyncio.create_task(names["listen"](fresh_url, got.append, lambda: missed.append(True)))


async def browser_terminal(tab: Tab, losses: Losses, got: list[Any], missed: list[Any]) -> None:
    def on_message(message: Any) -> None:
        got.append(message)

    # A page of this machine: Chromium lets no other connect to a loopback address.
    await tab.goto(f"http://127.0.0.1:{losses.run.node.port}/health")
    await tab.expose_function("freshUrl", losses.url)
    await tab.expose_function("onMessage", on_message)
    await tab.expose_function("onMissed", lambda: missed.append(True))
    await tab.add_script_tag(content=IN_BROWSER.text + "\nlisten(freshUrl, onMessage, onMissed);")


@pytest.mark.timeout(120)
async def test_the_terminal_in_python_gets_each_message_once_or_is_told(redis_server: RedisServer) -> None:
    got: list[Any] = []
    missed: list[Any] = []
    async with running(redis_server, resume_window=60.0) as run:
        with Proxy(run.node.port) as proxy:
            losses = Losses(run, proxy)
            listening = await python_terminal(losses, got, missed)
            await go_through(losses, got, missed)
            await asyncio.wait_for(listening, 30)  # forced offline, it does not come back


@pytest.mark.browser
@pytest.mark.timeout(120)
async def test_the_terminal_in_a_browser_gets_each_message_once_or_is_told(redis_server: RedisServer) -> None:
    got: list[Any] = []
    missed: list[Any] = []
    bind = f"127.0.0.1:{free_port()}"
    async with running(redis_server, resume_window=60.0, bind=bind) as run, chromium() as browser:
        tab = await browser.new_page()
        with Proxy(run.node.port) as proxy:
            losses = Losses(run, proxy)
            await browser_terminal(tab, losses, got, missed)
            await go_through(losses, got, missed)
            await until(lambda: not run.node._connections.living, "it is offline")
            handshakes = run.node._connections.handshakes["101"]
            await asyncio.sleep(3)  # it would have come back
            assert run.node._connections.handshakes["101"] == handshakes


@pytest.mark.timeout(120)
async def test_the_terminal_in_python_works_without_a_window_too(redis_server: RedisServer) -> None:
    got: list[Any] = []
    missed: list[Any] = []
    async with running(redis_server) as run:
        with Proxy(run.node.port) as proxy:
            losses = Losses(run, proxy)
            listening = await python_terminal(losses, got, missed)
            await until(lambda: run.node._connections.living, "it is connected")
            losses.send()
            await until(lambda: got == losses.numbers, "all arrive")
            await losses.lose()
            await until(lambda: run.node._connections.handshakes["101"] == 2, "it came back", 30)
            run.publish(direct([1], "new"))
            await until(lambda: got[-1] == "new", "and goes on")
            assert missed == []
            run.publish("__FreeIM__(ForceOffline)1")
            await asyncio.wait_for(listening, 30)


def test_the_page_has_the_announcement_that_a_node_sends() -> None:
    text = Page("docs/protocol.md").text.partition("__FreeIM__(Resume){")[2].partition("`")[0]
    assert list(json.loads("{" + text)) == ["id", "missed"]
