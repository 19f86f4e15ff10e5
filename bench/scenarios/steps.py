"""Many connections under a mix of everything: how long does the event loop of a node look at nothing else?"""

from __future__ import annotations

import contextlib
import itertools
import time
from dataclasses import dataclass, field

import redis

from bench import tokens
from bench.churner import Churner
from bench.outcome import Figure, Outcome
from bench.pacer import Pacer
from bench.processes import PER_PROCESS, BenchError, Crowd, Node
from bench.publisher import Publisher, text
from bench.stand import Settings, free_ports, join, run_names
from bench.steps import LONG_MS, Seen, Steps
from freeim import ImHelper, envelope
from freeim.names import Names

SECONDS = 10.0
DIRECT_RATE, CHURN_RATE = 1_000, 500
TURN_SECONDS = 0.25
"""A turn is a storm of comers and a message to the room; in each fourth turn everybody gets a message, too."""
COMERS, CHURNERS = 200, 1_000
OPTIONS = ("--ping-interval", "10")
"""So each round has a ping for everybody."""


def run(settings: Settings) -> Outcome:
    """Let most stay, some join and leave, and some come and go, and send all kinds of messages meanwhile."""
    count = settings.latency_connections
    if count < 10:
        raise BenchError("steps needs ten connections: some stay, some join and leave, and some come and go")
    comers, churners = (min(most, count // 4) for most in (COMERS, CHURNERS))
    clients = range(1, count - comers - churners + 1)
    outcome = Outcome(
        "steps",
        f"{count} connections, of which {churners} join and leave a room {CHURN_RATE} times a second and {comers} come "
        f"and go {1 / TURN_SECONDS:g} times; {DIRECT_RATE:,} direct messages, {1 / TURN_SECONDS:g} to the room of a "
        "tenth and one to everybody a second",
    )
    with contextlib.ExitStack() as stack:
        mix = _Mix(settings, stack, outcome, clients, churners, comers)
        opening = mix.seen()
        rounds = []
        for number in range(settings.rounds):
            settings.progress(f"steps: round {number + 1} of {settings.rounds}")
            rounds.append(mix.round(max(1.0, SECONDS * settings.repeat)))
    outcome.figures = [
        *_figures("steps", "under the mix", rounds),
        *_figures("steps_opening", "while all connect", [opening]),
    ]
    return outcome


def _figures(name: str, when: str, rounds: list[list[Seen]]) -> list[Figure]:
    """Return the figures of some rounds, each with what was seen of every node."""
    longest = [max(seen.longest for seen in nodes) * 1e3 for nodes in rounds]
    by_clock = [max(seen.longest_wall for seen in nodes) * 1e3 for nodes in rounds]
    long, long_wall, counts = (
        [sum(getattr(seen, what) for seen in nodes) for nodes in rounds] for what in ("long", "long_wall", "count")
    )
    return [
        Figure(f"{name}_longest", "lower", f"CPU of the longest step of any node's event loop, {when}", longest, "ms"),
        Figure(f"{name}_long", "lower", f"steps that spent more than {LONG_MS} ms of CPU, {when}", long),
        Figure(f"{name}_longest_wall", "lower", f"the longest step by the clock, {when}", by_clock, "ms"),
        Figure(f"{name}_long_wall", "lower", f"steps that took more than {LONG_MS} ms by the clock, {when}", long_wall),
        Figure(f"{name}_count", "", f"steps of all nodes, {when}", counts),
    ]


@dataclass(slots=True)
class _Mix:
    """As many nodes as are needed, those who stay, those who join and leave, and those who come and go.

    Attributes:
        clients: The ids of those who stay; those who join and leave follow, and then those who come and go.
        churners: How many join and leave.
        comers: How many come and go.
    """

    settings: Settings
    stack: contextlib.ExitStack
    outcome: Outcome
    clients: range
    churners: int
    comers: int
    nodes: list[Node] = field(init=False)
    steps: list[Steps] = field(init=False)
    publishers: list[Publisher] = field(init=False)
    crowd: Crowd = field(init=False)
    churning: Crowd = field(init=False)
    coming: Crowd = field(init=False)
    pacer: Pacer = field(init=False)
    churner: Churner = field(init=False)
    client: redis.Redis = field(init=False)
    names: Names = field(init=False)
    streams: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        settings, stack = self.settings, self.stack
        count = len(self.clients) + self.churners + self.comers
        self.client, self.names = stack.enter_context(run_names(settings.url))
        binds = [f"127.0.0.1:{port}" for port in free_ports(-(-count // PER_PROCESS))]
        options = (*OPTIONS, "--nodes", ",".join(binds))
        self.steps = [stack.enter_context(Steps()) for _ in binds]
        self.nodes = [
            stack.enter_context(Node(settings.url, self.names.prefix, bind, options, steps))
            for bind, steps in zip(binds, self.steps, strict=True)
        ]
        churners = range(self.clients.stop, self.clients.stop + self.churners)
        self.crowd = stack.enter_context(Crowd(len(self.clients), PER_PROCESS))
        self.churning = stack.enter_context(Crowd(len(churners), first=churners[0]))
        self.coming = stack.enter_context(Crowd(self.comers, first=churners.stop))
        settings.progress(f"connecting {count} to {len(binds)} nodes")
        with ImHelper(settings.url, prefix=self.names.prefix, nodes=binds) as helper:
            join(helper, "room", self._room)
        self._forget()  # what it took to start
        for crowd in (self.crowd, self.churning):
            self._connect(crowd)
            crowd.begin(settings.size)
        self.publishers = [Publisher(settings.url, self.names, bind) for bind in binds]
        for publisher in self.publishers:
            stack.callback(publisher.close)
        self.pacer = stack.enter_context(Pacer(settings.url, self.names, binds))
        self.churner = stack.enter_context(Churner(settings.url, self.names, churners))
        self.churner.prepare("room")

    @property
    def _room(self) -> range:
        return self.clients[: max(1, len(self.clients) // 10)]

    def _connect(self, crowd: Crowd) -> None:
        issued = tokens.issue(self.client, self.names, crowd.clients, crowd.first)
        opened = crowd.connect([node.port for node in self.nodes], issued)
        self.outcome.check_opened(opened, crowd.clients)

    def _forget(self) -> None:
        for steps in self.steps:
            steps.reset()

    def seen(self) -> list[Seen]:
        """Return what was seen of each node since the last reset."""
        return [steps.seen() for steps in self.steps]

    def round(self, seconds: float) -> list[Seen]:
        """Do everything for so many seconds; return what was seen of each node."""
        self.crowd.begin(self.settings.size)
        direct, room, all_ = (next(self.streams) for _ in range(3))
        self._forget()
        self.pacer.start(DIRECT_RATE, seconds, self.clients, direct, seed=direct, size=self.settings.size)
        self.churner.start("room", CHURN_RATE, seconds)
        expected = self._turns(seconds, room, all_)
        sent, churned = self.pacer.finish(), self.churner.finish()
        seen = self.seen()
        expected += sent.messages
        self.outcome.check(self.crowd.settle(expected), expected)
        self.outcome.check_some(self.churning.watch(0))
        self.outcome.sender = max(self.outcome.sender, sent.busy, churned.busy)
        if churned.objection:  # a step is none the longer for it
            self.outcome.notes.append(churned.objection)
        return seen

    def _turns(self, seconds: float, room: int, all_: int) -> int:
        """Return how many messages those who stay get."""
        size, start, frames = self.settings.size, time.monotonic(), 0
        for turn in itertools.count(1):
            began = time.monotonic()
            if began - start >= seconds:
                return frames
            self._connect(self.coming)
            messages = [envelope.channel(0, "room", text(room, turn, size))]
            frames += len(self._room)
            if turn % 4 == 1:
                messages.append(envelope.channel(0, None, text(all_, turn // 4 + 1, size)))
                frames += len(self.clients)
            for publisher in self.publishers:
                publisher.send([publisher.pack(message) for message in messages])
            tally = self.coming.close()
            tally.closes.pop(1000, None)  # the answer to their own Close
            self.outcome.check_some(tally)
            time.sleep(max(0.0, began + TURN_SECONDS - time.monotonic()))  # the pace
        raise AssertionError("turns never end by themselves")
