"""Everything at once for a long time: does the node's memory grow, and does anything get lost?"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from dataclasses import dataclass, field

import redis

from bench import tokens
from bench.churner import Churner
from bench.outcome import Figure, Outcome
from bench.pacer import Pacer
from bench.processes import BenchError, Crowd, Node
from bench.publisher import Publisher, text
from bench.stand import Settings, join, run_names
from freeim import ImHelper, envelope
from freeim.names import Names

CHURN_RATE, DIRECT_RATE = 500, 500
TURN_SECONDS = 0.25
"""A turn is a storm of comers, a message to the channel, some with receipts, and in each fourth turn a broadcast."""
COMERS, PAIRS = 200, 20
OPTIONS = ("--ping-interval", "10")


def run(settings: Settings) -> Outcome:
    """Let some stay, some join and leave, and some come and go, and send all kinds of messages meanwhile."""
    count, seconds = settings.connections, settings.soak
    if count < 10:
        raise BenchError("soak needs ten connections: some stay, some join and leave, and some come and go")
    stable = range(1, count // 2 + 1)
    churners = range(stable.stop, stable.stop + min(1000, count // 4))
    comers = range(churners.stop, churners.stop + min(COMERS, count // 4))
    outcome = Outcome(
        "soak",
        f"{seconds:g} s with {len(stable)} connections that stay, {len(churners)} that join and leave {CHURN_RATE} "
        f"times a second, and {len(comers)} that come and go again and again; {DIRECT_RATE} direct messages a "
        "second, others to a channel, to everybody, and with receipts",
    )
    with contextlib.ExitStack() as stack:
        client, names = stack.enter_context(run_names(settings.url))
        node = stack.enter_context(Node(settings.url, names.prefix, options=OPTIONS))
        crowds = [stack.enter_context(Crowd(len(clients), first=clients[0])) for clients in (stable, churners, comers)]
        for crowd in crowds[:2]:
            issued = tokens.issue(client, names, crowd.clients, crowd.first)
            outcome.check_opened(crowd.connect([node.port], issued), crowd.clients)
            crowd.begin(settings.size)
        pacer = stack.enter_context(Pacer(settings.url, names, [node.node]))
        churner = stack.enter_context(Churner(settings.url, names, churners))
        with ImHelper(settings.url, prefix=names.prefix, nodes=[node.node]) as helper:
            join(helper, "channel", stable)
        churner.prepare("channel")
        publisher = Publisher(settings.url, names, node.node)
        stack.callback(publisher.close)
        turns = _Turns(settings, client, names, outcome, node, publisher, crowds[2])
        cpu = node.cpu()
        pacer.start(DIRECT_RATE, seconds, stable, 1, size=settings.size)
        churner.start("channel", CHURN_RATE, seconds)
        turns.go_on(seconds, len(stable))
        direct, churned = pacer.finish(), churner.finish()
        expected = direct.messages + turns.frames
        tally = outcome.check(crowds[0].settle(expected), expected)
        cpu = (node.cpu() - cpu) / tally.seconds
        outcome.expected += turns.receipts
        outcome.received += tally.receipts
        outcome.check_some(crowds[1].watch(0))
        outcome.sender = max(direct.busy, churned.busy)
        outcome.slow = churned.objection
    first, last = turns.memory_between(1 / 3, 1 / 3 + 0.1), turns.memory_between(0.9, 1.0)
    outcome.figures = [
        Figure(
            "soak_memory_ratio", "lower", "memory of the node at the end / after a third of the time", [last / first]
        ),
        Figure("soak_memory", "lower", "memory of the node at the end", [last / (1 << 20)], "MiB"),
        Figure("soak_cpu", "lower", "CPU of the node, as a share of a core", [cpu]),
        Figure("soak_opened", "", "connections that were opened and closed meanwhile", [turns.opened]),
        Figure("soak_rate", "", "messages to those who stayed, a second", [tally.frames / tally.seconds], "/s"),
    ]
    return outcome


@dataclass(slots=True)
class _Turns:
    """What this process does itself, turn by turn, and what is to come of it.

    Attributes:
        frames: Messages that those who stay are to get.
        receipts: Receipts that they are to get.
        opened: Connections that have come and gone.
        samples: The node's memory in bytes, with when it was read as a share of the whole time.
    """

    settings: Settings
    client: redis.Redis
    names: Names
    outcome: Outcome
    node: Node
    publisher: Publisher
    comers: Crowd
    frames: int = 0
    receipts: int = 0
    opened: int = 0
    samples: list[tuple[float, int]] = field(default_factory=list)

    def go_on(self, seconds: float, stable: int) -> None:
        """Take turns for so many seconds, with so many connections that stay."""
        pairs = min(PAIRS, stable // 2)
        start, broadcasts = time.monotonic(), 0
        for turn in itertools.count(1):
            began = time.monotonic()
            issued = tokens.issue(self.client, self.names, self.comers.clients, self.comers.first)
            self.outcome.check_opened(self.comers.connect([self.node.port], issued), self.comers.clients)
            commands = [self.publisher.to_channel("channel", text(2, turn, self.settings.size))]
            commands += [self._with_receipt(turn, sender, sender + pairs) for sender in range(1, pairs + 1)]
            if turn % 4 == 1:
                broadcasts += 1
                message = text(4, broadcasts, self.settings.size)
                commands.append(self.publisher.pack(envelope.channel(0, None, message)))
            self.publisher.send(commands)
            self.frames += stable + pairs + (stable if turn % 4 == 1 else 0)
            self.receipts += pairs
            tally = self.comers.close()
            tally.closes.pop(1000, None)  # the answer to their own Close
            self.outcome.check_some(tally)
            self.opened += self.comers.clients
            self.samples.append(((time.monotonic() - start) / seconds, self.node.memory()))
            if time.monotonic() - start >= seconds:
                return
            if turn % 100 == 0:
                self.settings.progress(f"soak: {time.monotonic() - start:.0f} of {seconds:g} s")
            time.sleep(max(0.0, began + TURN_SECONDS - time.monotonic()))  # the pace

    def _with_receipt(self, sequence: int, sender: int, receiver: int) -> bytes:
        message = text(3, sequence, self.settings.size, to=receiver)
        return self.publisher.pack(envelope.direct(sender, [receiver], envelope.direct_tail(message, True)))

    def memory_between(self, low: float, high: float) -> float:
        """Return the node's memory in a part of the time; the sample next to it where none falls into it."""
        found = [size for at, size in self.samples if low <= at <= high]
        return statistics.median(found or [min(self.samples, key=lambda each: abs(each[0] - low))[1]])
