"""Other servers that push to many, each in turn with freeim and the yardstick: what they spend beside freeim."""

from __future__ import annotations

import contextlib
import itertools
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import tokens
from bench.outcome import Figure, Outcome, ratios
from bench.peers import PEERS
from bench.peers.base import Peer, PeerError, Run, Sender
from bench.processes import SETTLE_SECONDS, Crowd, Node, Process, Yardstick
from bench.publisher import Publisher, text
from bench.stand import QUIET, Settings, join, run_names
from freeim import ImHelper
from freeim.names import Names

REST_SECONDS = 30.0
"""How long a server may work on its new connections."""
REST_CPU = 0.005
"""CPU seconds within a tenth of a second; who spends less is at rest."""
READY_SECONDS = 60.0
LOST_SECONDS = 15.0
"""How long the last message of many may take to arrive before it is lost."""
CHANNEL = "everybody"
FANOUT, DIRECT = 20, 20_000

_streams = itertools.count(1)


def run(settings: Settings) -> Outcome:
    """Measure each server that is installed."""
    outcome = Outcome(
        "peers",
        f"{settings.connections} connections to each, {settings.many(FANOUT)} messages of {settings.size} bytes to "
        f"everybody, {settings.many(DIRECT)} to one client each",
    )
    for kind in PEERS:
        peer = kind(settings.peer_python)
        how = peer.missing()
        if how is not None:
            _note(settings, outcome, f"{peer.name} is not here: {how}")
            continue
        _note(settings, outcome, f"{peer.name}: {peer.version()}")
        of_peer = Outcome("peers", "")
        try:
            found = [_round(settings, peer, outcome, of_peer, number) for number in range(settings.rounds)]
        except PeerError as error:
            _note(settings, outcome, f"{peer.name} has no figures: {error}")
            continue
        if of_peer.objection:
            _note(settings, outcome, f"{peer.name} has no figures: {of_peer.objection}")
            continue
        outcome.expected += of_peer.expected
        outcome.received += of_peer.received
        outcome.busiest = max(outcome.busiest, of_peer.busiest)
        outcome.figures += _figures(peer.name, found)
    return outcome


@dataclass(frozen=True, slots=True)
class _Costs:
    """What one side has spent: CPU seconds of a connection, of a delivery and of a message to one client; bytes."""

    storm: float
    memory: float
    fanout: float
    direct: float


def _figures(name: str, found: Sequence[tuple[_Costs, _Costs, _Costs]]) -> list[Figure]:
    figures = []
    for what, meaning in (
        ("storm", "CPU of a connection"),
        ("fanout", "CPU of a delivery, one message at a time to everybody"),
        ("direct", "CPU of a message to one client"),
    ):
        node, bare, theirs = ([getattr(costs, what) for costs in side] for side in zip(*found, strict=True))
        figures += [
            Figure(f"{name}_{what}", "", f"{meaning}: {name} / freeim", ratios(theirs, node)),
            Figure(f"{name}_{what}_bare", "", f"{meaning}: {name} / the yardstick", ratios(theirs, bare)),
        ]
    node, _, theirs = ([costs.memory for costs in side] for side in zip(*found, strict=True))
    return [
        *figures,
        Figure(f"{name}_memory", "", f"memory for a connection: {name}", theirs, "bytes"),
        Figure(f"{name}_memory_freeim", "", f"memory for a connection: freeim beside {name}", node, "bytes"),
    ]


def _note(settings: Settings, outcome: Outcome, line: str) -> None:
    settings.progress(f"peers: {line}")
    outcome.notes.append(line)


def _round(
    settings: Settings, peer: Peer, outcome: Outcome, of_peer: Outcome, number: int
) -> tuple[_Costs, _Costs, _Costs]:
    """Start freeim, the yardstick and a peer afresh, and do the same with each, in turn."""
    settings.progress(f"peers: {peer.name}, round {number + 1} of {settings.rounds}")
    count = settings.connections
    with contextlib.ExitStack() as stack:
        client, names = stack.enter_context(run_names(settings.url))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        this = Run(settings.url, names.prefix, folder)
        node = stack.enter_context(Node(settings.url, names.prefix, options=QUIET))
        bare = stack.enter_context(Yardstick())
        server = stack.enter_context(peer.start(this))
        crowds = [stack.enter_context(Crowd(count)) for _ in range(3)]
        if peer.envelope:
            crowds[2].envelope(*peer.envelope)
        with ImHelper(settings.url, prefix=names.prefix, nodes=[node.node]) as helper:
            join(helper, CHANNEL, range(1, count + 1))
        node_sender = stack.enter_context(contextlib.closing(_NodeSender(settings.url, names, node)))
        sender = stack.enter_context(contextlib.closing(peer.sender(server)))
        sides = (
            _Side(settings, outcome, node, crowds[0], node_sender),
            _BareSide(settings, outcome, bare, crowds[1]),
            _Side(settings, of_peer, server, crowds[2], sender),
        )
        opened = [
            side.connect(port, issued, path)
            for side, port, issued, path in zip(
                sides,
                (node.port, bare.port, server.port),
                (tokens.issue(client, names, count), tokens.for_yardstick(count), peer.tokens(server, count)),
                ("/ws", "/ws", peer.path),
                strict=True,
            )
        ]
        for side in sides:
            side.warm_up()
        fanout = [side.fanout() for side in sides]
        direct = [side.direct(number) for side in sides]
    costs = [_Costs(*begun, *sent) for begun, *sent in zip(opened, fanout, direct, strict=True)]
    return costs[0], costs[1], costs[2]


