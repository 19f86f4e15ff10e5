"""A group whose processes beat, hear, handle, are cut, killed, frozen in any order; on a real Redis."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from freeim.event_group import LEASE_SECONDS, GroupMember, Turn
from freeim.names import Names
from tests.helper.buses import OFFLINE, ONLINE
from tests.servers import RedisServer, Wire

NAMES = Names("im_v2_ws")
LEASE = NAMES.group("g")
MEMBERS = 3


@dataclass
class Process:
    """One process: its member, its subscription, and what it has handled.

    Attributes:
        unread: How many messages were published for it that it has not read: it hears them late, or never.
        handled: The events that it handled, in order.
        busy: The event that it is at.
        gap: The last event that had been published when it began with a resync that it is at.
        late: Answers of Redis that it has not read yet.
    """

    member: GroupMember
    wire: Wire
    unread: int = 0
    handled: list[int] = field(default_factory=list)
    busy: int | None = None
    gap: int | None = None
    late: list[tuple[Turn, Any]] = field(default_factory=list)


class Group(RuleBasedStateMachine):
    """Time is the test's own: a lease runs out when `wait` says so."""

    def __init__(self, server: RedisServer) -> None:
        super().__init__()
        server.flush()
        self.server = server
        self.wire = server.wire()
        self.now = 1000.0
        self.ever = 0  # how many processes there have been
        self.processes: dict[int, Process] = {}
        self.published = 0
        self.handled: set[int] = set()
        self.resynced = 0  # all events up to this one are covered by a resync

    def teardown(self) -> None:
        try:
            self.end()
        finally:
            for process in self.processes.values():
                process.wire.close()
            self.wire.close()

    def end(self) -> None:
        """Whatever happened: in the end a living process has handled each event, or was told to resync after it."""
        if not self.processes:
            self.start()
        for _ in range(4):
            self.now += LEASE_SECONDS + 1
            self.wire("DEL", LEASE)
            for number in list(self.processes):
                self.beat(number)
            for number in list(self.processes):
                self.hear(number, 10_000)
                while self.handle(number, finishes=True):
                    pass
                self.beat(number)
        missing = [n for n in range(self.resynced + 1, self.published + 1) if n not in self.handled]
        assert missing == []

    def _count(self, published: int) -> None:
        for process in self.processes.values():
            process.unread += published

    def _subscribe(self) -> Wire:
        wire = self.server.wire()
        wire.send("SUBSCRIBE", ONLINE, OFFLINE, LEASE)
        for _ in range(3):
            wire.read()
        return wire

    # -- what happens -------------------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        for _ in range(MEMBERS - 1):
            self.start()
            self.settle(self.ever - 1)

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def any_settles(self, data: st.DataObject) -> None:
        self.settle(data.draw(st.sampled_from(sorted(self.processes))))

    def settle(self, number: int) -> None:
        """Do all that there is to do for one process."""
        for _ in range(2):
            self.beat(number)
            self.hear(number, 1000)
            while self.handle(number, finishes=True):
                pass

    @precondition(lambda self: len(self.processes) < MEMBERS)
    @rule()
    def start(self) -> None:
        process = Process(GroupMember(NAMES, "g"), self._subscribe())
        process.member.subscribed()
        self.processes[self.ever] = process
        self.ever += 1

    @rule(count=st.integers(1, 3))
    def publish(self, count: int) -> None:
        for _ in range(count):
            self.published += 1
            self.wire("PUBLISH", ONLINE, str(self.published))
            self._count(1)

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), late=st.booleans())
    def any_beats(self, data: st.DataObject, late: bool) -> None:
        self.beat(data.draw(st.sampled_from(sorted(self.processes))), late)

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), lost=st.booleans())
    def any_is_answered(self, data: st.DataObject, lost: bool) -> None:
        process = self.processes[data.draw(st.sampled_from(sorted(self.processes)))]
        if not lost:
            self.answer(process)
        process.late.clear()

    def answer(self, process: Process) -> None:
        for turn, reply in process.late:
            process.member.answered(turn, reply)
        process.late.clear()

    def beat(self, number: int, late: bool = False) -> None:
        """One turn; with `late`, its answer comes later, or never."""
        process = self.processes[number]
        self.answer(process)  # a process takes one turn at a time
        turn = process.member.turn(self.now)
        if turn is None:
            return
        reply = self.wire(*turn.command)
        self._count(int(reply == 1 if turn.leaves else reply[0] == b"LEADS"))
        process.late.append((turn, reply))
        if not late:
            self.answer(process)

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), count=st.integers(1, 8))
    def any_hears(self, data: st.DataObject, count: int) -> None:
        self.hear(data.draw(st.sampled_from(sorted(self.processes))), count)

    def hear(self, number: int, count: int) -> None:
        process = self.processes[number]
        for _ in range(min(count, process.unread)):
            process.unread -= 1
            _, channel, payload = process.wire.read()
            if process.member.heard(channel, payload):
                self.beat(number)

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), finishes=st.booleans())
    def any_handles(self, data: st.DataObject, finishes: bool) -> None:
        self.handle(data.draw(st.sampled_from(sorted(self.processes))), finishes)

    def handle(self, number: int, finishes: bool) -> bool:
        """Begin with an event or a resync, or end the one that was begun."""
        process = self.processes[number]
        if process.busy is not None:
            self.handled.add(process.busy)
            process.handled.append(process.busy)
            process.busy = None
            process.member.done()
            return True
        if process.gap is not None:
            self.resynced = max(self.resynced, process.gap)
            process.gap = None
            process.member.resynced()
            return True
        if process.member.take_gap(self.now):
            process.gap = self.published
            return self.handle(number, finishes) if finishes else True
        item = process.member.next(self.now)
        if item is None:
            return False
        process.busy = int(item[1])
        return self.handle(number, finishes) if finishes else True

    @rule(seconds=st.sampled_from([0.5, 3.0, 5.6]))
    def wait(self, seconds: float) -> None:
        """Time goes by; whoever does not beat meanwhile stood still."""
        self.now += seconds

    @rule()
    def wait_long(self) -> None:
        self.now += LEASE_SECONDS
        self.wire("DEL", LEASE)

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def take_over(self, data: st.DataObject) -> None:
        """The leader stands still, and another takes the lease, unless somebody was faster."""
        number = data.draw(st.sampled_from(sorted(self.processes)))
        self.wait_long()
        for _ in range(2):
            self.beat(number)
            self.hear(number, 1000)

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        self.processes.pop(data.draw(st.sampled_from(sorted(self.processes)))).wire.close()

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), again=st.booleans(), tells=st.booleans())
    def cut(self, data: st.DataObject, again: bool, tells: bool) -> None:
        """A process stops, or its subscription is cut: it gives the lease back, and perhaps subscribes again."""
        number = data.draw(st.sampled_from(sorted(self.processes)))
        process = self.processes[number]
        process.member.unsubscribed()
        process.wire.close()
        process.unread = 0
        if tells:
            self.beat(number)
            process.unread = 0
        if not again:
            del self.processes[number]
            return
        if process.busy is not None or process.gap is not None:
            self.handle(number, finishes=True)
        process.wire = self._subscribe()
        process.member.subscribed()

    @precondition(lambda self: self.processes)
    @rule()
    def redis_forgets(self) -> None:
        """FLUSHALL, or a failover that lost the last writes."""
        self.wire("FLUSHALL")

    # -- what holds at any time ---------------------------------------------------------------------------------

    @invariant()
    def one_leads(self) -> None:
        leaders = [number for number, process in self.processes.items() if process.member.leads(self.now)]
        assert len(leaders) <= 1 or self.forgetful, leaders

    @invariant()
    def each_handles_in_order_and_once(self) -> None:
        for process in self.processes.values():
            assert process.handled == sorted(set(process.handled))

    forgetful = False


class ForgetfulGroup(Group):
    """Where Redis loses the lease, two may lead until the next beat of the first."""

    forgetful = True


class FaithfulGroup(Group):
    """Redis loses nothing: never do two lead."""

    def redis_forgets(self) -> None:  # overridden without @rule: it does not happen here
        raise NotImplementedError
