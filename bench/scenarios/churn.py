"""Joins and leaves, a thousand a second: what they cost in a large channel, and what they do to everybody else."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import redis

from bench import tokens
from bench.churner import Churner
from bench.delay import Delay
from bench.outcome import Figure, Outcome, ratios
from bench.pacer import Pacer
from bench.processes import BenchError, Crowd, Node
from bench.publisher import Publisher, text
from bench.stand import QUIET, Settings, join, run_names
from freeim import ImHelper
from freeim.names import Names

SMALL, LARGE = 5_000, 50_000
"""Members of the two channels, most of them not connected."""
CHURN_RATE = 1_000
DIRECT_RATE = 1_000
MESSAGE_SECONDS = 0.1
SECONDS, LEAST_SECONDS = 1.5, 0.5
ROUND_TRIP_SECONDS = 0.001


def run(settings: Settings) -> Outcome:
    """Measure the same work with and without churn, on a small and on a large channel, near to Redis and far away."""
    parts = _Parts.of(settings)
    outcome = Outcome(
        "churn",
        f"{CHURN_RATE:,} joins and leaves a second by {len(parts.churners)} of {settings.connections} connections, in "
        f"channels of {parts.small} and of {parts.large} members, a message to whose {len(parts.members)} that are "
        f"connected and stay comes each {MESSAGE_SECONDS} s at most; {DIRECT_RATE:,} direct messages a second to "
        f"{len(parts.others)} others",
    )
    with run_names(settings.url) as (client, names):
        settings.progress(f"churn: making channels of {parts.small} and {parts.large} members")
        sizes = {channel: _fill(settings, names, parts, channel) for channel in ("small", "large")}
        with _world(settings, client, names, settings.url, parts, outcome) as here:
            rounds = [here.measure(("small", "large"), number) for number in range(settings.rounds)]
            here.check_sizes(sizes)
        with (
            Delay(settings.url, ROUND_TRIP_SECONDS) as far,
            _world(settings, client, names, far.url, parts, outcome) as there,
        ):
            far_rounds = [there.measure(("large",), number) for number in range(settings.rounds)]
    _costs(outcome, rounds)
    _times(outcome, "churn", "", rounds)
    _times(outcome, "churn_far", f", {ROUND_TRIP_SECONDS * 1e3:g} ms farther from Redis", far_rounds)
    return outcome


@dataclass(frozen=True, slots=True)
class _Parts:
    """Who is who: members that stay, those that join and leave, and others; and the sizes of the channels."""

    members: range
    churners: range
    others: range
    small: int
    large: int

    @classmethod
    def of(cls, settings: Settings) -> _Parts:
        count = settings.connections
        if count < 10:
            raise BenchError("churn needs ten connections: some stay, some join and leave, and some do neither")
        members = range(1, min(500, count // 5) + 1)
        churners = range(members.stop, members.stop + min(1000, count // 4))
        others = range(churners.stop, count + 1)
        here = len(members) + (len(churners) + 1) // 2
        return cls(members, churners, others, *(max(here, settings.many(size)) for size in (SMALL, LARGE)))


@dataclass(frozen=True, slots=True)
class _Window:
    """What was measured while one kind of work went on.

    Attributes:
        node: CPU seconds of the node.
        redis: CPU seconds of Redis.
        p99: Of the direct messages, in seconds.
        messages: To the channel.
        operations: Joins and leaves.
        problem: Why the times say nothing about the node, or nothing.
    """

    node: float
    redis: float
    p99: float
    messages: int
    operations: int
    problem: str


_Round = dict[tuple[str, bool], _Window]
"""By channel, and whether there was churn."""


def _fill(settings: Settings, names: Names, parts: _Parts, channel: str) -> int:
    """Make a channel, those who stay and those who never connect; return how many members it is to have."""
    size = parts.small if channel == "small" else parts.large
    absent = size - len(parts.members) - (len(parts.churners) + 1) // 2
    first = parts.others.stop
    with ImHelper(settings.url, prefix=names.prefix, nodes=["none"]) as helper:
        join(helper, channel, range(first, first + absent))
    return size


@contextlib.contextmanager
def _world(
    settings: Settings, client: redis.Redis, names: Names, url: str, parts: _Parts, outcome: Outcome
) -> Iterator[_World]:
    """Connect everybody to a fresh node, which reaches Redis by `url`; all else goes straight to Redis."""
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(Node(url, names.prefix, options=QUIET))
        crowds = []
        for clients in (parts.members, parts.churners, parts.others):
            crowd = stack.enter_context(Crowd(len(clients), first=clients[0]))
            issued = tokens.issue(client, names, len(clients), clients[0])
            outcome.check_opened(crowd.connect([node.port], issued), len(clients))
            crowds.append(crowd)
        publisher = Publisher(settings.url, names, node.node)
        stack.callback(publisher.close)
        pacer = stack.enter_context(Pacer(settings.url, names, [node.node]))
        churner = stack.enter_context(Churner(settings.url, names, parts.churners))
        with ImHelper(settings.url, prefix=names.prefix, nodes=[node.node]) as helper:
            for channel in ("small", "large"):
                join(helper, channel, parts.members)
                churner.prepare(channel)
        here = _World(settings, client, names, outcome, parts, node, (crowds[0], crowds[1], crowds[2]))
        here.publisher, here.pacer, here.churner = publisher, pacer, churner
        here.window("large", True, 0)  # the kernel grows buffers with the first messages
        yield here
        # The node must have written all that the ends of connections mean before the next one takes over.
        for crowd in crowds:
            crowd.close()


class _World:
    """A node with everybody connected, and whoever sends to them."""

    publisher: Publisher
    pacer: Pacer
    churner: Churner

    def __init__(
        self,
        settings: Settings,
        client: redis.Redis,
        names: Names,
        outcome: Outcome,
        parts: _Parts,
        node: Node,
        crowds: tuple[Crowd, Crowd, Crowd],
    ) -> None:
        self._settings = settings
        self._client = client
        self._names = names
        self._outcome = outcome
        self._parts = parts
        self._node = node
        self._members, self._churners, self._others = crowds
        self._streams = itertools.count(1)

    def measure(self, channels: tuple[str, ...], number: int) -> _Round:
        """Measure a round: each channel without churn, then with it."""
        self._settings.progress(f"churn: round {number + 1} of {self._settings.rounds}")
        return {
            (channel, churn): self.window(channel, churn, number) for channel in channels for churn in (False, True)
        }

    def window(self, channel: str, churn: bool, seed: int) -> _Window:
        """Send for a time to the channel and to the others, with or without churn."""
        seconds = max(LEAST_SECONDS, SECONDS * self._settings.repeat)
        size = self._settings.size
        self._members.begin(size)
        self._churners.begin(size)
        self._others.begin(size, 0.0)
        spent_redis, spent_node = _redis_cpu(self._client), self._node.cpu()
        self.pacer.start(DIRECT_RATE, seconds, self._parts.others, next(self._streams), seed=seed, size=size)
        if churn:
            self.churner.start(channel, CHURN_RATE, seconds)
        messages = self._send_to(channel, seconds)
        sent = self.pacer.finish()
        churned = self.churner.finish() if churn else None
        others = self._others.settle(sent.messages)
        spent_node, spent_redis = self._node.cpu() - spent_node, _redis_cpu(self._client) - spent_redis
        self._outcome.check(others, sent.messages, spent_node)
        members = self._members.settle(messages * len(self._parts.members))
        self._outcome.check(members, messages * len(self._parts.members), spent_node)
        self._outcome.check_some(self._churners.watch(0))
        self._outcome.sender = max(self._outcome.sender, sent.busy, churned.busy if churned else 0.0)
        p99, late = others.quantile(0.99), sent.late.quantile(0.99)
        problem = f"the sender was {late * 1e3:.2g} ms late itself (99th percentile)" if late > 0.5 * p99 else ""
        if churned and churned.objection:
            problem = churned.objection
        return _Window(spent_node, spent_redis, p99, messages, churned.operations if churned else 0, problem)

    def _send_to(self, channel: str, seconds: float) -> int:
        """Send one message after another for a time; return how many."""
        stream, messages, start = next(self._streams), 0, time.monotonic()
        while messages * MESSAGE_SECONDS < seconds > time.monotonic() - start:
            time.sleep(max(0.0, start + messages * MESSAGE_SECONDS - time.monotonic()))  # the pace
            messages += 1
            self.publisher.send([self.publisher.to_channel(channel, text(stream, messages, self._settings.size))])
            self._members.wait(frames_each=messages)
        return messages

    def check_sizes(self, sizes: dict[str, int]) -> None:
        """See that churn has left the channels as large as they were to be.

        Raises:
            BenchError: One is not.
        """
        for channel, size in sizes.items():
            found = self._client.hlen(self._names.chan(channel))
            assert isinstance(found, int)
            # In the middle of a pass through the clients one may be a member more or less.
            if abs(found - size) > 1:
                raise BenchError(f"channel {channel} has {found} members, and was to have {size}")


def _redis_cpu(client: redis.Redis) -> float:
    info = client.info("cpu")
    assert isinstance(info, dict)
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


def _costs(outcome: Outcome, rounds: list[_Round]) -> None:
    """Add what an operation costs in a large channel, relative to a small one."""
    for which, what in (("node", "the node"), ("redis", "Redis")):
        spent = {
            channel: [
                (getattr(each[channel, True], which) - getattr(each[channel, False], which))
                / each[channel, True].operations
                for each in rounds
            ]
            for channel in ("small", "large")
        }
        # Differences of short windows scatter: what is compared are sums, and the rounds show by how much.
        total = [sum(values) for values in (spent["large"], spent["small"])]
        if min(total) <= 0:
            outcome.left_out.append(f"churn_{which}_ratio: joins and leaves cost less than what can be measured")
            continue
        all_of = {channel: [getattr(each[channel, True], which) for each in rounds] for channel in ("small", "large")}
        operation = [value * 1e6 for value in spent["large"]]
        outcome.figures += [
            Figure(
                f"churn_{which}_ratio",
                "lower",
                f"CPU of {what} for a join or leave in the large channel / in the small one, over all rounds",
                [total[0] / total[1]],
            ),
            Figure(
                f"churn_{which}_all_ratio",
                "lower",
                f"CPU of {what} for all work together, with the large channel / with the small one",
                ratios(all_of["large"], all_of["small"]),
            ),
            Figure(f"churn_{which}_cpu", "lower", f"CPU of {what} for one in the large channel", operation, "µs"),
        ]


def _times(outcome: Outcome, name: str, where: str, rounds: list[_Round]) -> None:
    """Add what churn does to the direct messages of others, unless the sender was what was slow."""
    quiet = [each["large", False] for each in rounds]
    churned = [each["large", True] for each in rounds]
    problems = [window.problem for window in (*quiet, *churned) if window.problem]
    if len(problems) > len(rounds):
        outcome.left_out.append(f"{name}_p99_ratio: {problems[0]}")
        return
    times = [[window.p99 * 1e3 for window in windows] for windows in (quiet, churned)]
    meaning = f"99.0% of direct messages to others arrive within this time, with churn{where}"
    outcome.figures += [
        Figure(
            f"{name}_p99_ratio", "lower", f"the next figure / the same without churn{where}", ratios(times[1], times[0])
        ),
        Figure(f"{name}_p99", "lower", meaning, times[1], "ms"),
        Figure(f"{name}_quiet_p99", "lower", f"the same without churn{where}", times[0], "ms"),
    ]
