"""How long single messages take at a steady rate, from the moment at which each was due."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench import tokens
from bench.outcome import Figure, Outcome, ratios
from bench.pacer import Pacer, Sent
from bench.processes import PER_PROCESS, Crowd, Node, Process
from bench.publisher import Publisher
from bench.relay import Relay
from bench.scenarios.direct import messages_to
from bench.stand import QUIET, Settings, free_ports, run_names
from bench.tally import Tally

RATE = 1_000
SECONDS = 2.0
SHARES = (0.1, 0.5, 0.8)
"""Of the capacity."""
SHARE_SECONDS = 1.0
FLOOD = 20_000
KEPT_UP = 0.02
"""Seconds within which 99 % must arrive at a rate that is kept up; at one that is not, more wait after a second."""
PROBES = 5
"""Rates that are tried, each in the middle of what is left: the capacity is found to a thirty-second of the flood's."""
LATENESS = 0.5
"""Milliseconds that a sender may always be late: they count against the node, so they cannot flatter it."""


def run(settings: Settings) -> Outcome:
    """Measure times from publishing to arrival at several rates, in turn with the yardstick at the same."""
    count = settings.latency_connections
    outcome = Outcome(
        "latency",
        f"messages of {settings.size} bytes to one of {count} connections each, at {RATE:,} a second, and at "
        f"{', '.join(f'{share:.0%}' for share in SHARES)} of the highest rate that was kept up",
    )
    with contextlib.ExitStack() as stack:
        bench = _Bench(settings, stack, outcome)
        _measure(bench, outcome, RATE, SECONDS * settings.repeat, str(RATE), f"{RATE:,} a second", relay=True)
        flood = _flood(bench)
        outcome.absorb(flood)
        if flood.objection is None:
            capacity = _capacity(bench, flood.figures[0].median)
            if not capacity:
                outcome.left_out.append("shares of the capacity: no rate that was tried was kept up")
                return outcome
            meaning = f"the highest rate at which 99% arrive within {KEPT_UP * 1e3:g} ms, the sender's delay included"
            outcome.figures.append(Figure("latency_capacity", "higher", meaning, [capacity], "/s"))
            for share in SHARES:
                rate = share * capacity
                name = f"{share:.0%}".replace("%", "pct")
                _measure(bench, outcome, rate, SHARE_SECONDS * settings.repeat, name, f"{share:.0%} of the capacity")
    return outcome


