"""A tenth of all read slowly or not at all, and get more than they can take: what do the others notice?"""

from __future__ import annotations

import contextlib
import itertools
import time
from dataclasses import dataclass, field

import redis

from bench import tokens
from bench.metrics import Watched
from bench.outcome import Figure, Outcome, ratios
from bench.pacer import Pacer
from bench.processes import BenchError, Crowd, Node, core_of_its_own
from bench.publisher import Publisher, text
from bench.stand import QUIET, Settings, join, run_names
from bench.tally import Tally
from freeim import ImHelper
from freeim.names import Names

RATE = 1_000
SECONDS = 5.0
LARGE = 65_536
EACH = 16 << 20
"""Bytes for each of those who are slow, in messages of `LARGE`."""
SIP, SIP_SECONDS = 4096, 0.1
"""What every second of them reads, and how often; the others read nothing."""


def run(settings: Settings) -> Outcome:
    """Measure the times of messages to those who read, while others do not, and without these."""
    count, slow = settings.connections - settings.connections // 10, settings.connections // 10
    if slow < 2:
        raise BenchError("slow needs twenty connections: a tenth of them is slow")
    outcome = Outcome(
        "slow",
        f"{RATE:,} messages of {settings.size} bytes a second to {count} connections, while each of {slow} others is "
        f"sent {EACH >> 20} MiB: half of these read {SIP} bytes each {SIP_SECONDS:g} s, half nothing",
    )
    with contextlib.ExitStack() as stack:
        client, names = stack.enter_context(run_names(settings.url))
        watched = Watched()
        node = stack.enter_context(Node(settings.url, names.prefix, options=(*QUIET, *watched.options)))
        stack.enter_context(core_of_its_own(node))
        crowd = stack.enter_context(Crowd(count))
        pacer = stack.enter_context(Pacer(settings.url, names, [node.node]))
        publisher = Publisher(settings.url, names, node.node)
        stack.callback(publisher.close)
        settings.progress(f"connecting {count}")
        outcome.check_opened(crowd.connect([node.port], tokens.issue(client, names, count)), count)
        here = _Slow(settings, outcome, client, names, watched, node, crowd, pacer, publisher, slow)
        here.paced()  # the kernel grows buffers with the first messages
        here.beside(look=True)
        alone, beside = [], []
        for number in range(settings.rounds):
            settings.progress(f"slow: round {number + 1} of {settings.rounds}")
            alone.append(here.paced().quantile(0.99) * 1e3)
            beside.append(here.beside().quantile(0.99) * 1e3)
    meaning = "99 % arrive within this time / within that without anybody who is slow"
    outcome.figures = [
        Figure("slow_p99_ratio", "lower", meaning, ratios(beside, alone)),
        Figure("slow_p99", "lower", "99 % arrive within this time", beside, "ms"),
        Figure("slow_memory", "lower", "what the node's memory grows by at most", here.grown, "MiB"),
        Figure("slow_kernel", "lower", "what the kernel holds at most for one who is slow", here.held, "KiB"),
        Figure("slow_cut", "", "connections that are cut with 4002, of a round", here.cut),
    ]
    return outcome


@dataclass(slots=True)
class _Slow:
    """The node, those who read, and what happened to those who do not."""

    settings: Settings
    outcome: Outcome
    client: redis.Redis
    names: Names
    watched: Watched
    node: Node
    crowd: Crowd
    pacer: Pacer
    publisher: Publisher
    slow: int
    grown: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    cut: list[float] = field(default_factory=list)
    streams: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def seconds(self) -> float:
        return SECONDS * self.settings.repeat

    def paced(self, meanwhile: list[bytes] | None = None, *, look: bool = False) -> Tally:
        """Send to those who read, and these commands meanwhile, spread over the time; look at memory if asked to."""
        self.crowd.begin(self.settings.size, 0.0)
        cpu, memory = self.node.cpu(), self.node.memory()
        most, held = memory, 0
        clients = range(1, self.crowd.clients + 1)
        self.pacer.start(RATE, self.seconds, clients, next(self.streams), size=self.settings.size)
        start = time.monotonic()
        for number, command in enumerate(meanwhile or ()):
            time.sleep(max(0.0, start + number * self.seconds / len(meanwhile or ()) - time.monotonic()))  # the pace
            self.publisher.send([command])
            if look and number % 8 == 7:
                most, held = max(most, self.node.memory()), max(held, in_the_kernel(self.node.port))
        sent = self.pacer.finish()
        if look:
            self.grown.append((most - memory) / (1 << 20))
            self.held.append(held / self.slow / 1024)
        tally = self.crowd.settle(sent.messages)
        self.outcome.check(tally, sent.messages, self.node.cpu() - cpu)
        self.outcome.sender = max(self.outcome.sender, sent.busy)
        return tally

    def beside(self, *, look: bool = False) -> Tally:
        """Send to those who read, while others do not. To look at memory meanwhile spoils the times."""
        before = self.watched.look()
        first = self.crowd.clients + 1
        parts = [(first, self.slow // 2, SIP), (first + self.slow // 2, self.slow - self.slow // 2, 0)]
        with contextlib.ExitStack() as stack:
            for start, count, size in parts:
                crowd = stack.enter_context(Crowd(count, first=start))
                issued = tokens.issue(self.client, self.names, count, start)
                self.outcome.check_opened(crowd.connect([self.node.port], issued), count)
                crowd.sip(size, SIP_SECONDS)
            with ImHelper(self.settings.url, prefix=self.names.prefix, nodes=[self.node.node]) as helper:
                join(helper, "slow", range(first, first + self.slow))
            stream = next(self.streams)
            large = [self.publisher.to_channel("slow", text(stream, n + 1, LARGE)) for n in range(EACH // LARGE)]
            tally = self.paced(large, look=look)
            after = self.watched.look()
        cut = after("slow_connections_cut_total") - before("slow_connections_cut_total")
        coded = after("closes_total", by="node", code="4002") - before("closes_total", by="node", code="4002")
        if not look:
            self.cut.append(cut)
        self.outcome.faults.update({"slow and not cut": int(self.slow - cut), "cut without 4002": int(cut - coded)})
        self.outcome.faults += {}  # without those that are 0
        while self.watched.look()("connections") > self.crowd.clients:
            time.sleep(0.05)  # until the node has seen the end of all who were slow
        return tally


def in_the_kernel(port: int) -> int:
    """Return the bytes that the kernel holds in the sockets of a port, at both ends."""
    end, total = f":{port:04X}", 0
    with open("/proc/net/tcp", encoding="ascii") as table:
        for line in table:
            _, local, remote, _, queues, *_ = line.split()
            if local.endswith(end) or remote.endswith(end):
                total += sum(int(part, 16) for part in queues.split(":"))
    return total
