"""The grace after the start of a node: what is kept for clients that come back, against a model with a box for each."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from freeim._core import Logs, Message
from tests.core.test_router import IDS, Desk, Model, ModelClient, ModelMessage, RouterMachine


class GraceModel(Model):
    """In the grace each client without a connection has a box, in which everything waits for it."""

    def __init__(self, tracking: bool) -> None:
        super().__init__(tracking)
        self.boxes: dict[bytes, list[ModelMessage]] | None = None
        self.came: dict[bytes, int] = {}

    def begin_grace(self) -> None:
        if self.boxes is None:
            self.boxes = {}
            for client_id in (*IDS, b"99"):
                client = self.clients.get(client_id)
                if client is None or not client.open_connections():
                    self.boxes[client_id] = [] if client is None else list(client.waiting or ())

    def end_grace(self) -> None:
        if self.boxes is None:
            return
        boxes, self.boxes = self.boxes, None
        kept = {message.number: message for box in boxes.values() for message in box}
        for _, message in sorted(kept.items()):
            for receiver in message.to if message.kind == "direct" else ():
                if message in boxes.get(receiver, ()):
                    self.receipt(message, receiver, False)
        for client_id in boxes:
            client = self.clients.get(client_id)
            if client is not None and client.waiting is not None:
                client.waiting = []
                client.since = self.routed

    def opens(self, client: ModelClient, fresh: bool) -> None:
        super().opens(client, fresh)
        if fresh:
            self.came[client.id] = self.routed
        if self.boxes is not None and not client.open_connections():
            client.waiting = self.boxes.pop(client.id)
            client.established = False
            self.came[client.id] = self.routed

    def closed(self, client: ModelClient) -> None:
        if self.boxes is not None and not client.open_connections() and client.id not in self.boxes:
            self.boxes[client.id] = list(client.waiting or ())

    def route(self, message: ModelMessage) -> None:
        boxes = list((self.boxes or {}).values())
        super().route(message)
        for box in boxes:
            box.append(message)

    def receipt(self, message: ModelMessage, receiver: bytes, delivered: bool) -> None:
        if delivered or self.boxes is None:
            super().receipt(message, receiver, delivered)

    def hand_over(self, client: ModelClient, message: ModelMessage) -> None:
        if message.kind != "force" or message.number > self.came[client.id]:
            super().hand_over(client, message)

    def settle(self, client: ModelClient) -> None:
        waiting, client.waiting = client.waiting, None
        for message in waiting or ():
            if self.boxes is None or client.open_connections():
                self.hand_over(client, message)
            elif client.id in self.boxes and message not in self.boxes[client.id]:
                self.boxes[client.id].append(message)


class RouterInGraceMachine(RouterMachine):
    model: GraceModel

    def __init__(self) -> None:
        super().__init__()
        self.model = GraceModel(self.tracking)

    @rule()
    def the_grace_begins(self) -> None:
        self.router.begin_grace()
        self.model.begin_grace()

    @rule(often=st.integers(0, 4))
    def the_grace_ends(self, often: int) -> None:
        if often == 0:
            self.router.end_grace()
            self.model.end_grace()

    @invariant()
    def receipts_agree_in_their_order(self) -> None:
        assert self.receipts == self.model.receipts

    @invariant()
    def the_window_holds_what_the_oldest_waiting_client_needs_and_no_more(self) -> None:
        if self.model.boxes is None:
            assert self.router.kept_since is None
            assert self.router.away() == {}
            since = [
                client.waiting[0].number - 1 if client.waiting else self.model.routed
                for client in self.model.clients.values()
                if client.waiting is not None
            ]
            assert self.router.pending_count == len(since)
            assert self.router.window_size >= (self.model.routed - min(since) if since else 0)
            if not since:
                assert self.router.window_size == 0


RouterInGraceMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=60)

TestRouterInTheGraceAgreesWithItsModelWhateverHappens = RouterInGraceMachine.TestCase


# ---- the rules one by one


def direct(text: str, *receivers: bytes, receipt: bool = True) -> Message:
    return Message.direct(b"9", list(receivers), text.encode(), receipt)


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.router.begin_grace()
    return desk


def test_who_comes_in_the_grace_gets_what_was_kept_and_receipts_come_with_it(desk: Desk) -> None:
    desk.router.route(direct("first", b"1", b"2"))
    desk.router.route(Message.channel_message(b"0", b"room", b"to the room"))
    desk.router.route(Message.channel_message(b"0", None, b"to all"))
    assert desk.receipts == []
    assert desk.got(desk.connect(b"1", b"room")) == [b"first", b"to the room", b"to all"]
    assert desk.receipts == [(b"first", b"1", True)]
    desk.router.end_grace()
    assert desk.receipts == [(b"first", b"1", True), (b"first", b"2", False)]
    assert desk.router.window_size == 0


def test_who_closes_and_comes_again_gets_only_what_came_since(desk: Desk) -> None:
    desk.router.route(direct("before", b"1"))
    first = desk.connect(b"1")
    desk.router.route(direct("while here", b"1"))
    desk.router.retire(first)
    desk.router.route(direct("while closing", b"1"))
    desk.router.detach(first)
    desk.router.route(direct("while away", b"1"))
    assert desk.got(first) == [b"before", b"while here"]
    assert desk.got(desk.connect(b"1")) == [b"while closing", b"while away"]


def test_an_order_to_go_is_not_for_a_connection_that_came_after_it(desk: Desk) -> None:
    desk.router.route(Message.force_offline(b"1"))
    desk.router.route(direct("kept", b"1"))
    connection = desk.connect(b"1")
    assert desk.got(connection) == [b"kept"]
    assert not connection.closing
    desk.router.route(Message.force_offline(b"1"))
    assert connection.closing


def test_where_too_much_is_kept_the_oldest_go_first_and_are_counted() -> None:
    desk = Desk(window_limit=4_000)
    desk.router.begin_grace()
    for number in range(100):
        desk.router.route(direct(f"{number}", b"1", b"2"))
    assert desk.router.window_bytes <= 4_000 + 400  # one message more, with two receivers
    got = [int(text) for text in desk.got(desk.connect(b"1"))]
    assert got == list(range(100 - len(got), 100))
    assert 10 < len(got) < 20
    assert desk.router.forgotten == 100 - len(got)
    assert desk.router.dropped == 0
    # Those that were forgotten have been answered; the others when the client came, or when the grace ends.
    assert [int(text) for text, receiver, _ in desk.receipts if receiver == b"1"] == list(range(100))
    assert {delivered for text, receiver, delivered in desk.receipts if receiver == b"1" and int(text) in got} == {True}
    desk.router.end_grace()
    assert [(int(text), said) for text, receiver, said in desk.receipts if receiver == b"2"] == [
        (number, False) for number in range(100)
    ]


def test_where_too_much_is_kept_an_order_to_go_is_carried_out_before_it_is_forgotten() -> None:
    desk = Desk(window_limit=4_000)
    desk.router.begin_grace()
    desk.router.route(Message.force_offline(b"2"))
    one, two = desk.begin(b"1"), desk.begin(b"2")
    desk.router.route(Message.force_offline(b"1"))
    for number in range(30):
        desk.router.route(direct(f"{number}", b"1"))
    assert one.closing
    assert not two.closing, "it came after its own"
    assert desk.router.forgotten == 30 - desk.router.window_size, "it is no message that was lost"
    desk.router.members(one.client, [])
    desk.router.confirm(one)
    one.attach_transport(desk.wires[one], -1)
    assert desk.got(one) == [b"close"]


def test_who_is_sent_away_in_its_replay_gets_later_only_what_came_behind_the_order(desk: Desk) -> None:
    connection = desk.begin(b"1")
    desk.router.route(direct("before", b"1"))
    desk.router.route(Message.force_offline(b"1"))
    desk.router.route(direct("behind", b"1"))
    desk.router.members(connection.client, [])
    desk.router.confirm(connection)
    connection.attach_transport(desk.wires[connection], -1)
    assert desk.got(connection) == [b"before", b"close"]
    desk.router.detach(connection)
    assert desk.got(desk.connect(b"1")) == [b"behind"]


# ---- the grace of a hand-over


@pytest.fixture
def successor() -> Desk:
    desk = Desk()
    desk.router.elsewhere = {b"1": 1}
    desk.router.begin_grace(in_two=True)
    return desk


def test_in_a_hand_over_receipts_are_answered_at_once_and_not_again(successor: Desk) -> None:
    successor.router.route(direct("m", b"1", b"2", b"3"))
    assert successor.receipts == [(b"m", b"1", True), (b"m", b"2", False), (b"m", b"3", False)]
    assert successor.got(successor.connect(b"2")) == [b"m"]
    successor.router.end_grace()
    assert len(successor.receipts) == 3


def test_who_has_a_connection_at_the_other_instance_gets_nothing_older(successor: Desk) -> None:
    successor.router.route(direct("heard there", b"1"))
    assert successor.got(successor.connect(b"1")) == []


def test_what_a_client_has_had_elsewhere_before_it_came_here_is_not_repeated(successor: Desk) -> None:
    """The other instance was ahead: the message comes here when the client waits already."""
    router = successor.router
    router.route(direct("heard there", b"1"))
    router.elsewhere = {}
    router.set_away(b"1", router.position)
    assert router.away_since(b"1") == router.position
    connection = successor.begin(b"1")
    assert router.away_since(b"1") is None
    router.set_away(b"1", router.position + 1)
    router.route(direct("heard there too", b"1"))
    router.route(direct("missed", b"1"))
    router.members(connection.client, [])
    router.confirm(connection)
    connection.attach_transport(successor.wires[connection], -1)
    assert successor.got(connection) == [b"missed"]


def test_what_is_in_the_log_of_who_is_away_is_not_kept_for_it_again(desk: Desk) -> None:
    router = desk.router
    connection = desk.connect(b"1")
    client = connection.client
    client.log = Logs(100_000, 100_000).add()
    router.retire(connection)
    client.log.away = 1
    router.route(direct("in the log", b"1"))
    assert client.log.last == 1
    router.hold_all()
    router.route(direct("and while the membership is read", b"1"))
    router.members(client, [])
    assert client.log.last == 2
    router.hold_all()
    router.route(direct("and at the end of the grace", b"1"))
    router.end_grace()
    router.members(client, [])
    assert client.log.last == 3
    assert desk.receipts == [
        (b"in the log", b"1", True),
        (b"and while the membership is read", b"1", True),
        (b"and at the end of the grace", b"1", True),
    ]


@pytest.mark.parametrize("comes_back", [True, False])
def test_what_went_into_a_log_is_answered_once_also_where_the_log_ends_within_the_grace(
    desk: Desk, comes_back: bool
) -> None:
    router = desk.router
    connection = desk.connect(b"1")
    connection.client.log = log = Logs(100_000, 100_000).add()
    router.retire(connection)
    log.away = 1
    router.route(direct("in the log", b"1", b"2"))
    log.away = 0  # the window is over: nobody has come back for it
    connection.client.log = None
    router.detach(connection)
    router.route(direct("behind it", b"1"))
    if comes_back:
        assert desk.got(desk.connect(b"1")) == [b"in the log", b"behind it"], "it is delivered all the same"
    router.end_grace()
    assert desk.receipts == [
        (b"in the log", b"1", True),
        *([(b"behind it", b"1", True)] if comes_back else []),
        (b"in the log", b"2", False),
        *([] if comes_back else [(b"behind it", b"1", False)]),
    ]


def test_what_went_into_a_log_is_answered_once_also_where_the_grace_ends_before_the_replay(desk: Desk) -> None:
    router = desk.router
    first = desk.connect(b"1")
    first.client.log = Logs(100_000, 100_000).add()
    router.retire(first)
    first.client.log.away = 1
    router.route(direct("in the log", b"1"))
    first.client.log.away = 0
    first.client.log = None
    router.detach(first)
    second = desk.begin(b"1")
    router.end_grace()
    router.route(direct("newer", b"1"))
    router.members(second.client, [])
    router.confirm(second)
    second.attach_transport(desk.wires[second], -1)
    assert desk.got(second) == [b"in the log", b"newer"]
    assert desk.receipts == [(b"in the log", b"1", True), (b"newer", b"1", True)]


def test_a_full_window_makes_room_for_each_message_and_no_more() -> None:
    desk = Desk(window_limit=400_000)
    desk.router.begin_grace()
    for number in range(3_000):
        before = desk.router.forgotten
        desk.router.route(direct(f"{number:04}", b"1"))
        assert desk.router.forgotten - before <= 2, "many are dropped in one step"
    assert desk.router.forgotten > 1_000


def test_in_a_hand_over_a_receipt_for_who_is_closing_comes_also_where_its_membership_is_being_read() -> None:
    desk = Desk()
    desk.router.begin_grace(in_two=True)
    connection = desk.connect(b"1")
    desk.router.retire(connection)
    desk.router.invalidate(b"1")
    desk.router.route(direct("m", b"1"))
    desk.router.members(connection.client, [])
    desk.router.detach(connection)
    desk.router.end_grace()
    assert desk.receipts == [(b"m", b"1", False)]


@pytest.mark.parametrize("grace", [None, False, True])
def test_what_there_is_no_room_for_is_answered_for_who_waits_too(grace: bool | None) -> None:
    desk = Desk(window_limit=2_000)
    if grace is not None:
        desk.router.begin_grace(in_two=grace)
    connection = desk.begin(b"1")
    for number in range(30):
        desk.router.route(direct(f"{number}", b"1"))
    lost = [text for text, _, delivered in desk.receipts if not delivered]
    assert len(lost) == len(desk.receipts) == desk.router.dropped + desk.router.forgotten > 10
    desk.router.members(connection.client, [])
    desk.router.confirm(connection)
    connection.attach_transport(desk.wires[connection], -1)
    assert sorted(desk.got(connection) + lost) == sorted(b"%d" % number for number in range(30))
    desk.router.end_grace()
    assert sorted(text for text, _, _ in desk.receipts) == sorted(b"%d" % number for number in range(30))


def test_who_goes_while_a_message_is_on_its_way_to_many_is_answered_for_once() -> None:
    desk = Desk(slice_ms=0)
    desk.connect(b"1")
    opening = desk.begin(b"2")
    assert desk.router.route(direct("m", b"1", b"3", b"2")) is not None
    desk.router.members(opening.client, [])
    desk.router.detach(opening)
    desk.router.finish()
    assert sorted(desk.receipts) == [(b"m", b"1", True), (b"m", b"2", False), (b"m", b"3", False)]


def test_in_a_hand_over_a_receipt_for_who_gave_up_opening_comes_also_where_the_grace_ends_first() -> None:
    desk = Desk()
    desk.router.begin_grace(in_two=True)
    opening = desk.begin(b"1")
    desk.router.route(direct("m", b"1"))
    desk.router.detach(opening)
    desk.router.end_grace()
    desk.router.members(opening.client, [])
    assert desk.receipts == [(b"m", b"1", False)]
