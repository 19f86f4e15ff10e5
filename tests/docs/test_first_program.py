"""The README's first program, as it stands there: a page, an app, a node and the embedded Redis."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from freeim import ImHelper
from tests.cli.command import Server, environment
from tests.demo.browser import chromium
from tests.docs.pages import README
from tests.embedded.runtime import Runtime, runtime
from tests.node.harness import until
from tests.servers import free_port

__all__ = ["runtime"]

PROGRAM = README.written_in("python")[0].text


async def arrive(page: Page, address: str) -> None:
    """Open the page once the app answers, and wait for its connection."""
    async with page.expect_websocket():
        await page.goto(address)


async def say(page: Page, text: str) -> None:
    await page.get_by_placeholder("Say something").fill(text)
    await page.keyboard.press("Enter")


@pytest.mark.browser
@pytest.mark.timeout(120)
async def test_what_is_typed_in_one_window_appears_in_both_also_after_a_restart_of_the_node(
    runtime: Runtime, tmp_path: Path
) -> None:
    (tmp_path / "first.py").write_text(PROGRAM, encoding="utf-8")
    port, bind = free_port(), f"127.0.0.1:{free_port()}"
    with Server("--bind", bind) as node, served(tmp_path, port) as app:
        try:
            assert "embedded" in node.banner()
            await until(lambda: is_served(port), "the app answers")
            async with chromium() as browser:
                pages = [await (await browser.new_context()).new_page() for _ in range(2)]
                for page in pages:
                    await arrive(page, f"http://127.0.0.1:{port}")
                await until(lambda: online() == 2, "both are connected")
                await say(pages[0], "hello <b>you</b>")
                for page in pages:
                    await expect(page.locator("li")).to_have_text(["hello <b>you</b>"])
                node.tell(signal.SIGTERM)
                node.wait()
                await asyncio.sleep(2)  # the pages ask in vain meanwhile: no node, no Redis
                with Server("--bind", bind) as again:
                    again.banner()
                    await until(lambda: online() == 2, "both have come back")
                    await say(pages[1], "again")
                    for page in pages:
                        await expect(page.locator("li")).to_have_text(["hello <b>you</b>", "again"])
        finally:
            app.terminate()


def served(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Run the app."""
    command = [sys.executable, "-m", "uvicorn", "first:app", "--port", str(port), "--log-level", "warning"]
    return subprocess.Popen(command, cwd=folder, env=environment())


def is_served(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def online() -> int:
    with ImHelper() as helper:
        return len(helper.get_client_list_by_online())
