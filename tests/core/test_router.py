"""Routing against a model of a page: who gets what, in which order, whatever happens in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from freeim import envelope
from freeim._core import Client, Connection, Fanout, Message, Router, control_frame
from tests.core.fakes import FakeTransport, fanout, open_connection

SYSTEM = b"0"
IDS = [b"1", b"2", b"3", b"-4"]
CHANNELS = [b"red", b"blue", "grün".encode()]
CLOSE = control_frame(8, b"\x03\xe9disconnect")

Receipt = tuple[int, bytes, bool]
"""Number of the message, receiver, whether it was delivered."""


# ---- the model: each client has a queue of its own, where the router has one window for all


class ModelMessage:
    def __init__(self, number: int, kind: str, sender: bytes, to: list[bytes], channel: bytes, receipt: bool) -> None:
        self.number = number
        self.kind = kind
        self.sender = sender
        self.to = to
        self.channel = channel
        self.receipt = receipt
        self.members: frozenset[bytes] | None = None


class ModelConnection:
    def __init__(self, number: int) -> None:
        self.number = number
        self.expected: list[bytes] = []
        self.open = True  # may still be delivered to
        self.confirmed = False


class ModelClient:
    def __init__(self, client_id: bytes) -> None:
        self.id = client_id
        self.connections: list[ModelConnection] = []
        self.attached = 0
        self.channels: set[bytes] = set()
        self.reading = False
        self.waiting: list[ModelMessage] | None = None
        self.since = 0
        self.established = False

    def open_connections(self) -> list[ModelConnection]:
        return [connection for connection in self.connections if connection.open]


class Model:
    """The rules of wire-protocol.md and design.md 3, one client at a time."""

    def __init__(self, tracking: bool) -> None:
        self.tracking = tracking
        self.clients: dict[bytes, ModelClient] = {}
        self.receipts: list[Receipt] = []
        self.routed = 0

    def frame(self, message: ModelMessage) -> bytes:
        return control_frame(1, b"%d" % message.number)

    def route(self, message: ModelMessage) -> None:
        if message.kind == "direct":
            for receiver in message.to:
                if receiver not in self.clients:
                    self.receipt(message, receiver, False)
                elif self.clients[receiver].waiting is None:
                    self.direct(self.clients[receiver], message)
            for client in self.clients.values():
                if client.waiting is not None:
                    client.waiting.append(message)
        else:
            for client in list(self.clients.values()):
                if client.waiting is not None:
                    client.waiting.append(message)
                else:
                    self.hand_over(client, message)
        self.routed += 1

    def hand_over(self, client: ModelClient, message: ModelMessage) -> None:
        if message.kind == "direct":
            for receiver in message.to:
                if receiver == client.id:
                    self.direct(client, message)
        elif message.kind == "broadcast":
            self.deliver(client, message)
        elif message.kind == "channel":
            members = message.members
            if message.channel in client.channels if members is None else client.id in members:
                self.deliver(client, message)
        elif message.to == [client.id]:
            for connection in client.open_connections():
                connection.expected.append(CLOSE)
                connection.open = False
            self.closed(client)

    def direct(self, client: ModelClient, message: ModelMessage) -> None:
        here = bool(client.open_connections())
        self.deliver(client, message)
        self.receipt(message, client.id, here)

    def deliver(self, client: ModelClient, message: ModelMessage) -> None:
        connections = client.open_connections()
        if message.sender == client.id and len(connections) == 1:
            return
        for connection in connections:
            connection.expected.append(self.frame(message))

    def receipt(self, message: ModelMessage, receiver: bytes, delivered: bool) -> None:
        if message.receipt and message.sender not in (SYSTEM, receiver):
            self.receipts.append((message.number, receiver, delivered))

    def opens(self, client: ModelClient, fresh: bool) -> None:
        """A connection is about to be added."""
        if fresh:
            self.begin_waiting(client)

    def closed(self, client: ModelClient) -> None:
        """A connection can no longer be delivered to."""

    def begin_waiting(self, client: ModelClient) -> None:
        if client.waiting is None:
            client.waiting = []
            client.since = self.routed

    def settle(self, client: ModelClient) -> None:
        waiting, client.waiting = client.waiting, None
        for message in waiting or ():
            self.hand_over(client, message)

    def end_if_gone(self, client: ModelClient) -> None:
        if client.attached == 0 and not client.reading:
            self.settle(client)
            del self.clients[client.id]


class RouterMachine(RuleBasedStateMachine):
    """Does the same to a Router and to the model, and compares after each step."""

    tracking = True
    slice_ms = 1e9

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(self.tracking)
        self.walk: Fanout = fanout()
        self.rest: Callable[[], Any] | None = None
        """Goes on with the last message."""
        self.receipts: list[Receipt] = []
        self.asked: list[Client] = []
        """Re-reads that the router asked for and that have not been answered."""
        self.real: dict[int, tuple[Connection, FakeTransport, ModelConnection]] = {}
        self.numbers: dict[int, int] = {}
        self.messages = 0

    @initialize(newest=st.sampled_from([0, 2, 512]))
    def start(self, newest: int) -> None:
        """With 512 a replay looks at every message that waits; with less, those before are found by the index."""
        self.router = Router(
            SYSTEM,
            self.on_receipt,
            self.on_reread,
            self.on_force_offline,
            tracking=self.tracking,
            slice_ms=self.slice_ms,
            newest=newest,
        )

    # What the router calls.

    def on_receipt(self, message: Message, receiver: bytes, delivered: bool) -> None:
        self.receipts.append((int(message.text or b"-1"), receiver, delivered))

    def on_reread(self, client: Client) -> None:
        self.asked.append(client)

    def on_force_offline(self, client: Client) -> None:
        for connection in list(client.connections):
            assert connection.begin_close(CLOSE, 1001)
            self.router.retire(connection)

    # What happens.

    @rule(clients=st.lists(st.sampled_from(IDS), min_size=1, max_size=6))
    def connections_begin_to_open(self, clients: list[bytes]) -> None:
        """More come than go, one at a time, or no client would ever have two."""
        for client_id in clients:
            self.a_connection_begins_to_open(client_id)

    def a_connection_begins_to_open(self, client_id: bytes) -> None:
        if client_id in self.model.clients:
            self.finish()  # else it may get a message that came before it
        number = len(self.real) + 1
        connection, transport = open_connection(self.walk, number)
        asked = len(self.asked)
        self.router.attach(client_id, connection)
        client = self.model.clients.get(client_id)
        fresh = client is None
        if client is None:
            client = self.model.clients[client_id] = ModelClient(client_id)
            client.reading = self.tracking
            assert len(self.asked) == asked + self.tracking
        else:
            assert len(self.asked) == asked
        self.model.opens(client, fresh)
        twin = ModelConnection(number)
        client.connections.append(twin)
        client.attached += 1
        self.real[number] = connection, transport, twin

    def choose(self, data: st.DataObject, wanted: list[ModelConnection]) -> ModelConnection | None:
        return data.draw(st.sampled_from(wanted)) if wanted else None

    def attached(self) -> list[tuple[ModelClient, ModelConnection]]:
        return [(client, each) for client in self.model.clients.values() for each in client.connections]

    @rule(data=st.data())
    def redis_counts_a_connection(self, data: st.DataObject) -> None:
        twin = self.choose(data, [each for _, each in self.attached() if not each.confirmed])
        if twin is not None:
            self.confirm(twin)

    def confirm(self, twin: ModelConnection) -> None:
        self.router.confirm(self.real[twin.number][0])
        twin.confirmed = True
        client = next(client for client, each in self.attached() if each is twin)
        client.established = True
        if not client.reading:
            self.model.settle(client)

    @rule(data=st.data())
    def a_connection_gets_its_101(self, data: st.DataObject) -> None:
        twin = self.choose(data, self.confirmed_and_held())
        if twin is not None:
            self.answer_with_101(twin)

    def confirmed_and_held(self) -> list[ModelConnection]:
        return [each for _, each in self.attached() if self.real[each.number][0].held and each.confirmed]

    def answer_with_101(self, twin: ModelConnection) -> None:
        connection, transport, _ = self.real[twin.number]
        assert not transport.sent, "something was sent before the 101"
        connection.attach_transport(transport, -1)

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), names=st.lists(st.sampled_from(CHANNELS), unique=True), fails=st.integers(0, 9))
    def redis_answers_a_read(self, data: st.DataObject, names: list[bytes], fails: int) -> None:
        self.finish()
        client = self.asked.pop(data.draw(st.integers(0, len(self.asked) - 1)))
        self.answer_read(client, None if fails == 0 else names)

    def answer_read(self, client: Client, names: list[bytes] | None) -> None:
        twin = self.model.clients[client.id]
        assert client.reading
        assert twin.reading
        self.router.members(client, names)
        twin.reading = False
        if names is not None:
            twin.channels = set(names)
        if twin.attached == 0:
            self.model.end_if_gone(twin)
        elif twin.established:
            self.model.settle(twin)

    @rule(names=st.lists(st.sampled_from(CHANNELS), unique=True))
    def all_that_is_under_way_is_done(self, names: list[bytes]) -> None:
        """Step by step few clients would ever be served: most of what happens undoes one of the steps."""
        self.finish()
        while self.asked:
            self.answer_read(self.asked.pop(), names)
        for _, twin in self.attached():
            if not twin.confirmed:
                self.confirm(twin)
        for twin in self.confirmed_and_held():
            self.answer_with_101(twin)

    @rule(client_id=st.sampled_from([*IDS, b"99"]))
    def redis_invalidates_a_client(self, client_id: bytes) -> None:
        self.finish()
        asked = len(self.asked)
        self.router.invalidate(client_id)
        client = self.model.clients.get(client_id)
        if client is None or client.reading or not self.tracking:
            assert len(self.asked) == asked, "a re-read too many"
            return
        client.reading = True
        self.model.begin_waiting(client)
        assert self.asked[asked:] == [self.router.clients[client_id]]

    @rule()
    def the_stream_has_a_gap(self) -> None:
        held = self.router.hold_all()
        if self.tracking:
            assert {client.id for client in held} == set(self.model.clients)
            self.asked = held  # what was under way was lost with the connection
            for client in self.model.clients.values():
                client.reading = True
                self.model.begin_waiting(client)
        else:
            assert held == []

    @rule(data=st.data())
    def a_connection_begins_to_close(self, data: st.DataObject) -> None:
        twin = self.choose(data, [each for _, each in self.attached()])
        if twin is None:
            return
        self.finish()
        connection = self.real[twin.number][0]
        assert connection.begin_close(CLOSE, 1001) == twin.open
        self.router.retire(connection)
        if twin.open:
            twin.expected.append(CLOSE)
            twin.open = False
            self.model.closed(next(client for client, each in self.attached() if each is twin))

    @rule(data=st.data())
    def a_socket_is_gone(self, data: st.DataObject) -> None:
        twin = self.choose(data, [each for _, each in self.attached()])
        if twin is None:
            return
        self.flush_and_compare()
        client = next(client for client, each in self.attached() if each is twin)
        connection = self.real.pop(twin.number)[0]
        connection.detach_transport()
        self.router.detach(connection)
        self.real[-twin.number] = connection, FakeTransport(), ModelConnection(0)
        client.connections.remove(twin)
        client.attached -= 1
        if twin.open:
            self.model.closed(client)
        self.model.end_if_gone(client)

    @rule(
        kind=st.sampled_from(["direct", "direct", "channel", "channel", "broadcast", "force"]),
        sender=st.sampled_from([SYSTEM, *IDS]),
        to=st.lists(st.sampled_from([*IDS, b"99"]), max_size=4),
        channel=st.sampled_from(CHANNELS),
        receipt=st.booleans(),
        members=st.frozensets(st.sampled_from([*IDS, b"99"])),
    )
    def a_message_comes(
        self, kind: str, sender: bytes, to: list[bytes], channel: bytes, receipt: bool, members: frozenset[bytes]
    ) -> None:
        self.messages += 1
        text = b"%d" % self.messages
        twin = ModelMessage(self.messages, kind, sender, to, channel, receipt and kind == "direct")
        if kind == "direct":
            message = Message.direct(sender, to, text, receipt)
        elif kind == "channel":
            message = Message.channel_message(sender, channel, text)
            if not self.tracking:
                message.members = twin.members = members
        elif kind == "broadcast":
            message = Message.channel_message(sender, None, text)
        else:
            twin.to = to[:1] or [b"99"]
            message = Message.force_offline(twin.to[0])
        self.rest = self.router.route(message)
        self.model.route(twin)

    @rule()
    def the_message_goes_on(self) -> None:
        if self.rest is not None:
            self.rest = self.rest()

    def finish(self) -> None:
        """Redis's stream stands still until the message has reached everybody."""
        while self.rest is not None:
            self.rest = self.rest()

    @rule()
    def flush_and_compare(self) -> None:
        self.finish()
        self.walk.flush()
        for connection, transport, twin in self.real.values():
            if not connection.held:
                assert bytes(transport.sent) == b"".join(twin.expected)

    # What holds all the time.

    @invariant()
    def the_tables_agree(self) -> None:
        assert set(self.router.clients) == set(self.model.clients)
        for client_id, twin in self.model.clients.items():
            client = self.router.clients[client_id]
            assert set(client.channel_names) == twin.channels
            assert [each.number for each in client.connections] == [each.number for each in twin.open_connections()]
            assert client.attached == twin.attached
            assert client.pending == (twin.waiting is not None)

    @invariant()
    def receipts_agree_in_their_order(self) -> None:
        assert self.receipts == self.model.receipts

    @invariant()
    def the_window_holds_what_the_oldest_waiting_client_needs_and_no_more(self) -> None:
        since = [client.since for client in self.model.clients.values() if client.waiting is not None]
        assert self.router.pending_count == len(since)
        assert self.router.window_size == (self.model.routed - min(since) if since else 0)

    def teardown(self) -> None:
        self.flush_and_compare()


