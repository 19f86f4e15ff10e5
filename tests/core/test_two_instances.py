"""What the router knows of another instance of its node's name: connections elsewhere, and whose receipts are whose."""

from __future__ import annotations

import pytest

from tests.core.test_router import SYSTEM, Desk


@pytest.mark.parametrize("kind", ["direct", "channel", "broadcast"])
def test_a_sender_with_a_connection_elsewhere_gets_his_own_message_here(kind: str) -> None:
    desk = Desk()
    one = desk.connect(b"1", b"red")
    say = {
        "direct": lambda text: desk.direct(b"1", [b"1"], text),
        "channel": lambda text: desk.say(b"1", b"red", text),
        "broadcast": lambda text: desk.say(b"1", None, text),
    }[kind]
    say(b"alone")
    desk.router.elsewhere = {b"2": 1}
    say(b"another is elsewhere")
    desk.router.elsewhere[b"1"] = 1
    say(b"both")
    desk.router.elsewhere = None
    say(b"alone again")
    assert desk.got(one) == [b"both"]


def test_a_receiver_that_is_elsewhere_counts_as_reached() -> None:
    desk = Desk()
    desk.connect(b"1")
    desk.router.elsewhere = {b"2": 1}
    desk.direct(b"9", [b"1", b"2", b"3"], b"x", receipt=True)
    assert desk.receipts == [(b"x", b"1", True), (b"x", b"2", True), (b"x", b"3", False)]


def test_receipts_are_answered_up_to_a_place_in_the_stream_also_where_their_messages_have_waited() -> None:
    desk = Desk()
    one = desk.connect(b"1")
    desk.router.invalidate(b"1")
    desk.direct(b"9", [b"1"], b"before", receipt=True)
    desk.router.mute_receipts()
    desk.direct(b"9", [b"1"], b"muted", receipt=True)
    desk.router.mute_receipts()  # said twice it is the same
    desk.router.unmute_receipts()
    desk.direct(b"9", [b"1"], b"after", receipt=True)
    desk.router.unmute_receipts()
    desk.router.members(one.client, [])
    assert desk.got(one) == [b"before", b"muted", b"after"]
    assert desk.receipts == [(b"before", b"1", True), (b"after", b"1", True)]


def test_messages_that_have_come_and_are_not_routed_yet_can_be_left_out() -> None:
    desk = Desk()
    desk.router.mute_receipts(ahead=1)
    desk.direct(b"9", [b"1"], b"before", receipt=True)
    desk.direct(b"9", [b"1"], b"muted", receipt=True)
    desk.router.unmute_receipts(ahead=1)
    desk.direct(b"9", [b"1"], b"muted too", receipt=True)
    desk.direct(b"9", [b"1"], b"after", receipt=True)
    assert [text for text, _, _ in desk.receipts] == [b"before", b"after"]


def test_a_router_opens_at_its_payload_in_the_stream() -> None:
    others: list[bytes] = []
    desk = Desk(on_other=lambda payload, _: others.append(payload))
    one = desk.connect(b"1")
    router = desk.router
    router.open = False
    router.opener = b"the mark"
    payload = b'{"Item1":0,"Item2":[1],"Item3":"\\"%s\\"","Item4":false}'
    assert router.take(payload % b"before") is None
    router.take(b"the mark")
    assert router.open
    assert others == [b"the mark"]
    router.take(payload % b"after")
    assert desk.got(one) == [b'"after"']
    assert router.system == SYSTEM
