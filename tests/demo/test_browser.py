"""Two people in two windows of a real browser, in all that the page can do."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import expect

from tests.demo.browser import Stage, Window

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(180)]


async def test_each_sees_the_other_come_and_go(stage: Stage, pair: tuple[Window, Window]) -> None:
    ana, bo = pair
    await ana.go("Everyone")
    await ana.reads("Bo is online")
    await expect(ana.row("Bo")).to_contain_text("online")
    await expect(ana.row("Everyone")).to_contain_text("2 online")
    cy = await stage.window()
    await cy.enter("Cy")
    for window in pair:
        await expect(window.row("Everyone")).to_contain_text("3 online")
        await expect(window.row("Cy")).to_be_visible()
    await cy.context.close()
    await ana.reads("Cy went offline")
    await expect(bo.row("Cy")).to_have_count(0)
    await expect(ana.row("lobby")).to_contain_text("2 members")
    await bo.page.get_by_title("Change your nickname").click()
    await bo.page.get_by_role("textbox", name="Nickname").fill("Bodo")
    await bo.page.get_by_role("button", name="Save").click()
    await ana.reads("Bo is now called Bodo")
    await expect(ana.row("Bodo")).to_be_visible()


async def test_a_room_has_its_messages_and_its_members(pair: tuple[Window, Window]) -> None:
    ana, bo = pair
    await ana.go("lobby")
    await ana.say("Tea is ready")
    await expect(ana.message("Tea is ready")).to_contain_text("Sent")
    await expect(bo.row("lobby")).to_contain_text("1")
    await bo.go("lobby")
    await expect(bo.message("Tea is ready")).to_contain_text("Ana")
    await ana.page.get_by_role("button", name="Open a room").click()
    await ana.page.get_by_label("Name of the room").fill("tea room")
    await ana.page.get_by_role("button", name="Open", exact=True).click()
    await expect(bo.row("tea room")).to_contain_text("1 member")
    await bo.go("tea room")
    await bo.reads("You are not in this room")
    await expect(bo.page.get_by_role("textbox")).to_have_count(0)
    await ana.say("only for members")
    await bo.page.get_by_role("button", name="Join tea room").click()
    await ana.reads("Bo joined")
    for window in pair:
        await expect(window.row("tea room")).to_contain_text("2 members")
    await bo.say("here I am")
    await ana.reads("here I am")
    await expect(bo.log).not_to_contain_text("only for members")
    await ana.page.get_by_role("button", name="Leave").click()
    await bo.reads("Ana left")
    await expect(bo.row("tea room")).to_contain_text("1 member")


async def test_a_broadcast_reaches_everybody_wherever_they_are(pair: tuple[Window, Window]) -> None:
    ana, bo = pair
    await bo.go("lobby")
    await ana.go("Everyone")
    await ana.say("We close at six")
    await expect(bo.page.get_by_role("button", name="Ana to everybody: We close at six")).to_be_visible()
    await bo.page.get_by_role("button", name="Ana to everybody: We close at six").click()
    await expect(bo.message("We close at six")).to_have_count(1)
    await expect(ana.message("We close at six")).to_have_count(1)


async def test_a_message_to_one_person_shows_whether_it_arrived(pair: tuple[Window, Window]) -> None:
    ana, bo = pair
    await ana.go("Bo")
    await ana.say("psst")
    await expect(ana.message("psst")).to_contain_text("Delivered")
    await bo.go("Ana")
    await bo.reads("psst")
    await bo.say("what?")
    await ana.reads("what?")
    await bo.context.close()
    await ana.reads("Bo went offline")
    await ana.say("still there?")
    await expect(ana.message("still there?")).to_contain_text("Not online")
    await expect(ana.message("psst")).to_contain_text("Delivered")


async def test_a_file_is_announced_and_then_there_to_be_saved(pair: tuple[Window, Window], tmp_path: Path) -> None:
    ana, bo = pair
    await bo.go("Ana")
    await ana.go("Bo")
    slow = await ana.context.new_cdp_session(ana.page)
    await slow.send(
        "Network.emulateNetworkConditions",
        {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 100_000},
    )
    content = b"0123456789" * 20_000
    await ana.send_file("<b>numbers & more.txt", content)
    await bo.reads("<b>numbers & more.txt", "200 kB", "Being sent…")
    await ana.reads("Uploading…")
    link = bo.page.get_by_role("link", name="Download <b>numbers & more.txt")
    await expect(link).to_be_visible()
    await expect(bo.log).not_to_contain_text("Being sent…")
    await expect(ana.message("numbers")).to_contain_text("Delivered")
    async with bo.page.expect_download() as saving:
        await link.click()
    saved = await saving.value
    assert saved.suggested_filename.endswith(".txt")
    await saved.save_as(tmp_path / "saved")
    assert (tmp_path / "saved").read_bytes() == content
    await expect(bo.message("numbers")).to_have_count(1)


async def test_a_file_that_is_too_large_is_not_even_begun(pair: tuple[Window, Window]) -> None:
    ana, _ = pair
    await ana.go("Bo")
    await ana.send_file("film", b"x" * (10 * 1024 * 1024 + 1))
    await expect(ana.page.get_by_role("button", name=re.compile("film is larger than"))).to_be_visible()
    await expect(ana.log.get_by_role("article")).to_have_count(0)


async def test_a_restart_of_the_app_in_the_middle_of_a_chat_disconnects_nobody(
    stage: Stage, pair: tuple[Window, Window]
) -> None:
    ana, bo = pair
    await ana.go("lobby")
    await bo.go("lobby")
    await ana.say("before")
    await bo.reads("before")
    stage.stop_app()
    await ana.say("into the void")
    await expect(ana.message("into the void")).to_contain_text("The app does not answer.")
    stage.start_app()
    await ana.page.get_by_role("button", name="Try again").click()
    await bo.reads("into the void")
    await bo.say("after")
    await ana.reads("after")
    # A newcomer hears from the new app what the others are called, which it has heard from them.
    cy = await stage.window()
    await cy.enter("Cy")
    for name in ("Ana", "Bo"):
        await expect(cy.row(name)).to_be_visible()
    await expect(cy.row("lobby")).to_contain_text("3 members")
    for window in pair:
        assert window.sockets == 1
        assert await window.states() == ["connecting", "open"]
        await expect(window.log).not_to_contain_text("went offline")


async def test_both_come_back_by_themselves_after_a_restart_of_the_node(
    stage: Stage, pair: tuple[Window, Window]
) -> None:
    ana, bo = pair
    await ana.go("lobby")
    await bo.go("lobby")
    await ana.say("before")
    await bo.reads("before")
    stage.stop_node()
    for window in pair:
        await expect(window.page.get_by_role("alert").first).to_have_text(
            "The connection is lost. It comes back by itself."
        )
    await ana.page.get_by_role("textbox", name="Message").fill("written meanwhile")
    await expect(ana.page.get_by_role("button", name="Send", exact=True)).to_be_disabled()
    stage.start_node()
    for window in pair:
        await window.connected()
        await expect(window.row("lobby")).to_contain_text("2 members")
        assert window.sockets > 1
    await expect(ana.page.get_by_role("textbox", name="Message")).to_have_value("written meanwhile")
    await ana.page.get_by_role("button", name="Send", exact=True).click()
    await bo.reads("before", "written meanwhile")
    await bo.say("me too")
    await ana.reads("me too")


async def test_who_goes_offline_stays_there_until_they_come_back(pair: tuple[Window, Window]) -> None:
    ana, bo = pair
    await bo.page.get_by_role("button", name="Go offline").click()
    await expect(bo.page.get_by_role("heading", name="You are offline")).to_be_visible()
    await expect(ana.row("Bo")).to_have_count(0)
    await expect(ana.row("lobby")).to_contain_text("1 member")
    await bo.page.keyboard.press("Escape")
    assert (await bo.states())[-1] == "forced"
    await bo.page.get_by_role("button", name="Come back").click()
    await bo.connected()
    await expect(ana.row("Bo")).to_be_visible()
    await expect(ana.row("lobby")).to_contain_text("2 members")
    assert bo.sockets == 2


async def test_who_is_signed_in_elsewhere_stays_away_until_they_want_it_back(
    stage: Stage, pair: tuple[Window, Window]
) -> None:
    ana, bo = pair
    stage.stop_node()
    stage.start_node("--max-per-client", "1", "--per-client-policy", "replace-oldest")
    for window in pair:
        await window.connected()
    before = ana.sockets
    second = Window(ana.context, await ana.context.new_page())
    await second.page.goto(ana.page.url)
    await second.connected()
    await expect(ana.page.get_by_role("heading", name="You are signed in elsewhere")).to_be_visible()
    await ana.page.keyboard.press("Escape")
    # Longer than the first pause before a page comes back, and what else wakes it.
    await ana.page.evaluate("dispatchEvent(new Event('online'))")
    await ana.page.wait_for_timeout(2500)
    await expect(ana.page.get_by_role("heading", name="You are signed in elsewhere")).to_be_visible()
    assert (ana.sockets, second.sockets) == (before, 1), "no fight"
    assert (await ana.states())[-1] == "replaced"
    await expect(bo.row("Everyone")).to_contain_text("2 online")
    await second.go("lobby")
    await second.say("from the newer one")
    await bo.go("lobby")
    await bo.reads("from the newer one")
    await second.page.get_by_role("button", name="中文").click()
    await ana.page.get_by_role("button", name="Use it here").click()
    await ana.connected()
    await expect(second.page.get_by_role("heading", name="你已在别处登录")).to_be_visible()
    await expect(second.page.get_by_role("button", name="在此使用")).to_be_visible()
    await second.page.wait_for_timeout(2500)
    assert (ana.sockets, second.sockets) == (before + 1, 1)
    await ana.go("lobby")
    await ana.say("here again")
    await bo.reads("here again")


async def test_a_reload_and_a_second_window_are_the_same_person(pair: tuple[Window, Window]) -> None:
    ana, bo = pair
    await ana.page.reload()
    await ana.connected()
    await expect(ana.page.locator("#me-name")).to_have_text("Ana")
    await expect(bo.row("lobby")).to_contain_text("2 members")
    second = Window(ana.context, await ana.context.new_page())
    await second.page.goto(ana.page.url)
    await second.connected()
    await expect(bo.row("Everyone")).to_contain_text("2 online")
    await ana.go("lobby")
    await second.go("lobby")
    await bo.go("lobby")
    await ana.say("from the first")
    await second.reads("from the first")
    await bo.say("to both")
    await ana.reads("to both")
    await second.reads("to both")
    await expect(bo.message("from the first")).to_have_count(1)
    await expect(ana.message("from the first")).to_have_count(1)


async def on_phone(stage: Stage, **options: Any) -> Window:
    return await stage.window(viewport={"width": 360, "height": 640}, is_mobile=True, has_touch=True, **options)


async def test_on_a_phone_the_list_and_the_chat_are_two_pages_and_nothing_is_too_wide(stage: Stage) -> None:
    phone, bo = await on_phone(stage), await stage.window()

    async def check() -> None:
        wide = await phone.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide == [360, 360]

    await check()
    await phone.enter("W" * 24)
    await bo.enter("Bo")
    await check()
    await phone.go("Bo")
    await check()
    await expect(phone.page.get_by_role("navigation")).to_be_hidden()
    await phone.page.get_by_role("textbox", name="Message").fill("x" * 300)
    await phone.page.get_by_role("textbox", name="Message").press("Enter")
    await phone.page.get_by_role("button", name="Send", exact=True).click()
    await expect(phone.message("xxx")).to_contain_text("Delivered")
    await check()
    await phone.page.get_by_role("link", name="Back").click()
    await expect(phone.page.get_by_role("navigation")).to_be_visible()
    await bo.go("lobby")
    await bo.say("y" * 300)
    await expect(phone.row("lobby")).to_contain_text("1")
    await phone.go("lobby")
    await phone.reads("yyy")
    await check()
    await phone.page.go_back()
    await expect(phone.page.get_by_role("navigation")).to_be_visible()


async def test_the_page_speaks_chinese(stage: Stage, pair: tuple[Window, Window]) -> None:
    ana, _ = pair
    cy = await stage.window(locale="zh-CN")
    await cy.page.get_by_role("textbox", name="昵称").fill("小明")
    await cy.page.get_by_role("button", name="开始聊天").click()
    await cy.connected("已连接")
    await expect(cy.page.get_by_role("link", name=re.compile("lobby"))).to_contain_text("3 位成员")
    await cy.page.get_by_role("link", name=re.compile("Ana")).click()
    await cy.page.get_by_role("textbox", name="输入消息").fill("你好")
    await cy.page.get_by_role("textbox", name="输入消息").press("Enter")
    await expect(cy.message("你好")).to_contain_text("已送达")
    await ana.go("小明")
    await ana.reads("你好")
    assert await cy.page.locator("html").get_attribute("lang") == "zh-CN"
    await cy.page.get_by_role("button", name="English").click()
    await cy.connected("Connected")
    await expect(cy.message("你好")).to_contain_text("Delivered")
    await cy.page.reload()
    await cy.connected("Connected")


async def test_every_text_exists_in_both_languages(stage: Stage) -> None:
    window = await stage.window()
    source: Callable[..., Awaitable[str]] = window.page.evaluate
    text = await source("fetch('/static/i18n.js').then((response) => response.text())")
    english, chinese = text.split("\n  zh: {")
    pattern = r'(?:^|[{,] |^ +)"?([\w-]+)"?: (?=["{])'
    assert set(re.findall(pattern, english, re.MULTILINE)) - {"en"} == set(
        re.findall(pattern, chinese.partition("\n  },")[0], re.MULTILINE)
    ) | {"one"}