class RouterWithoutTrackingMachine(RouterMachine):
    tracking = False


class RouterInSlicesMachine(RouterMachine):
    slice_ms = 0

    @invariant()
    def receipts_agree_in_their_order(self) -> None:
        # Whoever stops waiting in between has his sooner than those whose turn comes later.
        if self.rest is None:
            assert sorted(self.receipts) == sorted(self.model.receipts)


RouterMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=60)
RouterWithoutTrackingMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=50)
RouterInSlicesMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=60)

TestRouterAgreesWithItsModelWhateverHappens = RouterMachine.TestCase
TestRouterWithoutTrackingAgreesWithItsModelWhateverHappens = RouterWithoutTrackingMachine.TestCase
TestRouterAgreesWithItsModelWhateverHappensBetweenSlices = RouterInSlicesMachine.TestCase


# ---- the rules one by one, so that a fault of the model cannot hide one of the router


class Desk:
    """A router with clients whose memberships are answered by the test."""

    def __init__(self, **options: object) -> None:
        self.walk = fanout()
        self.receipts: list[tuple[bytes, bytes, bool]] = []
        self.rereads: list[Client] = []
        self.router = Router(
            SYSTEM,
            lambda message, receiver, delivered: self.receipts.append((message.text, receiver, delivered)),
            self.rereads.append,
            self.force_offline,
            **options,  # type: ignore[arg-type]
        )
        self.wires: dict[Connection, FakeTransport] = {}

    def force_offline(self, client: Client) -> None:
        for connection in list(client.connections):
            connection.begin_close(CLOSE, 1001)
            self.router.retire(connection)

    def begin(self, client_id: bytes) -> Connection:
        connection, transport = open_connection(self.walk, len(self.wires) + 1)
        self.wires[connection] = transport
        self.router.attach(client_id, connection)
        return connection

    def connect(self, client_id: bytes, *channels: bytes) -> Connection:
        connection = self.begin(client_id)
        if connection.client.reading:
            self.router.members(connection.client, list(channels))
        self.router.confirm(connection)
        connection.attach_transport(self.wires[connection], -1)
        return connection

    def direct(self, sender: bytes, to: list[bytes], text: bytes, receipt: bool = False) -> None:
        self.router.route(Message.direct(sender, to, text, receipt))

    def say(self, sender: bytes, channel: bytes | None, text: bytes) -> None:
        self.router.route(Message.channel_message(sender, channel, text))

    def got(self, connection: Connection) -> list[bytes]:
        """The texts that a connection was sent so far (all shorter than 126 bytes); a Close frame is ``b"close"``."""
        self.walk.flush()
        data, texts = bytes(self.wires[connection].sent), []
        while data:
            size = data[1]
            texts.append(b"close" if data[0] == 0x88 else data[2 : 2 + size])
            data = data[2 + size :]
        return texts


