"""Fan-out and handshakes of one node against a bare send loop, interleaved, median of five.

``python -m bench [--connections N] [--redis URL]``. All figures are CPU of the process that serves, quoted as ratios to
the yardstick (bench/yardstick.py) of the same run; the machine's speed drops out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Self

import redis

from freeim.embedded.join import join

ROUNDS = 5
PAYLOAD = "x" * 126  # 128 bytes of JSON text with its quotes: a frame of 132 bytes
FRAME_BYTES = 132
BURST = 100


class Clients:
    """The process with the connections."""

    def __init__(self, host: str, port: int, tokens: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.clients"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.count = len(tokens)
        self.say(f"connect {host} {port} /ws {len(tokens)}", *tokens)
        self.connect_seconds = float(self.hear()[1])

    def say(self, *lines: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("".join(f"{line}\n" for line in lines))
        self.process.stdin.flush()

    def hear(self) -> list[str]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().split()
        if not line:
            raise SystemExit("the client process ended")
        return line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.say("quit")
        self.process.wait(10)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process so far, user and system."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(url: str, count: int) -> None:
    bus = redis.Redis.from_url(url)
    prefix = f"bench{os.getpid()}"
    node = subprocess.Popen(
        [
            *(sys.executable, "-m", "freeim.cli", "--bind", "127.0.0.1:0", "--redis-url", url, "--prefix", prefix),
            *("--ping-interval", "3600"),  # a ping would be counted as a frame
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "FREEIM_LOG_LEVEL": "warning"},
    )
    yardstick = subprocess.Popen(
        [sys.executable, "-m", "bench.yardstick"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert node.stdout is not None
        name = node.stdout.readline().split()[-1]
        tokens = [f"{number:0128x}" for number in range(1, count + 1)]
        pipe = bus.pipeline(transaction=False)
        for number, token in enumerate(tokens, 1):
            pipe.set(f"{prefix}Token{token}", f'{{"Item1":{number},"Item2":""}}', ex=300)
        pipe.execute()
        memory, cpu = resident(node.pid), cpu_seconds(node.pid)
        with Clients("127.0.0.1", int(name.rsplit(":", 1)[1]), tokens) as clients:
            cpu = cpu_seconds(node.pid) - cpu
            report = {
                "connections": count,
                "connect_cpu_us": cpu / count * 1e6,
                "connects_per_second": count / clients.connect_seconds,
                "bytes_per_connection": (resident(node.pid) - memory) / count,
            }
            assert yardstick.stdout is not None
            port = int(yardstick.stdout.readline())
            before = cpu_seconds(yardstick.pid)
            with Clients("127.0.0.1", port, tokens) as others:
                report["yardstick_connect_cpu_us"] = (cpu_seconds(yardstick.pid) - before) / count * 1e6
                rounds = [
                    round_of(bus, prefix + "Server" + name, node.pid, clients, yardstick, others) for _ in range(ROUNDS)
                ]
        for key in rounds[0]:
            report[key] = statistics.median(entry[key] for entry in rounds)
        report["fanout_ratio"] = report["yardstick_send_us"] / report["fanout_us"]
        report["burst_ratio"] = report["yardstick_send_us"] / report["burst_us"]
        report["connect_ratio"] = report["connect_cpu_us"] / report["yardstick_connect_cpu_us"]
        print(json.dumps(report, indent=2))
    finally:
        for process in (node, yardstick):
            process.terminate()
            process.wait(30)
        for key in bus.scan_iter(f"{prefix}*"):
            bus.delete(key)


def round_of(
    bus: redis.Redis, channel: str, pid: int, clients: Clients, yardstick: subprocess.Popen[str], others: Clients
) -> dict[str, float]:
    """Measure one broadcast after another, a burst, and the bare loop; CPU microseconds per delivery."""
    payload = "__FreeIM__(ChanMessage)" + json.dumps(
        {"Item1": 0, "Item2": None, "Item3": json.dumps(PAYLOAD)}, separators=(",", ":")
    )
    singles = 20
    cpu = cpu_seconds(pid)
    for _ in range(singles):
        clients.say(f"expect {FRAME_BYTES}")
        clients.hear()
        bus.publish(channel, payload)
        clients.hear()
    fanout = (cpu_seconds(pid) - cpu) / singles / clients.count
    clients.say(f"expect {FRAME_BYTES * BURST}")
    clients.hear()
    cpu = cpu_seconds(pid)
    pipe = bus.pipeline(transaction=False)
    for _ in range(BURST):
        pipe.publish(channel, payload)
    pipe.execute()
    clients.hear()
    time.sleep(0.1)
    burst = (cpu_seconds(pid) - cpu) / BURST / clients.count
    others.say(f"expect {FRAME_BYTES * singles}")
    others.hear()
    assert yardstick.stdin is not None
    assert yardstick.stdout is not None
    yardstick.stdin.write(f"send {singles} {FRAME_BYTES}\n")
    yardstick.stdin.flush()
    bare = float(yardstick.stdout.readline()) / singles / others.count
    others.hear()
    return {"fanout_us": fanout * 1e6, "burst_us": burst * 1e6, "yardstick_send_us": bare * 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--connections", type=int, default=5000, help="at most 19,000 (default 5000)")
    parser.add_argument("--redis", metavar="URL", help="a Redis to use; by default the embedded one")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        url = options.redis
        if url is None:
            embedded = join()
            stack.callback(embedded.close)
            url = embedded.url
        measure(url, options.connections)


if __name__ == "__main__":
    main()
