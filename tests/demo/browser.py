"""Windows of a real Chromium: each a person with cookies of their own."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

from playwright.async_api import Browser, BrowserContext, FilePayload, Locator, Page, async_playwright, expect

from tests.cli.command import Server
from tests.demo.demo import running_app
from tests.servers import RedisServer, free_port

NAMES = ("chromium", "chromium-browser", "google-chrome")
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
SECONDS = 20.0

expect.set_options(timeout=SECONDS * 1000)

# What the page says of its connection, from the start on.
_WATCH = """
window.states = [];
addEventListener("DOMContentLoaded", () => {
  const node = document.getElementById("state");
  const observer = new MutationObserver(() => {
    if (window.states.at(-1) !== node.dataset.state) window.states.push(node.dataset.state);
  });
  observer.observe(node, { attributes: true });
});
"""


def find_chromium() -> str:
    """Return the Chromium that the tests drive. Without one they fail: nothing is skipped."""
    for path in (*map(shutil.which, NAMES), *PLACES):
        if path and Path(path).exists():
            return path
    raise FileNotFoundError("no Chromium to test the page with (Debian: apt install chromium)")


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run a browser."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=find_chromium(), args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            await browser.close()


class Window:
    """A window of a person, who reads and clicks as people do: by what is written there."""

    def __init__(self, context: BrowserContext, page: Page) -> None:
        self.context = context
        self.page = page
        self.sockets = 0
        self.complaints: list[str] = []
        page.on("websocket", lambda _: self._count())
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self._listen(message.type, message.text))

    @classmethod
    async def open(cls, browser: Browser, address: str, **options: Any) -> Self:
        """Open a window with cookies of its own at the page."""
        context = await browser.new_context(
            **{"locale": "en-GB", "viewport": {"width": 1200, "height": 760}, **options}
        )
        await context.add_init_script(_WATCH)
        window = cls(context, await context.new_page())
        await window.page.goto(address)
        return window

    def _count(self) -> None:
        self.sockets += 1

    def _listen(self, kind: str, text: str) -> None:
        # A connection that is refused while something restarts is no fault of the page.
        if kind in ("error", "warning") and "net::ERR" not in text and "WebSocket connection" not in text:
            self.complaints.append(text)

    async def enter(self, name: str) -> None:
        """Choose a nickname, and wait for the connection."""
        await self.page.get_by_role("textbox", name="Nickname").fill(name)
        await self.page.get_by_role("button", name="Start chatting").click()
        await self.connected()

    async def connected(self, text: str = "Connected") -> None:
        await expect(self.page.locator("#state")).to_have_text(text)

    def row(self, title: str) -> Locator:
        """Return the line of a conversation in the list."""
        return (
            self.page.get_by_role("navigation").get_by_role("link").filter(has=self.page.get_by_text(title, exact=True))
        )

    @property
    def log(self) -> Locator:
        return self.page.get_by_role("log")

    def message(self, text: str) -> Locator:
        """Return the message that is shown with this text."""
        return self.log.get_by_role("article").filter(has_text=text)

    async def go(self, title: str) -> None:
        """Open a conversation."""
        await self.row(title).click()
        await expect(self.page.locator("#chat-title")).to_have_text(title)

    async def say(self, text: str) -> None:
        """Write in the conversation that is open, and wait until the app has it."""
        box = self.page.get_by_role("textbox", name="Message")
        await box.fill(text)
        if await self.page.evaluate("matchMedia('(pointer: coarse)').matches"):
            await self.page.get_by_role("button", name="Send", exact=True).tap()
        else:
            await box.press("Enter")
        await expect(self.message(text)).not_to_contain_text("Sending…")

    async def send_file(self, name: str, content: bytes) -> None:
        """Choose a file for the person whose conversation is open."""
        file: FilePayload = {"name": name, "mimeType": "application/octet-stream", "buffer": content}
        await self.page.locator("#file").set_input_files(file)

    async def reads(self, *texts: str) -> None:
        """Wait until the conversation that is open shows all of this."""
        for text in texts:
            await expect(self.log).to_contain_text(text)

    async def states(self) -> list[str]:
        """Return what the page has said of its connection since it was loaded."""
        found: list[str] = await self.page.evaluate("window.states")
        return found


class Stage:
    """A node and an app on fixed ports, each of which can be restarted, and the windows."""

    def __init__(self, redis_server: RedisServer) -> None:
        self.redis_server = redis_server
        self.app_port, self.node_port = free_port(), free_port()
        self.address = f"http://127.0.0.1:{self.app_port}"
        self.windows: list[Window] = []
        self._stack = contextlib.AsyncExitStack()
        self._node, self._app = contextlib.ExitStack(), contextlib.ExitStack()

    def start_node(self, *more: str) -> None:
        options = ("--bind", f"127.0.0.1:{self.node_port}", "--redis-url", self.redis_server.url, *more)
        self._node.enter_context(Server(*options)).banner()

    def stop_node(self) -> None:
        self._node.close()

    def start_app(self) -> None:
        self._app.enter_context(running_app(self.redis_server.url, port=self.app_port))

    def stop_app(self) -> None:
        self._app.close()

    async def window(self, **options: Any) -> Window:
        """Open one more window, which has no name yet."""
        window = await Window.open(self._browser, self.address, **options)
        self.windows.append(window)
        return window

    async def __aenter__(self) -> Stage:
        self._stack.callback(self.stop_node)
        self._stack.callback(self.stop_app)
        self.start_node()
        self.start_app()
        self._browser = await self._stack.enter_async_context(chromium())
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()