def test_a_sender_with_one_connection_does_not_get_its_own_message() -> None:
    desk = Desk()
    one = desk.connect(b"1", b"red")
    desk.direct(b"1", [b"1"], b"direct", receipt=True)
    desk.say(b"1", b"red", b"channel")
    desk.say(b"1", None, b"broadcast")
    assert desk.got(one) == []
    assert desk.receipts == []


def test_a_sender_with_two_connections_gets_its_own_message_on_both() -> None:
    desk = Desk()
    phone, laptop = desk.connect(b"1", b"red"), desk.connect(b"1")
    desk.direct(b"1", [b"1"], b"direct", receipt=True)
    desk.say(b"1", b"red", b"channel")
    desk.say(b"1", None, b"broadcast")
    assert desk.got(phone) == desk.got(laptop) == [b"direct", b"channel", b"broadcast"]
    assert desk.receipts == []


def test_receipts_say_whether_the_receiver_has_a_connection_and_never_go_to_the_system() -> None:
    desk = Desk()
    desk.connect(b"2")
    desk.direct(b"1", [b"2", b"9"], b"asked", receipt=True)
    desk.direct(b"1", [b"2", b"9"], b"not asked")
    desk.direct(SYSTEM, [b"2", b"9"], b"from the system", receipt=True)
    assert desk.receipts == [(b"asked", b"2", True), (b"asked", b"9", False)]


