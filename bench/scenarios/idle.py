"""Connections that are only there: memory, and the CPU of their pings."""

from __future__ import annotations

import contextlib

from bench import tokens
from bench.outcome import Figure, Outcome
from bench.processes import BenchError, Crowd, Node, Yardstick
from bench.stand import Settings, run_names


def run(settings: Settings) -> Outcome:
    """Measure what a connection takes of the node's memory, of the kernel's, and of CPU for its pings."""
    count = settings.connections
    every = max(1, settings.many(5))
    outcome = Outcome("idle", f"{count} connections, a ping each {every} s")
    options = ("--ping-interval", str(every), "--ping-timeout", str(every))
    user, kernel, ping, ratio = [], [], [], []
    with contextlib.ExitStack() as stack:
        client, names = stack.enter_context(run_names(settings.url))
        for number in range(settings.rounds):
            settings.progress(f"idle: round {number + 1} of {settings.rounds}")
            with (
                Node(settings.url, names.prefix, options=options) as node,
                Yardstick() as bare,
                Crowd(count) as crowd,
                Crowd(count) as bare_crowd,
            ):
                issued = tokens.issue(client, names, count)
                memory = node.memory()
                outcome.check_opened(crowd.connect([node.port], issued), count)
                user.append((node.memory() - memory) / count)
                before = _kernel_memory()
                outcome.check_opened(bare_crowd.connect([bare.port], tokens.for_yardstick(count)), count)
                kernel.append((_kernel_memory() - before) / count)
                spent = _cpu_of_pings(node, crowd, outcome, 2 * every)
                bare_crowd.begin(settings.size)
                bare.ask(f"begin {settings.size}")
                cpu = bare.cpu()
                bare.ask(f"rounds 10 0 {count} 1")
                outcome.check(bare_crowd.wait(frames_each=10), 10 * count)
                ping.append(spent * 1e6)
                ratio.append(spent / ((bare.cpu() - cpu) / 10 / count))
    outcome.figures = [
        Figure("idle_memory", "lower", "memory of the node for a connection, without the kernel's", user, "bytes"),
        Figure(
            "idle_kernel_memory",
            "lower",
            "the same of the kernel, for both ends of a connection",
            kernel,
            "bytes",
        ),
        Figure("ping_ratio", "lower", "CPU of the node for a ping and its pong / CPU of a bare send", ratio),
        Figure("ping_cpu", "lower", "CPU of the node for a ping and its pong", ping, "µs"),
    ]
    return outcome


def _cpu_of_pings(node: Node, crowd: Crowd, outcome: Outcome, seconds: float) -> float:
    crowd.begin(0)
    cpu = node.cpu()
    tally = outcome.check(crowd.watch(seconds), 0)
    if not tally.pings:
        raise BenchError(f"no ping came within {seconds} s")
    return (node.cpu() - cpu) / tally.pings


def _kernel_memory() -> int:
    """Return the bytes that the kernel's objects take: of the whole machine, so other programs blur it."""
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Slab:")) << 10