@dataclass(slots=True)
class _Bench:
    """As many nodes as are needed, as many yardsticks, and a crowd at each; nobody rests between two looks.

    The yardsticks send at times of their own, or pass on what comes from Redis.
    """

    settings: Settings
    stack: contextlib.ExitStack
    outcome: Outcome
    nodes: list[Node] = field(init=False)
    bare: list[Relay] = field(init=False)
    crowd: Crowd = field(init=False)
    bare_crowd: Crowd = field(init=False)
    publishers: list[Publisher] = field(init=False)
    pacer: Pacer = field(init=False)
    bare_pacer: Pacer = field(init=False)
    streams: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        settings, stack, count = self.settings, self.stack, self.settings.latency_connections
        servers = -(-count // PER_PROCESS)
        client, names = stack.enter_context(run_names(settings.url))
        binds = [f"127.0.0.1:{port}" for port in free_ports(servers)]
        options = (*QUIET, "--nodes", ",".join(binds))
        self.nodes = [stack.enter_context(Node(settings.url, names.prefix, bind, options)) for bind in binds]
        relays = [f"relay {bind}" for bind in binds]
        self.bare = [stack.enter_context(Relay(settings.url, names.server(relay))) for relay in relays]
        self.crowd, self.bare_crowd = (stack.enter_context(Crowd(count, -(-count // servers))) for _ in range(2))
        settings.progress(f"connecting {count} to each side")
        issued = tokens.issue(client, names, count)
        self.outcome.check_opened(self.crowd.connect([node.port for node in self.nodes], issued), count)
        spelt = tokens.for_yardstick(count)
        self.outcome.check_opened(self.bare_crowd.connect([server.port for server in self.bare], spelt), count)
        self.publishers = [Publisher(settings.url, names, bind) for bind in binds]
        for publisher in self.publishers:
            stack.callback(publisher.close)
        self.pacer = stack.enter_context(Pacer(settings.url, names, binds))
        self.bare_pacer = stack.enter_context(Pacer(settings.url, names, relays))

    def flood(self, part: Outcome, messages: int, seed: int) -> float:
        """Send messages as fast as Redis hands them over; return how many arrived a second."""
        dice = random.Random(seed)
        receivers = [dice.randint(1, self.crowd.clients) for _ in range(messages)]
        commands = list(messages_to(self.publishers, next(self.streams), receivers, self.settings.size))
        self.crowd.begin(self.settings.size, 0.0)
        cpu = [node.cpu() for node in self.nodes]
        self.publishers[0].send(commands)
        tally = self.crowd.settle(messages)
        part.check(tally, messages, _busiest(self.nodes, cpu))
        return messages / tally.seconds

    def paced(self, part: Outcome, rate: float, seconds: float, seed: int) -> tuple[Tally, Sent]:
        """Publish for the nodes' connections."""
        return self._paced(part, self.nodes, self.crowd, self.pacer, rate, seconds, seed)

    def relayed(self, part: Outcome, rate: float, seconds: float, seed: int) -> Tally:
        """Publish for the yardsticks' connections."""
        return self._paced(part, self.bare, self.bare_crowd, self.bare_pacer, rate, seconds, seed)[0]

    def _paced(
        self,
        part: Outcome,
        servers: Sequence[Process],
        crowd: Crowd,
        pacer: Pacer,
        rate: float,
        seconds: float,
        seed: int,
    ) -> tuple[Tally, Sent]:
        crowd.begin(self.settings.size, 0.0)
        cpu = [server.cpu() for server in servers]
        pacer.start(rate, seconds, range(1, crowd.clients + 1), next(self.streams), seed=seed, size=self.settings.size)
        sent = pacer.finish()
        tally = crowd.settle(sent.messages)
        part.check(tally, sent.messages, _busiest(servers, cpu))
        part.sender = max(part.sender, sent.busy)
        return tally, sent

    def bare_paced(self, part: Outcome, rate: float, seconds: float, seed: int) -> Tally:
        """Let the yardsticks send, each its share of the rate."""
        for server in self.bare:
            server.ask(f"begin {self.settings.size}")
        self.bare_crowd.begin(self.settings.size, 0.0)
        stream, each = next(self.streams), rate / len(self.bare)
        for server in self.bare:
            server.say(f"paced {each} {seconds} 1 {stream} {seed}")
        states = [json.loads(server.hear()) for server in self.bare]
        messages = int(each * seconds) * len(self.bare)
        tally = self.bare_crowd.settle(messages)
        part.check(tally, messages, max(state["cpu_s"] for state in states))
        # One that could not keep the rate would make the node look better than it is.
        part.sender = max(part.sender, *(state["cpu_s"] / state["wall_s"] for state in states))
        return tally


def _busiest(servers: Sequence[Process], before: list[float]) -> float:
    return max(server.cpu() - cpu for server, cpu in zip(servers, before, strict=True))


def _flood(bench: _Bench) -> Outcome:
    part = Outcome("the rate when all are sent at once, and the capacity", "")
    messages = bench.settings.many(FLOOD)
    bench.flood(part, messages, bench.settings.rounds)  # the kernel grows buffers with the first messages
    rates = []
    for number in range(bench.settings.rounds):
        bench.settings.progress(f"latency: all at once, round {number + 1} of {bench.settings.rounds}")
        rates.append(bench.flood(part, messages, number))
    meaning = "messages a second, by the clock, when all are sent at once, so that each part works on many at a time"
    part.figures = [Figure("latency_flood", "higher", meaning, rates, "/s")]
    return part


def _capacity(bench: _Bench, highest: float) -> float:
    """Return the highest rate of single messages that sender, Redis, nodes and generator keep up together, or 0."""
    kept, missed = 0.0, highest
    for number in range(PROBES):
        rate = (kept + missed) / 2
        bench.settings.progress(f"latency: are {rate:,.0f} a second kept up?")
        # Twice: something else on this machine may have been what was late.
        if any(_keeps_up(bench, rate, 2 * number + attempt) for attempt in range(2)):
            kept = rate
        else:
            missed = rate
    return kept


def _keeps_up(bench: _Bench, rate: float, seed: int) -> bool:
    part = Outcome("", "")
    tally, _ = bench.paced(part, rate, SHARE_SECONDS * bench.settings.repeat, seed)
    bench.outcome.expected += part.expected
    bench.outcome.received += part.received
    bench.outcome.faults += part.faults
    return tally.quantile(0.99) <= KEPT_UP


def _measure(
    bench: _Bench, outcome: Outcome, rate: float, seconds: float, name: str, what: str, *, relay: bool = False
) -> None:
    part = Outcome(f"at {what}", "")
    node, bare, relayed, late = [], [], [], []
    for number in range(bench.settings.rounds):
        bench.settings.progress(f"latency: at {what} ({rate:,.0f}/s), round {number + 1} of {bench.settings.rounds}")
        tally, sent = bench.paced(part, rate, seconds, number)
        node.append(tally)
        late.append(sent.late.quantile(0.99) * 1e3)
        bare.append(bench.bare_paced(part, rate, seconds, number))
        if relay:
            relayed.append(bench.relayed(part, rate, seconds, number))
    for quantile, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999)):
        times = [tally.quantile(share) * 1e3 for tally in node]
        others = [tally.quantile(share) * 1e3 for tally in bare]
        meaning = f"{share:.1%} arrive within this time, at {what}"
        ratio = "the next figure / that of the yardstick"
        part.figures += [
            Figure(f"latency_{name}_{quantile}_ratio", "lower", ratio, ratios(times, others)),
            Figure(f"latency_{name}_{quantile}", "lower", meaning, times, "ms"),
        ]
        if relay:
            others = [tally.quantile(share) * 1e3 for tally in relayed]
            ratio = f"{share:.1%} arrive within this time / within that of the yardstick behind Redis, at {what}"
            part.figures.append(Figure(f"latency_{name}_{quantile}_relay", "lower", ratio, ratios(times, others)))
    meaning = f"99.0% are published no later than this after they were due, at {what}"
    part.figures.append(Figure(f"latency_{name}_sender_p99", "lower", meaning, late, "ms"))
    # A sender that waits for a core is not busy, and yet its delay would be taken for the node's.
    allowed = max(LATENESS, 0.5 * statistics.median(tally.quantile(0.99) * 1e3 for tally in node))
    if statistics.median(late) > allowed:
        part.slow = f"the sender was {statistics.median(late):.2g} ms late itself (99th percentile)"
    outcome.absorb(part)