def test_a_receiver_named_twice_by_another_library_gets_the_message_twice() -> None:
    desk = Desk()
    two = desk.connect(b"2")
    desk.direct(b"1", [b"2", b"2"], b"x", receipt=True)
    assert desk.got(two) == [b"x", b"x"]
    assert desk.receipts == [(b"x", b"2", True)] * 2


def test_a_message_without_a_text_reaches_nobody_and_has_no_receipt() -> None:
    desk = Desk()
    two = desk.connect(b"2", b"red")
    desk.router.route(Message.direct(b"1", [b"2"], None, True))
    desk.router.route(Message.channel_message(b"1", b"red", None))
    assert desk.got(two) == []
    assert desk.receipts == []


def test_only_the_pending_client_waits_and_its_window_is_replayed_in_order_with_the_new_membership() -> None:
    desk = Desk()
    one, two = desk.connect(b"1", b"red"), desk.connect(b"2", b"red")
    desk.say(SYSTEM, b"red", b"before")
    desk.router.invalidate(b"1")
    desk.say(SYSTEM, b"blue", b"blue")
    desk.direct(b"2", [b"1"], b"direct", receipt=True)
    desk.say(SYSTEM, None, b"all")
    desk.say(SYSTEM, b"red", b"red")
    assert desk.got(one) == [b"before"]
    assert desk.got(two) == [b"before", b"all", b"red"]
    assert desk.receipts == []
    desk.router.members(desk.rereads[-1], [b"blue"])
    assert desk.got(one) == [b"before", b"blue", b"direct", b"all"]
    assert desk.receipts == [(b"direct", b"1", True)]
    assert desk.router.window_size == desk.router.pending_count == 0


