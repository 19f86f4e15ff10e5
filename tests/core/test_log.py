"""The log of a client against a model of a few lines; and the limits of one and of all."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from freeim._core import Client, Log, Logs, Message, Router
from tests.core.fakes import FakeTransport, fanout, open_connection

NO_LIMIT = 1 << 40
COST = 150 + 16
"""FRAME_COST and REFERENCE_COST of _core_socket.pxi."""
AGES = 32


class Clients:
    """Clients with a log each, and nobody at the other end."""

    def __init__(self, count: int, log_limit: int = NO_LIMIT, limit: int = NO_LIMIT) -> None:
        self.logs = Logs(log_limit, limit)
        self.router = Router(b"0", lambda *_: None, lambda _client: None, lambda _client: None)
        walk = fanout()
        self.clients: list[Client] = []
        for number in range(1, count + 1):
            connection, _ = open_connection(walk, number)
            client = self.router.attach(b"%d" % number, connection)
            client.log = self.logs.add()
            self.router.confirm(connection)
            self.router.members(client, [])
            self.router.retire(connection)
            self.clients.append(client)

    def __getitem__(self, number: int) -> Log:
        log = self.clients[number].log
        assert log is not None
        return log

    def send(self, text: bytes, to: Iterable[int]) -> bytes:
        """Deliver a message, and return its frame."""
        message = Message.direct(b"0", [b"%d" % (number + 1) for number in to], text, False)
        self.router.route(message)
        self.router.finish()
        assert message.frame is not None
        return message.frame


class ModelLog:
    def __init__(self) -> None:
        self.kept: list[tuple[int, int, bytes]] = []
        """(number, age, frame)"""
        self.last = 0
        self.ended = False

    @property
    def cost(self) -> int:
        return sum(len(frame) + COST for _, _, frame in self.kept)

    def since(self, number: int, until: int) -> list[bytes] | None:
        oldest = self.kept[0][0] - 1 if self.kept else self.last
        if self.ended or not oldest <= number <= until <= self.last:
            return None
        return [frame for at, _, frame in self.kept if number < at <= until]


class LogMachine(RuleBasedStateMachine):
    """Messages to three clients, time that passes, looks at some of the logs, and logs that end."""

    @initialize(log_limit=st.sampled_from([1, 400, 3000, NO_LIMIT]))
    def start(self, log_limit: int) -> None:
        self.real = Clients(3, log_limit)
        self.limit = log_limit
        self.models = [ModelLog() for _ in range(3)]
        self.now = AGES

    @rule(size=st.integers(0, 300), to=st.sets(st.integers(0, 2), min_size=1))
    def deliver(self, size: int, to: set[int]) -> None:
        frame = self.real.send(b"x" * size, to)
        for number in to:
            model = self.models[number]
            if not model.ended:
                self.grow_older(number)
                model.last += 1
                model.kept.append((model.last, self.now, frame))
                while model.cost > self.limit:
                    del model.kept[0]

    def grow_older(self, number: int) -> None:
        model = self.models[number]
        model.kept = [entry for entry in model.kept if entry[1] > self.now - AGES]

    @rule(ages=st.integers(1, 40))
    def time_passes(self, ages: int) -> None:
        self.now += ages
        self.real.logs.age = self.now

    @rule()
    def look(self) -> None:
        self.real.logs.look(10)
        for number in range(3):
            self.grow_older(number)

    @rule(number=st.integers(0, 2))
    def end(self, number: int) -> None:
        self.real[number].end()
        self.models[number].ended = True
        self.models[number].kept.clear()

    @rule(number=st.integers(0, 2), back=st.integers(-2, 30), ahead=st.integers(-2, 5))
    def ask(self, number: int, back: int, ahead: int) -> None:
        model = self.models[number]
        last, until = model.last - back, model.last - ahead
        assert self.real[number].since(last, until) == model.since(last, until)

    @invariant()
    def they_agree(self) -> None:
        frames: dict[int, int] = {}
        for number, model in enumerate(self.models):
            log = self.real[number]
            assert (log.last, log.ended, log.memory) == (model.last, model.ended, model.cost)
            assert log.forgotten == model.last - len(model.kept)
            frames |= {id(frame): len(frame) + COST - 16 for _, _, frame in model.kept}
        places = sum(len(model.kept) for model in self.models)
        assert self.real.logs.memory == sum(frames.values()) + 16 * places, "what is shared counts once"


TestLog = LogMachine.TestCase
TestLog.settings = settings(max_examples=200, stateful_step_count=50)


def test_a_message_is_kept_for_the_whole_of_its_time() -> None:
    clients = Clients(1)
    clients.send(b"x", [0])
    clients.logs.age += AGES - 1
    clients.logs.look(1)
    assert clients[0].forgotten == 0
    clients.logs.age += 1
    clients.logs.look(1)
    assert (clients[0].forgotten, clients.logs.memory) == (1, 0)


@pytest.mark.parametrize("shared", [True, False])
@given(st.data())
@settings(max_examples=30)
def test_all_logs_together_stay_below_their_limit(shared: bool, data: st.DataObject) -> None:
    limit = 50_000
    clients = Clients(20, limit=limit)
    clients.logs.others = data.draw(st.integers(0, limit // 2))
    for number in range(300):
        if data.draw(st.integers(0, 9)) == 0:
            clients.logs.age += 1
        clients.send(b"x" * data.draw(st.integers(500, 2000)), range(20) if shared else [number % 20])
        assert clients.logs.memory <= limit
        assert clients.logs.memory > clients.logs.others, "and not everything is forgotten"


@pytest.mark.parametrize(("shared", "per_age"), [(True, 10), (True, 2000), (False, 10), (False, 1000)])
def test_no_more_is_forgotten_than_must_be(shared: bool, per_age: int) -> None:
    limit = 200_000
    clients = Clients(100, limit=limit)
    reached = False
    for number in range(2000):
        clients.logs.age += number % per_age == 0
        clients.send(b"x" * 1000, range(0, 100, 20) if shared else [number % 100])
        reached = reached or clients.logs.memory > limit * 0.95
        assert not reached or clients.logs.memory > limit * 0.85
    assert reached


def test_the_oldest_of_all_are_forgotten_first() -> None:
    clients = Clients(2, limit=10_000)
    clients.send(b"x" * 1000, [0])
    clients.logs.age += 20
    for _ in range(8):
        clients.send(b"x" * 1000, [1])
    assert (clients[0].last, clients[0].forgotten) == (1, 1)
    assert (clients[1].last, clients[1].forgotten) == (8, 0)


def test_the_oldest_go_first_however_old_and_however_often() -> None:
    clients = Clients(3, limit=10_000)
    for of, later in ((1, 4), (0, 9), (1, 3)):  # ages 16, 12 and 3 in the end
        clients.send(b"x" * 1000, [of])
        clients.logs.age += later
    forgotten = [(0, 0)]
    while forgotten[-1] != (1, 2):
        clients.send(b"x" * 1000, [2])
        now = clients[0].forgotten, clients[1].forgotten
        if now != forgotten[-1]:
            forgotten.append(now)
        assert clients[2].forgotten == 0
    assert forgotten == [(0, 0), (0, 1), (1, 1), (1, 2)]


@given(st.data())
@settings(max_examples=60)
def test_nothing_is_forgotten_while_something_older_is_kept(data: st.DataObject) -> None:
    count = 6
    clients = Clients(count, limit=4_000)
    clients.logs.age += data.draw(st.integers(0, 100))
    ages: list[list[int]] = [[] for _ in range(count)]
    for _ in range(60):
        to = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=3))
        clients.send(b"x" * data.draw(st.integers(0, 200)), to)
        for number in to:
            ages[number].append(clients.logs.age)
        clients.logs.age += data.draw(st.sampled_from([0, 0, 0, 1, 5]))
        if data.draw(st.booleans()):
            clients.logs.look(data.draw(st.integers(1, count)))
        kept = [age for number in range(count) for age in ages[number][clients[number].forgotten :]]
        forgotten = [age for number in range(count) for age in ages[number][: clients[number].forgotten]]
        too_old = clients.logs.age - AGES
        assert max([age for age in forgotten if age > too_old], default=0) <= min(age for age in kept if age > too_old)


def test_a_message_makes_room_for_itself_and_no_more() -> None:
    count = 1_000
    clients = Clients(count, limit=2 * count * (COST + 102))
    for _ in range(2):
        for number in range(count):
            clients.send(b"x" * 100, [number])
    assert clients.logs.memory == clients.logs.limit
    for sent in range(1, 300):
        clients.send(b"x" * 100, [sent])
        assert sum(clients[number].forgotten for number in range(count)) == sent
        assert clients.logs.memory == clients.logs.limit
    assert max(clients[number].forgotten for number in range(count)) == 1, "each has its turn"


def test_who_goes_away_makes_room_at_once() -> None:
    clients = Clients(10, limit=20_000)
    for number in range(60):
        clients.send(b"x" * 100, [number % 10])
    for _ in range(6):
        before = clients.logs.memory - clients.logs.others
        clients.logs.others += 3_000
        assert clients.logs.memory <= clients.logs.limit
        assert before - (clients.logs.memory - clients.logs.others) <= 3_000 + COST + 102
    clients.logs.others += 3_000  # more than there is: no message is left
    assert clients.logs.memory == clients.logs.others == 21_000


def test_room_costs_the_same_however_many_logs_there_are() -> None:
    def took(count: int) -> float:
        """Return the seconds of CPU that the first messages for which there is no room take."""
        best = []
        for _ in range(3):
            clients = Clients(count, limit=2 * count * (COST + 102))
            for number in range(2 * count):
                clients.send(b"x" * 100, [number % count])
            began = time.process_time()
            for number in range(100):
                clients.send(b"x" * 100, [number])
            best.append(time.process_time() - began)
            assert any(clients[number].forgotten for number in range(count))
        return min(best)

    assert took(40_000) < 5 * took(1_000), "all logs are walked over"


def test_logs_without_anything_old_are_not_walked_over_once_for_each_age() -> None:
    clients = Clients(10_000, limit=10_000 * 16 * 3)
    everybody = range(10_000)
    took = []
    for _ in range(16):
        began = time.process_time()
        clients.send(b"x", everybody)
        took.append(time.process_time() - began)
    assert clients[0].forgotten or clients[9_999].forgotten, "the limit was reached"
    assert min(took[8:]) < 2.8 * min(took[:3]), "room is made several times for each message"


def test_a_log_that_has_ended_takes_nothing_more_and_is_dropped() -> None:
    clients = Clients(2)
    clients[0].end()
    clients.send(b"x", [0, 1])
    clients.logs.look(2)
    assert clients[0].last == 0
    assert clients[0].since(0, 0) is None
    clients[1].end()
    assert clients.logs.memory == 0


def test_frames_put_first_go_out_before_those_that_wait() -> None:
    for waiting in (0, 1, 3):
        walk = fanout()
        connection, transport = open_connection(walk, 1)
        for number in range(waiting):
            connection.send_control(b"waits %d " % number)
        connection.put_first([])
        connection.put_first([b"first ", b"second "])
        connection.attach_transport(transport, -1)
        walk.flush()
        assert isinstance(transport, FakeTransport)
        assert transport.sent == b"first second " + b"".join(b"waits %d " % number for number in range(waiting))
