"""Everybody connects at once, each with a token: look-up, presence, event and the 101."""

from __future__ import annotations

import contextlib

import redis

from bench import tokens
from bench.outcome import Figure, Outcome, ratios
from bench.processes import Crowd, Node, Yardstick
from bench.stand import QUIET, Settings, run_names


def run(settings: Settings) -> Outcome:
    """Measure the CPU of a connection against one that the yardstick accepts."""
    count = settings.connections
    outcome = Outcome("storm", f"{count} connections, 256 handshakes under way")
    node_cpu, bare_cpu, seconds, commands, slow = [], [], [], [], []
    with contextlib.ExitStack() as stack:
        client, names = stack.enter_context(run_names(settings.url))
        node = stack.enter_context(Node(settings.url, names.prefix, options=QUIET))
        bare = stack.enter_context(Yardstick())
        crowd, bare_crowd = stack.enter_context(Crowd(count)), stack.enter_context(Crowd(count))
        for number in range(settings.rounds):
            settings.progress(f"storm: round {number + 1} of {settings.rounds}")
            issued = tokens.issue(client, names, count)
            asked, cpu = _commands(client), node.cpu()
            tally = outcome.check_opened(crowd.connect([node.port], issued), count)
            node_cpu.append((node.cpu() - cpu) / count)
            commands.append((_commands(client) - asked) / count)
            seconds.append(tally.seconds)
            slow.append(tally.quantile(0.99) * 1e3)
            outcome.busiest = max(outcome.busiest, tally.busy)
            crowd.close()
            cpu = bare.cpu()
            outcome.check_opened(bare_crowd.connect([bare.port], tokens.for_yardstick(count)), count)
            bare_cpu.append((bare.cpu() - cpu) / count)
            bare_crowd.close()
    ratio = ratios(node_cpu, bare_cpu)
    outcome.figures = [
        Figure("storm_ratio", "lower", "CPU of a connection to the node / to the yardstick", ratio),
        Figure("storm_cpu", "lower", "CPU of the node for a connection", [cpu * 1e6 for cpu in node_cpu], "µs"),
        Figure("storm_rate", "higher", "connections a second, by the clock", [count / s for s in seconds], "/s"),
        Figure("storm_p99", "lower", "99 % have their 101 within", slow, "ms"),
        Figure("storm_commands", "lower", "Redis commands for a connection, those in scripts included", commands),
    ]
    return outcome


def _commands(client: redis.Redis) -> int:
    stats = client.info("commandstats")
    assert isinstance(stats, dict)
    return sum(each["calls"] for each in stats.values())