def test_without_the_barrier_a_message_overtakes_the_membership() -> None:
    desk = Desk(barrier=False)
    one = desk.connect(b"1")
    desk.router.invalidate(b"1")
    desk.say(SYSTEM, b"red", b"missed")
    desk.router.members(desk.rereads[-1], [b"red"])
    assert desk.got(one) == []


def test_one_read_is_under_way_for_a_client_however_often_it_is_invalidated() -> None:
    desk = Desk()
    desk.connect(b"1")
    before = len(desk.rereads)
    for _ in range(5):
        desk.router.invalidate(b"1")
    assert len(desk.rereads) == before + 1
    desk.router.members(desk.rereads[-1], [])
    desk.router.invalidate(b"1")
    assert len(desk.rereads) == before + 2


def test_a_second_connection_gets_after_its_101_what_came_meanwhile_and_holds_up_nobody() -> None:
    desk = Desk()
    first = desk.connect(b"1", b"red")
    second = desk.begin(b"1")
    desk.say(SYSTEM, b"red", b"a")
    desk.direct(SYSTEM, [b"1"], b"b")
    assert desk.got(first) == [b"a", b"b"]
    assert desk.got(second) == []
    desk.router.confirm(second)
    second.attach_transport(desk.wires[second], -1)
    assert desk.got(second) == [b"a", b"b"]


