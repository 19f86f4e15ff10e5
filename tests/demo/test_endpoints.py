"""What the endpoints of the app do."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from freeim.demo import checks
from tests.cli.command import Server
from tests.demo.demo import KEY, Demo, Visitor, failure, running_app
from tests.servers import RedisServer

pytestmark = pytest.mark.slow

Visit = Callable[[str], Visitor]


# Who somebody is


def test_a_first_visitor_gets_an_id_that_javascript_holds_exactly_and_a_url_that_connects(visit: Visit) -> None:
    ana = visit("  Ana ")
    assert 0 < ana.id < 2**53
    assert ana.http.get("/me").json()["me"] == {"id": ana.id, "name": "Ana"}
    assert ana.hear("online", id=ana.id)["name"] == "Ana"


def test_a_visitor_keeps_the_id_and_may_change_the_name(visit: Visit) -> None:
    ana, bo = visit("Ana"), visit("Bo")
    assert ana.ok("/ws/pre-connect")["websocketId"] == ana.id
    assert ana.ok("/me/name", name="Anna") == {"name": "Anna"}
    assert bo.hear("name", id=ana.id)["name"] == "Anna"
    assert ana.ok("/ws/pre-connect") | {"server": ""} == {"websocketId": ana.id, "name": "Anna", "server": ""}
    assert ana.ok("/ws/pre-connect", name="Annie")["name"] == "Annie"
    assert ana.http.get("/me").json()["me"] == {"id": ana.id, "name": "Annie"}


def test_the_cookie_is_out_of_reach_of_scripts_and_of_other_sites(app: Demo) -> None:
    response = httpx.post(f"{app.page()}/ws/pre-connect", trust_env=False, json={"name": "Ana"})
    flags = {each.strip().lower() for each in response.headers["set-cookie"].split(";")[1:]}
    assert {"httponly", "samesite=lax", "path=/"} <= flags


def test_an_identity_outlives_the_app(redis_server: RedisServer, node: Server) -> None:
    with running_app(redis_server.url) as app:
        ana = Visitor(app.page(), "Ana")
        port = int(app.page().rpartition(":")[2])
    with running_app(redis_server.url, port=port):
        assert ana.ok("/ws/pre-connect")["websocketId"] == ana.id
    ana.close()


def test_the_longest_that_is_allowed_is_allowed(visit: Visit) -> None:
    ana = visit("好" * checks.NAME_LENGTH)
    assert ana.ok("/ws/subscr-channel", channel="间" * checks.ROOM_LENGTH)
    ana.ok("/ws/send-broadcast", message="\U0001f600" * checks.TEXT_LENGTH, key=KEY)
    assert ana.hear("everyone")["text"] == "\U0001f600" * checks.TEXT_LENGTH


def test_a_room_message_reaches_the_members_and_nobody_else(visit: Visit) -> None:
    ana, bo, cy = visit("Ana"), visit("Bo"), visit("Cy")
    ana.ok("/ws/subscr-channel", channel="tea")
    bo.ok("/ws/subscr-channel", channel=" tea ")
    assert ana.hear("joined", channel="tea")["name"] == "Bo"
    bo.ok("/ws/send-channelmsg", channel="tea", message=" hello\nall ", key=KEY)
    letter = ana.hear("room")
    assert letter.pop("at") > 1.7e12
    assert letter == {"type": "room", "from": bo.id, "name": "Bo", "channel": "tea", "text": "hello\nall", "key": KEY}
    assert cy.heard("room") == []


def test_only_a_member_can_write_to_a_room(visit: Visit) -> None:
    ana, bo = visit("Ana"), visit("Bo")
    ana.ok("/ws/subscr-channel", channel="tea")
    failure(bo.post("/ws/send-channelmsg", channel="tea", message="hi", key=KEY), 403, "not-in-room")
    assert ana.heard("room") == []
    bo.ok("/ws/subscr-channel", channel="tea")
    bo.ok("/ws/send-channelmsg", channel="tea", message="hi", key=KEY)
    ana.hear("room")


def test_the_counts_are_told_after_a_join_a_leave_and_the_end_of_a_connection(visit: Visit) -> None:
    ana, bo = visit("Ana"), visit("Bo")
    for who, count in ((ana, 1), (bo, 2)):
        who.ok("/ws/subscr-channel", channel="tea")
        ana.hear("channels", channels=[{"channel": "tea", "online": count}])
    assert ana.ok("/ws/get-channels") == {"channels": [{"channel": "tea", "online": 2}]}
    ana.ok("/ws/leave-channel", channel="tea")
    assert bo.hear("left", channel="tea")["from"] == ana.id
    ana.hear("channels", channels=[{"channel": "tea", "online": 1}])
    bo.disconnect()
    ana.hear("offline", id=bo.id)
    ana.hear("channels", channels=[])


def test_a_room_is_for_those_who_are_connected(visit: Visit) -> None:
    ana, bo = visit("Ana"), visit("Bo")
    bo.disconnect()
    ana.hear("offline", id=bo.id)
    failure(bo.post("/ws/subscr-channel", channel="tea"), 409, "not-connected")
    assert ana.ok("/ws/get-channels") == {"channels": []}


def test_nobody_is_in_more_than_thirty_rooms(visit: Visit) -> None:
    ana = visit("Ana")
    for number in range(30):
        ana.ok("/ws/subscr-channel", channel=f"room {number}")
    failure(ana.post("/ws/subscr-channel", channel="one more"), 409, "too-many-rooms")
    ana.ok("/ws/subscr-channel", channel="room 7")


def test_a_page_that_comes_back_to_a_room_is_not_announced(visit: Visit) -> None:
    ana, bo = visit("Ana"), visit("Bo")
    ana.ok("/ws/subscr-channel", channel="tea")
    bo.ok("/ws/subscr-channel", channel="tea", again=True)
    assert ana.heard("joined") == []


def test_a_broadcast_reaches_everybody(visit: Visit) -> None:
    ana, bo = visit("Ana"), visit("Bo")
    ana.ok("/ws/send-broadcast", message="all hands", key=KEY)
    for who in (ana, bo):
        letter = who.hear("everyone")
        assert (letter["from"], letter["name"], letter["text"], letter["key"]) == (ana.id, "Ana", "all hands", KEY)


def test_a_message_reaches_one_person_and_its_receipt_the_sender(visit: Visit) -> None:
    ana, bo, cy = visit("Ana"), visit("Bo"), visit("Cy")
    ana.ok("/ws/send-msg", receiveWebsocketId=bo.id, message="psst", isReceipt=True, key=KEY)
    letter = bo.hear("direct")
    assert (letter["from"], letter["to"], letter["text"]) == (ana.id, bo.id, "psst")
    receipt = ana.hear("receipt")
    assert receipt["receipt"] == "发送成功"
    assert KEY in receipt["content"]
    assert cy.heard("direct") == ana.heard("direct") == []


def test_the_receipt_of_a_message_to_somebody_who_left_says_so(visit: Visit) -> None:
    ana, bo = visit("Ana"), visit("Bo")
    bo.disconnect()
    ana.hear("offline", id=bo.id)
    ana.ok("/ws/send-msg", receiveWebsocketId=bo.id, message="psst", isReceipt=True, key=KEY)
    assert ana.hear("receipt")["receipt"] == "用户不在线"


def test_nobody_writes_to_themselves(visit: Visit) -> None:
    ana = visit("Ana")
    failure(ana.post("/ws/send-msg", receiveWebsocketId=ana.id, message="me", key=KEY), 400, "client")


def test_going_offline_closes_the_connections_of_the_one_who_asks_and_no_other(visit: Visit) -> None:
    ana, bo = visit("Ana"), visit("Bo")
    bo.ok("/ws/offline", websocketId=ana.id)
    assert bo.ended() == (1001, "disconnect")
    assert ana.hear("offline", id=bo.id)["name"] == "Bo"


def test_a_second_window_is_no_second_coming_and_its_end_no_going(visit: Visit) -> None:
    ana, bo = visit("Ana"), visit("Bo")
    ana.hear("online", id=bo.id)
    bo.url = bo.ok("/ws/pre-connect")["server"]
    bo.connect()
    # What one window of Bo's sends shows in the other.
    bo.ok("/ws/send-msg", receiveWebsocketId=ana.id, message="from one", key=KEY)
    assert bo.hear("direct", key=KEY)["from"] == bo.id
    bo.disconnect()
    assert ana.heard("online") + ana.heard("offline") == [each for each in ana.seen if each.get("id") == ana.id]
    bo.disconnect()
    ana.hear("offline", id=bo.id)


def test_a_page_that_says_hello_learns_who_is_online_and_where(visit: Visit) -> None:
    ana, bo = visit("Ana"), visit("Bo")
    ana.hear("online", id=bo.id)
    bo.ok("/ws/subscr-channel", channel="tea")
    answer = bo.ok("/me/hello")
    assert sorted(answer["people"], key=lambda each: each["name"]) == [
        {"id": ana.id, "name": "Ana"},
        {"id": bo.id, "name": "Bo"},
    ]
    assert answer["channels"] == [{"channel": "tea", "online": 1}]
    assert answer["joined"] == ["tea"]


def test_a_new_app_asks_the_pages_who_they_are_and_tells_the_others(redis_server: RedisServer, node: Server) -> None:
    with running_app(redis_server.url) as app:
        base = app.page()
        ana, bo = Visitor(base, "Ana"), Visitor(base, "Bo")
        ana.connect()
        bo.connect()
        ana.hear("online", id=bo.id)
    with running_app(redis_server.url, port=int(base.rpartition(":")[2])):
        ana.hear("who")
        assert {each["name"] for each in ana.ok("/me/hello")["people"]} == {"Ana", None}
        bo.hear("who")
        bo.ok("/me/hello")
        assert ana.hear("name", id=bo.id)["name"] == "Bo"
        assert {each["name"] for each in ana.ok("/me/hello")["people"]} == {"Ana", "Bo"}
        ana.disconnect()
        bo.hear("offline", id=ana.id, name="Ana")
    for who in (ana, bo):
        who.close()


def test_members_whom_a_crash_left_behind_are_taken_out_when_the_app_starts(
    redis_server: RedisServer, node: Server
) -> None:
    with redis_server.wire() as wire:
        wire("HSET", "im_v2_wsChantea", "77", "0")
        wire("HSET", "im_v2_wsClient77", "tea", "0")
        wire("HSET", "im_v2_wsListChan", "tea", "1")
    with running_app(redis_server.url) as app, Visitor(app.page(), "Ana") as ana:
        assert ana.ok("/ws/get-channels") == {"channels": []}


def test_without_a_node_the_app_says_that_nothing_can_be_sent(redis_server: RedisServer) -> None:
    with running_app(redis_server.url) as app:
        sentence = failure(
            httpx.post(f"{app.page()}/ws/pre-connect", trust_env=False, json={"name": "Ana"}), 503, "unavailable"
        )
        assert "NoNodes" in sentence
        assert "the chat waits" in app.stderr
