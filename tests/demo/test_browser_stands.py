"""What the page must stand: names that look alike, rooms that are refused, other secrets, messages of others."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import Route, expect

from freeim import ImHelper
from tests.demo.browser import Stage, Window

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(180)]


async def test_what_people_type_is_text_and_never_markup(stage: Stage) -> None:
    ana, bo = await stage.window(), await stage.window()
    await ana.enter("<i>Ana</i>")
    await bo.enter("Bo")
    await ana.go("lobby")
    await bo.go("lobby")
    evil = '<img src="/nothing" onerror="document.title=1"><script>alert(1)</script> {name} ${1}'
    await ana.say(evil)
    await bo.reads(evil, "<i>Ana</i>")
    assert await bo.page.locator("#log img, #log script, #log i").count() == 0


async def test_two_people_of_one_name_are_told_apart(stage: Stage, pair: tuple[Window, Window]) -> None:
    cy = await stage.window()
    await cy.enter("Bo")
    await expect(pair[0].page.get_by_role("link", name=re.compile(r"^Bo #\d{3}"))).to_have_count(2)


@pytest.mark.parametrize("name", ["Bo", "Bo\u200b", "bo"])
async def test_who_takes_the_name_of_another_is_told_apart_in_what_they_say(
    stage: Stage, pair: tuple[Window, Window], name: str
) -> None:
    ana, _ = pair
    numbered = name.replace("\u200b", "") + r"\u200b? #\d{3}"
    cy = await stage.window()
    await cy.enter(name)
    await ana.go("lobby")
    await cy.go("lobby")
    await cy.say("send me the password")
    await expect(ana.message("send me the password").locator(".who")).to_have_text(re.compile(f"^{numbered}$"))
    await cy.go("Everyone")
    await cy.say("all of you")
    await expect(ana.page.get_by_role("button", name=re.compile(f"{numbered} to everybody"))).to_be_visible()


@pytest.mark.parametrize(("status", "reason"), [(503, "unavailable"), (409, "not-connected")])
async def test_a_room_that_cannot_be_had_at_the_moment_is_asked_for_again(
    stage: Stage, status: int, reason: str
) -> None:
    ana = await stage.window()
    await ana.enter("Ana")
    await ana.page.evaluate("""localStorage.setItem('freeim-demo-rooms', '["attic", "cellar"]')""")
    failed: list[str] = []

    async def fail_once(route: Route) -> None:
        if "cellar" in (route.request.post_data or "") and not failed:
            failed.append(reason)
            await route.fulfill(status=status, json={"code": status, "reason": reason, "error": "not now"})
        else:
            await route.continue_()

    await ana.page.route("**/ws/subscr-channel", fail_once)
    await ana.page.reload()
    for room in ("attic", "cellar"):
        await expect(ana.row(room)).to_contain_text("1 member")
    assert failed == [reason]
    ana.complaints.clear()  # the browser's, about the status


async def test_a_room_that_the_app_refuses_is_forgotten_and_keeps_nobody_out_of_the_others(
    pair: tuple[Window, Window],
) -> None:
    ana, _ = pair
    hellos: list[str] = []
    ana.page.on("request", lambda request: hellos.append(request.url) if request.url.endswith("/me/hello") else None)
    remember = "localStorage.setItem('freeim-demo-rooms', JSON.stringify(['x'.repeat(500), 'attic']))"
    await ana.page.evaluate(remember)
    await ana.page.reload()
    await expect(ana.page.locator(".toast")).to_be_visible()
    await ana.connected()
    await expect(ana.row("attic")).to_contain_text("1 member")
    await ana.page.wait_for_timeout(1500)  # longer than the pause after which it would ask again
    assert len(hellos) == 1
    assert await ana.page.evaluate("localStorage.getItem('freeim-demo-rooms')") == '["attic"]'
    ana.complaints.clear()  # the browser's, about the status of the refusal


async def test_who_is_not_known_any_more_is_gone_before_there_is_a_new_one(
    stage: Stage, pair: tuple[Window, Window]
) -> None:
    ana, bo = pair
    stage.stop_app()
    await ana.context.clear_cookies()
    stage.start_app()  # it asks who is there, and does not know Ana
    await ana.page.get_by_role("textbox", name="Nickname").fill("Anna")
    await ana.page.keyboard.press("Enter")
    await ana.connected()
    await expect(bo.row("Anna")).to_be_visible()
    await expect(bo.row("Everyone")).to_contain_text("2 online")
    with ImHelper(stage.redis_server.url) as helper:
        assert len(helper.get_client_list_by_online()) == 2
    ana.complaints.clear()  # the browser's, about the status of the refusal


async def test_what_others_send_through_redis_ends_no_chat(stage: Stage, pair: tuple[Window, Window]) -> None:
    ana, bo = pair
    await ana.go("lobby")
    strange: tuple[object, ...] = (None, 5, [1], True, {}, {"type": 1}, {"type": "toString"}, {"type": "direct"})
    with ImHelper(stage.redis_server.url) as helper:
        for message in (*strange, {"type": "file", "from": 1}, {"receipt": "x"}, {"receipt": "x", "content": "{"}):
            helper.send_broadcast_message(message)
        helper.send_broadcast_message("The node restarts at noon")
    await expect(ana.page.locator(".toast")).to_have_text("The node restarts at noon")
    await bo.go("lobby")
    await bo.say("still here")
    await ana.reads("still here")


async def test_a_long_conversation_does_not_grow_for_ever(stage: Stage, pair: tuple[Window, Window]) -> None:
    ana, _ = pair
    await ana.go("Everyone")
    with ImHelper(stage.redis_server.url) as helper, helper.batch() as batch:
        for number in range(520):
            message = {"from": 1, "name": "Bot", "text": f"number {number}", "key": f"k{number}", "at": number}
            batch.send_broadcast_message({"type": "everyone", **message})
    await expect(ana.log).to_contain_text("number 519", timeout=60_000)
    assert await ana.log.locator(":scope > *").count() == 500
