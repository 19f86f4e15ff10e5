"""A node and the yardstick side by side, each with as many connections; what most scenarios are measured on."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import redis

from bench import tokens
from bench.outcome import Outcome
from bench.processes import PAUSE_SECONDS, SETTLE_SECONDS, Crowd, Node, Process, Yardstick
from bench.publisher import Publisher
from bench.tally import Tally
from freeim import ImHelper
from freeim.names import Names

QUIET: Final = ("--ping-interval", "3600")
"""Pings are a scenario of their own."""

_runs: Final = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured.

    Attributes:
        url: Redis.
        connections: How many to each side.
        size: Bytes of a message.
        rounds: How often each side is measured, in turn.
        repeat: Scales how many messages a round sends; 1 is for figures, less is for a quick look.
        pause: How long the load generator rests between two looks; see `Crowd.begin`.
        workers: Nodes of the scenario ``fifty``.
        fifty: Connections of that scenario, over all nodes.
        peer_python: The interpreter in which the Python servers of the scenario ``peers`` are looked for.
        latency: Connections of the scenarios ``latency`` and ``steps``; 0 for as many as the others have.
        soak: Seconds of the scenario ``soak``.
        progress: Told in a line what is being done.
    """

    url: str
    connections: int = 10_000
    size: int = 128
    rounds: int = 5
    repeat: float = 1.0
    pause: float = PAUSE_SECONDS
    workers: int = 3
    fifty: int = 50_000
    peer_python: str = sys.executable
    latency: int = 0
    soak: float = 600.0
    progress: Callable[[str], None] = lambda _: None

    @property
    def latency_connections(self) -> int:
        return self.latency or self.connections

    def many(self, count: int) -> int:
        """Scale a number of messages."""
        return max(1, round(count * self.repeat))


@contextlib.contextmanager
def run_names(url: str) -> Iterator[tuple[redis.Redis, Names]]:
    """Give a scenario names of its own in Redis, and remove its keys afterwards."""
    names = Names(f"bench{os.getpid()}x{next(_runs)}")
    client = redis.Redis.from_url(url)
    try:
        yield client, names
    finally:
        keys = client.scan_iter(f"{names.prefix}*", count=1000)
        while chunk := list(itertools.islice(keys, 1000)):
            client.delete(*chunk)
        client.close()


def free_ports(count: int) -> list[int]:
    """Return ports on 127.0.0.1 that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def join(helper: ImHelper, channel: str, clients: Iterable[int]) -> None:
    """Make clients members of a channel."""
    members = iter(clients)
    while chunk := list(itertools.islice(members, 1000)):
        with helper.batch() as batch:
            for client in chunk:
                batch.join_chan(client, channel)


class Stand:
    """A node, the yardstick, and a crowd at each.

    Args:
        settings: How much is measured.
        names: The names of this run.
        node: The node.
        bare: The yardstick.
        crowds: The connections of the node, and those of the yardstick.
    """

    def __init__(
        self, settings: Settings, names: Names, node: Node, bare: Yardstick, crowds: tuple[Crowd, Crowd]
    ) -> None:
        self.settings = settings
        self.names = names
        self.node = node
        self.yardstick = bare
        self.crowd, self.bare_crowd = crowds
        self.publisher = Publisher(settings.url, names, node.node)
        self._stream = 1

    def next_stream(self) -> int:
        """Return the number of a stream for the messages of one round; see `next_streams`."""
        return self.next_streams(1)

    def next_streams(self, count: int) -> int:
        """Return the first of so many adjacent numbers. None is used twice, which tells what came late."""
        first = self._stream
        self._stream += count
        return first

    def round(
        self, outcome: Outcome, send: Callable[[], None], receivers: Iterable[int] | None = None, frames_each: int = 1
    ) -> tuple[float, Tally]:
        """Measure the node while it delivers.

        Args:
            outcome: Where what arrives is checked.
            send: Makes the node deliver; what it sends is better made before.
            receivers: See `Crowd.wait`.
            frames_each: See `Crowd.wait`.

        Returns:
            CPU seconds of the node, and what the generator counted.
        """
        return self._round(outcome, self.node, self.crowd, send, receivers, frames_each)

    def bare_round(
        self, outcome: Outcome, send: Callable[[], None], receivers: Iterable[int] | None = None, frames_each: int = 1
    ) -> tuple[float, Tally]:
        """Measure the yardstick in the same way. It counts its connections in the order in which they came."""
        self.yardstick.ask(f"begin {self.settings.size}")
        return self._round(outcome, self.yardstick, self.bare_crowd, send, receivers, frames_each)

    def _round(
        self,
        outcome: Outcome,
        server: Process,
        crowd: Crowd,
        send: Callable[[], None],
        receivers: Iterable[int] | None,
        frames_each: int,
    ) -> tuple[float, Tally]:
        wanted = None if receivers is None else list(receivers)
        crowd.begin(self.settings.size, self.settings.pause)
        cpu = server.cpu()
        send()
        crowd.wait(wanted, frames_each)
        tally = crowd.watch(SETTLE_SECONDS)
        cpu = server.cpu() - cpu
        outcome.check(tally, (crowd.clients if wanted is None else len(wanted)) * frames_each, cpu)
        return cpu, tally


@contextlib.contextmanager
def stand(
    settings: Settings, channels: Mapping[str, int], outcome: Outcome, options: Iterable[str] = QUIET
) -> Iterator[Stand]:
    """Start all processes and connect everybody.

    Args:
        settings: How much.
        channels: Channels, each with how many of the clients are members: those with the lowest ids.
        outcome: Told how many have connected.
        options: Options of the node.
    """
    count = settings.connections
    with contextlib.ExitStack() as stack:
        client, names = stack.enter_context(run_names(settings.url))
        node = stack.enter_context(Node(settings.url, names.prefix, options=options))
        bare = stack.enter_context(Yardstick())
        crowds = stack.enter_context(Crowd(count)), stack.enter_context(Crowd(count))
        with ImHelper(settings.url, prefix=names.prefix, nodes=[node.node]) as helper:
            for channel, members in channels.items():
                join(helper, channel, range(1, members + 1))
        settings.progress(f"connecting {count} to each side")
        outcome.check_opened(crowds[0].connect([node.port], tokens.issue(client, names, count)), count)
        outcome.check_opened(crowds[1].connect([bare.port], tokens.for_yardstick(count)), count)
        made = Stand(settings, names, node, bare, crowds)
        stack.callback(made.publisher.close)
        time.sleep(0.1)  # the node may have to write its last presence
        yield made
