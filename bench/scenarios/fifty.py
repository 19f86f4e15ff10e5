"""More connections than one process may hold: several nodes, several generators, and messages to everybody."""

from __future__ import annotations

import contextlib
import itertools
import json

from bench import tokens
from bench.outcome import Figure, Outcome, ratios
from bench.processes import SETTLE_SECONDS, Crowd, Node, Yardstick
from bench.publisher import Publisher, text
from bench.stand import QUIET, Settings, free_ports, join, run_names
from freeim import ImHelper


def run(settings: Settings) -> Outcome:
    """Measure deliveries over all nodes against as many yardsticks."""
    count, workers, messages = settings.fifty, settings.workers, settings.many(4)
    each = -(-count // workers)
    outcome = Outcome(
        "fifty", f"{count} connections to {workers} nodes, {messages} messages of {settings.size} bytes to all"
    )
    with contextlib.ExitStack() as stack:
        client, names = stack.enter_context(run_names(settings.url))
        binds = [f"127.0.0.1:{port}" for port in free_ports(workers)]
        options = (*QUIET, "--nodes", ",".join(binds))
        nodes = [stack.enter_context(Node(settings.url, names.prefix, bind, options)) for bind in binds]
        bare = [stack.enter_context(Yardstick()) for _ in nodes]
        crowd, bare_crowd = (stack.enter_context(Crowd(count, each)) for _ in range(2))
        settings.progress(f"connecting {count} to each side")
        with ImHelper(settings.url, prefix=names.prefix, nodes=binds) as helper:
            join(helper, "channel", range(1, count + 1))
        memory = sum(node.memory() for node in nodes)
        issued = tokens.issue(client, names, count)
        opened = outcome.check_opened(crowd.connect([node.port for node in nodes], issued), count)
        memory = sum(node.memory() for node in nodes) - memory
        spelt = tokens.for_yardstick(count)
        outcome.check_opened(bare_crowd.connect([server.port for server in bare], spelt), count)
        publishers = [Publisher(settings.url, names, bind) for bind in binds]
        for publisher in publishers:
            stack.callback(publisher.close)
        streams = itertools.count(1)
        run_ = _Rounds(settings, outcome, messages)
        spent, seconds, yards = [], [], []
        for number in range(settings.rounds):
            settings.progress(f"fifty: round {number + 1} of {settings.rounds}")
            cpu, wall = run_.nodes(next(streams), nodes, publishers, crowd)
            spent.append(cpu)
            seconds.append(wall)
            yards.append(run_.yardsticks(next(streams), bare, bare_crowd))
    sent = messages * count
    outcome.figures = [
        Figure("fifty_ratio", "higher", "CPU of a bare send / of a delivery, over all nodes", ratios(yards, spent)),
        Figure("fifty_cpu", "lower", "CPU of the nodes for a delivery", [cpu / sent * 1e6 for cpu in spent], "µs"),
        Figure("fifty_rate", "higher", "deliveries a second, by the clock", [sent / wall for wall in seconds], "/s"),
        Figure("fifty_memory", "lower", "memory of the nodes for a connection", [memory / count], "bytes"),
        Figure("fifty_open_rate", "higher", "connections a second, by the clock", [count / opened.seconds], "/s"),
    ]
    return outcome


class _Rounds:
    """One round of each side: one message at a time, the next when all have it."""

    def __init__(self, settings: Settings, outcome: Outcome, messages: int) -> None:
        self._size = settings.size
        self._outcome = outcome
        self._messages = messages

    def nodes(self, stream: int, nodes: list[Node], publishers: list[Publisher], crowd: Crowd) -> tuple[float, float]:
        crowd.begin(self._size)
        cpu = sum(node.cpu() for node in nodes)
        for number in range(1, self._messages + 1):
            message = text(stream, number, self._size)
            for publisher in publishers:
                publisher.send([publisher.to_channel("channel", message)])
            crowd.wait(frames_each=number)
        tally = self._outcome.check(crowd.watch(SETTLE_SECONDS), self._messages * crowd.clients)
        return sum(node.cpu() for node in nodes) - cpu, tally.seconds

    def yardsticks(self, stream: int, bare: list[Yardstick], crowd: Crowd) -> float:
        counts = [server.ask(f"begin {self._size}") and server.ask("count")["count"] for server in bare]
        crowd.begin(self._size)
        cpu = sum(server.cpu() for server in bare)
        for number in range(1, self._messages + 1):
            for server, count in zip(bare, counts, strict=True):
                server.say(f"rounds 1 0 {count} {stream}")  # all at the same time, as the nodes send
            for server in bare:
                json.loads(server.hear())
            crowd.wait(frames_each=number)
        self._outcome.check(crowd.watch(SETTLE_SECONDS), self._messages * crowd.clients)
        return sum(server.cpu() for server in bare) - cpu