def test_a_forced_offline_client_gets_nothing_more_and_counts_as_offline_for_receipts() -> None:
    desk = Desk()
    one = desk.connect(b"1", b"red")
    desk.router.route(Message.force_offline(b"1"))
    desk.direct(b"2", [b"1"], b"late", receipt=True)
    desk.say(SYSTEM, b"red", b"late")
    desk.say(SYSTEM, None, b"late")
    assert desk.got(one) == [b"close"]
    assert desk.receipts == [(b"late", b"1", False)]


def test_an_opening_that_fails_turns_what_waited_for_it_into_offline_receipts() -> None:
    desk = Desk()
    one = desk.begin(b"1")
    desk.direct(b"2", [b"1"], b"x", receipt=True)
    assert desk.receipts == []
    desk.router.detach(one)
    desk.router.members(one.client, [])
    assert desk.receipts == [(b"x", b"1", False)]
    assert not desk.router.clients
    assert desk.router.window_size == 0


def test_a_full_window_drops_for_the_waiting_client_alone_and_counts_it() -> None:
    desk = Desk(window_limit=500)
    one, two = desk.connect(b"1", b"red"), desk.connect(b"2", b"red")
    desk.router.invalidate(b"1")
    for number in range(10):
        desk.say(SYSTEM, b"red", b"%d" % number)
    desk.router.members(desk.rereads[-1], [b"red"])
    kept = desk.got(one)
    assert 0 < len(kept) < 10
    assert kept == [b"%d" % number for number in range(len(kept))]
    assert desk.router.dropped == 10 - len(kept)
    assert desk.got(two) == [b"%d" % number for number in range(10)]
    desk.router.invalidate(b"1")
    desk.say(SYSTEM, b"red", b"again")
    desk.router.members(desk.rereads[-1], [b"red"])
    assert desk.got(one)[-1] == b"again", "the window was not emptied"


def test_a_full_window_keeps_an_order_to_go_for_who_waits() -> None:
    desk = Desk(window_limit=500)
    one, two = desk.connect(b"1", b"red"), desk.connect(b"2", b"red")
    desk.router.invalidate(b"1")
    for number in range(10):
        desk.say(SYSTEM, b"red", b"%d" % number)
    dropped, size = desk.router.dropped, desk.router.window_size
    for client in (b"1", b"2", b"3", b"1", b"1"):
        desk.router.route(Message.force_offline(client))
    assert desk.router.window_size == size + 1, "who does not wait needs none, and nobody a second one"
    assert desk.got(two)[-1] == b"close"
    desk.router.members(desk.rereads[-1], [b"red"])
    kept = desk.got(one)
    assert kept == [*(b"%d" % number for number in range(len(kept) - 1)), b"close"]
    assert desk.router.dropped == dropped == 10 - (len(kept) - 1), "it is no message that was lost"


@pytest.mark.parametrize("back", [False, True])
def test_an_answer_for_a_client_that_has_gone_changes_nothing(back: bool) -> None:
    # FLUSHALL while a read was under way: it is read once more, and both answers come.
    desk = Desk()
    one = desk.connect(b"1")
    desk.router.invalidate(b"1")
    desk.router.hold_all()
    client = one.client
    desk.router.members(client, [b"red"])
    one.detach_transport()
    desk.router.detach(one)
    assert not desk.router.clients
    again = desk.connect(b"1", b"blue") if back else None
    desk.router.members(client, [b"red"])
    assert set(desk.router.clients) == ({b"1"} if back else set())
    assert client.channel_names == [], "a client that nobody will ever drop again is a member"
    desk.direct(SYSTEM, [b"1"], b"direct")
    desk.say(SYSTEM, b"blue", b"blue")
    desk.say(SYSTEM, b"red", b"red")
    if again is not None:
        assert desk.got(again) == [b"direct", b"blue"]