class _NodeSender:
    def __init__(self, url: str, names: Names, node: Node) -> None:
        self._publisher = Publisher(url, names, node.node)
        self.send = self._publisher.send
        self.close = self._publisher.close

    def pack(self, message: str, client: int = 0) -> bytes:
        if client:
            return self._publisher.to_clients([client], message)
        return self._publisher.to_channel(CHANNEL, message)


class _Side:
    """A server with its crowd, measured in one way whatever it is."""

    def __init__(
        self, settings: Settings, outcome: Outcome, server: Process, crowd: Crowd, sender: Sender | None = None
    ) -> None:
        self._settings = settings
        self._outcome = outcome
        self._server = server
        self._crowd = crowd
        self._sender = sender
        self._count = crowd.clients

    def connect(self, port: int, issued: Sequence[str], path: str) -> tuple[float, float]:
        """Connect the crowd; return CPU and memory of the server for each of it."""
        memory, cpu = self._server.memory(), self._server.cpu()
        self._outcome.check_opened(self._crowd.connect([port], issued, path=path), self._count)
        # Some answer with a 101 and subscribe afterwards: that is part of a connection.
        until = time.monotonic() + REST_SECONDS
        spent, before = self._server.cpu(), -1.0
        while spent - before > REST_CPU and time.monotonic() < until:
            time.sleep(0.1)
            spent, before = self._server.cpu(), spent
        return (spent - cpu) / self._count, (self._server.memory() - memory) / self._count

    def warm_up(self) -> None:
        """Send until everybody gets what is for all and what is for each; then the buffers of the kernel have grown."""
        until = time.monotonic() + READY_SECONDS
        for send in (self._send_to_all, self._send_to_each):
            complete = 0
            while complete < self._count:
                if time.monotonic() > until:
                    raise PeerError(
                        f"{self._server.name}: {complete} of {self._count} clients get messages {READY_SECONDS:g} s "
                        "after their 101"
                    )
                stream = next(_streams)
                self._begin()
                send(stream)
                self._crowd.wait(seconds=2.0)
                complete = self._crowd.complete(stream, 1)
        self._crowd.watch(10 * SETTLE_SECONDS)

    def fanout(self) -> float:
        """Send to everybody, the next when all have the one before; return the CPU of a delivery."""
        messages = self._settings.many(FANOUT)
        stream = next(_streams)
        self._begin()
        cpu = self._server.cpu()
        for number in range(1, messages + 1):
            self._send_to_all(stream, number)
            tally = self._crowd.wait(frames_each=number, seconds=LOST_SECONDS)
            if tally.frames < number * self._count:
                break  # what is lost is lost, and would be waited for each time
        return self._end(cpu, messages * self._count)

    def direct(self, seed: int) -> float:
        """Send to clients chosen at random; return the CPU of a message."""
        messages = self._settings.many(DIRECT)
        dice = random.Random(seed)
        send = self._prepare(next(_streams), [dice.randint(1, self._count) for _ in range(messages)])
        self._begin()
        cpu = self._server.cpu()
        send()
        self._crowd.wait([1] * messages, seconds=LOST_SECONDS)  # how many, not who: the crowd is one process
        return self._end(cpu, messages)

    def _begin(self) -> None:
        self._crowd.begin(self._settings.size, self._settings.pause)

    def _end(self, cpu: float, expected: int) -> float:
        tally = self._crowd.watch(SETTLE_SECONDS)
        cpu = self._server.cpu() - cpu
        self._outcome.check(tally, expected, cpu)
        return cpu / expected

    def _send_to_all(self, stream: int, number: int = 1) -> None:
        assert self._sender is not None
        self._sender.send([self._sender.pack(text(stream, number, self._settings.size))])

    def _send_to_each(self, stream: int) -> None:
        self._prepare(stream, range(1, self._count + 1))()

    def _prepare(self, stream: int, receivers: Sequence[int]) -> Callable[[], None]:
        """Pack messages beforehand: Python is slower than some servers."""
        sender = self._sender
        assert sender is not None
        sequences: Counter[int] = Counter()
        packed = []
        for client in receivers:
            sequences[client] += 1
            message = text(stream, sequences[client], self._settings.size, to=client)
            packed.append(sender.pack(message, client))
        return lambda: sender.send(packed)


class _BareSide(_Side):
    """The yardstick, which sends by itself."""

    def _begin(self) -> None:
        self._server.ask(f"begin {self._settings.size}")
        super()._begin()

    def _send_to_all(self, stream: int, number: int = 1) -> None:
        del number  # it counts by itself
        self._server.ask(f"rounds 1 0 {self._count} {stream}")

    def _prepare(self, stream: int, receivers: Sequence[int]) -> Callable[[], None]:
        # It chooses by itself to whom: that does not matter for the sum.
        return lambda: self._server.ask(f"random {len(receivers)} {stream} {stream}")

    def _send_to_each(self, stream: int) -> None:
        self._send_to_all(stream)
