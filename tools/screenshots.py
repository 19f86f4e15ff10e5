"""Takes the pictures of the demo in docs/images: ``python -m tools.screenshots`` in a checkout.

Needs the packages of the tests, Chromium, a Redis to start, and fonts (Debian: fonts-inter, fonts-noto-cjk,
fonts-noto-color-emoji).
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, expect

from tests.cli.command import Server
from tests.demo.browser import Window, chromium
from tests.demo.demo import running_app
from tests.servers import RedisServer

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
PHONE = {"viewport": {"width": 390, "height": 780}, "is_mobile": True, "has_touch": True}
PLAN = b"Monday: tea\n" * 4000


async def main() -> None:
    """Play a chat of five people and photograph it."""
    async with contextlib.AsyncExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        stack.enter_context(Server("--bind", "127.0.0.1:0", "--redis-url", redis.url)).banner()
        address = stack.enter_context(running_app(redis.url)).page()
        browser = await stack.enter_async_context(chromium())
        await english(browser, address)
        await chinese(browser, address)


async def people(browser: Browser, address: str, *names: str, **options: Any) -> list[Window]:
    """Open windows of people with these names."""
    windows = []
    for name in names:
        window = await Window.open(browser, address, **options)
        await window.page.locator("#name").fill(name)
        await window.page.locator("#name-ok").click()
        await expect(window.page.locator("#state")).to_have_attribute("data-state", "open")
        windows.append(window)
    return windows


async def shoot(window: Window, name: str) -> None:
    """Take a picture."""
    await expect(window.page.locator(".toast")).to_have_count(0)
    await window.page.screenshot(path=IMAGES / f"{name}.png")


async def post(window: Window, path: str, **body: Any) -> None:
    """Say something to the app from a window, without a click."""
    await window.page.evaluate(
        "([path, body]) => import('/static/api.js').then(({post, newKey}) => post(path, {key: newKey(), ...body}))",
        [path, body],
    )


async def english(browser: Browser, address: str) -> None:
    """Take the picture of the desktop, and that of a phone in the dark."""
    desk = {"viewport": {"width": 1200, "height": 800}}
    maya, tom, lin, ada, noor = await people(browser, address, "Maya", "Tom", "林小明", "Ada", "Noor", **desk)
    for window, room in ((maya, "design"), (tom, "design"), (lin, "design"), (noor, "release 0.1")):
        await post(window, "/ws/subscr-channel", channel=room)
    await maya.page.reload()
    await maya.page.locator("#rooms >> text=lobby").click()
    await post(noor, "/ws/send-channelmsg", channel="lobby", message="Morning! Is the new build out already?")
    await maya.reads("already?")
    await maya.say("Yes, for ten minutes. Nobody was disconnected 🎉")
    await maya.say("The app restarted, the node did not even notice.")
    await post(lin, "/ws/send-channelmsg", channel="lobby", message="太好了，我这边一直在线。")
    await post(tom, "/ws/send-channelmsg", channel="lobby", message="Same here. I only saw the new button appear.")
    await post(tom, "/ws/send-channelmsg", channel="lobby", message="Who is in for tea at four?")
    await maya.reads("tea at four")
    await post(ada, "/ws/send-channelmsg", channel="lobby", message="Me! ☕")
    await ada.context.close()
    await maya.reads("Ada went offline")
    await post(noor, "/ws/send-broadcast", message="The kitchen has cake.")
    await maya.page.locator(".toast").click()
    await maya.reads("cake")
    await maya.page.locator("#rooms >> text=lobby").click()
    await post(tom, "/ws/send-broadcast", message="Demo in five minutes, room 2.")
    await expect(maya.row("Everyone")).to_contain_text("1")
    await shoot(maya, "chat-desktop")

    [phone] = await people(browser, address, "Ines", color_scheme="dark", device_scale_factor=2, **PHONE)
    await phone.page.get_by_role("link", name="Tom").tap()
    await phone.say("Do you have the plan for Monday?")
    await tom.page.locator("#people >> text=Ines").click()
    await tom.say("Almost done, one second.")
    await tom.send_file("plan for monday.pdf", PLAN)
    await expect(phone.page.locator("a.file")).to_be_visible()
    await tom.say("Here it is!")
    await phone.reads("Here it is!")
    await phone.say("Thank you, that was quick")
    await expect(phone.message("that was quick")).to_contain_text("Delivered")
    await shoot(phone, "chat-phone")
    for window in (maya, tom, lin, noor, phone):
        await window.context.close()


async def chinese(browser: Browser, address: str) -> None:
    """Take the picture of the list on a phone, in Chinese."""
    options = {**PHONE, "locale": "zh-CN", "device_scale_factor": 2}
    ming, an, hua = await people(browser, address, "小明", "安娜", "李华", **options)
    for window, room in ((ming, "设计"), (an, "设计"), (hua, "发布 0.1")):
        await post(window, "/ws/subscr-channel", channel=room)
    await post(an, "/ws/send-channelmsg", channel="lobby", message="大家好！")
    await post(hua, "/ws/send-msg", receiveWebsocketId=await my_id(ming), message="下午四点喝茶吗？")
    await expect(ming.page.locator("#rooms")).to_contain_text("发布 0.1")
    await expect(ming.page.locator("#people")).to_contain_text("1")
    await shoot(ming, "chat-phone-zh")


async def my_id(window: Window) -> int:
    """Return the client id of a window's person."""
    found: int = await window.page.evaluate("fetch('/me').then((answer) => answer.json()).then(({me}) => me.id)")
    return found


if __name__ == "__main__":
    asyncio.run(main())