def test_without_tracking_a_channel_message_reaches_the_members_that_came_with_it() -> None:
    desk = Desk(tracking=False)
    one, two = desk.connect(b"1"), desk.connect(b"2")
    message = Message.channel_message(SYSTEM, b"red", b"x")
    message.members = frozenset([b"2", b"77"])
    desk.router.route(message)
    assert desk.got(one) == []
    assert desk.got(two) == [b"x"]
    desk.router.invalidate(b"1")
    assert desk.rereads == []


def test_when_tracking_is_lost_remembered_channels_are_forgotten() -> None:
    desk = Desk()
    one = desk.connect(b"1", b"red")
    desk.router.invalidate(b"1")
    desk.direct(SYSTEM, [b"1"], b"waits")
    desk.router.members(one.client, None)
    desk.router.set_tracking(False)
    desk.say(SYSTEM, b"red", b"by an old membership")
    assert desk.got(one) == [b"waits"]
    assert one.client.channel_names == []


def test_the_answer_says_whether_the_channels_have_changed() -> None:
    desk = Desk()
    client = desk.begin(b"1").client
    answers: list[tuple[list[bytes] | None, bool]] = [
        ([b"red"], True),
        ([b"red"], False),
        (None, False),
        ([b"blue"], True),
        ([b"blue", b"red"], True),
        ([b"red", b"blue"], False),
        ([], True),
        ([], False),
    ]
    for names, changed in answers:
        assert desk.router.members(client, names) == changed, names


# ---- what is published


CHANNEL_MESSAGE = envelope.channel(0, "red", "text")
OTHERS = [
    b"",
    b"{}",
    b"no message",
    envelope.PROBE_HEAD.encode() + b"1",
    CHANNEL_MESSAGE.replace(b'"Item2"', b' "Item2"'),
]


def published(**options: object) -> tuple[Desk, Connection, list[tuple[bytes, Message | None]]]:
    """A desk with a member of the channel, and what its router leaves to others."""
    left: list[tuple[bytes, Message | None]] = []
    desk = Desk(on_other=lambda *what: left.append(what), **options)
    return desk, desk.connect(b"1", b"red"), left


def test_what_is_published_before_the_name_is_taken_is_for_another_instance() -> None:
    desk, one, left = published()
    for payload in (CHANNEL_MESSAGE, *OTHERS):
        desk.router.take(payload)
    assert (desk.got(one), left) == ([], [])
    desk.router.open = True
    desk.router.take(CHANNEL_MESSAGE)
    assert (desk.got(one), left) == ([b"text"], [])


def test_payloads_of_another_form_are_left_to_others_in_their_order() -> None:
    desk, one, left = published()
    desk.router.open = True
    for payload in OTHERS:
        desk.router.take(payload)
    assert left == [(payload, None) for payload in OTHERS]
    assert desk.got(one) == []


def test_without_tracking_every_message_is_left_to_others_decoded() -> None:
    desk, one, left = published(tracking=False)
    desk.router.open = True
    desk.router.take(CHANNEL_MESSAGE)
    [(payload, message)] = left
    assert payload == CHANNEL_MESSAGE
    assert message is not None
    assert (message.channel, message.text) == (b"red", b"text")
    assert desk.got(one) == []


def test_ids_are_read_as_what_they_are() -> None:
    guid = "01234567-89ab-cdef-0123-456789abcdef"
    payload = envelope.direct(str(UUID(int=0)), [guid], envelope.direct_tail("text", False))
    desk, _, left = published(guid=True)
    desk.router.open = True
    one = desk.connect(guid.encode())
    desk.router.take(payload)
    assert (desk.got(one), left) == ([b"text"], [])
    desk, _, left = published()
    desk.router.open = True
    desk.router.take(payload)
    assert left == [(payload, None)]
