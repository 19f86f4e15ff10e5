"""The processes of a run: nodes, the yardstick, and crowds of connections; what each spends of CPU and memory."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Self

from bench.build import program
from bench.steps import Steps
from bench.tally import Tally, merge

PER_PROCESS: Final = 18_000
"""Connections of one process of a crowd: 20,000 descriptors are a common limit."""
IN_FLIGHT: Final = 256
WAIT_SECONDS: Final = 60.0
PAUSE_SECONDS: Final = 0.0005
SETTLE_SECONDS: Final = 0.02


class BenchError(Exception):
    """A run cannot go on; the sentence is for whoever started it."""


class Process:
    """A child process; the end of the with block ends it."""

    def __init__(self, command: Sequence[str], env: dict[str, str] | None = None) -> None:
        self.name = os.path.basename(command[0])
        self.popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    @property
    def pid(self) -> int:
        return self.popen.pid

    def say(self, *lines: str) -> None:
        """Write lines to its stdin."""
        assert self.popen.stdin is not None
        try:
            self.popen.stdin.write("\n".join(lines) + "\n")
            self.popen.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def hear(self) -> str:
        """Wait for the next line of its stdout."""
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if not line:
            raise self._ended()
        return line

    def _ended(self) -> BenchError:
        return BenchError(f"{self.name} ended with exit code {self.popen.wait()}; stderr has its reason")

    def ask(self, *lines: str) -> Any:
        """Say lines, and return the JSON of the answer."""
        self.say(*lines)
        return json.loads(self.hear())

    def cpu(self) -> float:
        """Return its CPU time so far in seconds, to the nanosecond: user and system, all threads."""
        return time.clock_gettime(~self.pid << 3 | 2)  # what clock_getcpuclockid(3) returns on Linux

    def cpu_split(self) -> tuple[float, float]:
        """Return its user and its system time so far, in ticks of the kernel (10 ms as a rule)."""
        with open(f"/proc/{self.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        tick = os.sysconf("SC_CLK_TCK")
        return int(fields[11]) / tick, int(fields[12]) / tick

    def memory(self) -> int:
        """Return the bytes of memory that are in RAM for this process alone (no libraries that others map, too)."""
        with open(f"/proc/{self.pid}/smaps_rollup") as file:
            return (
                sum(int(line.split()[1]) for line in file if line.startswith(("Private_Clean", "Private_Dirty"))) << 10
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.popen.terminate()
        try:
            self.popen.wait(20)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # what it did not live to read
                pipe.close()


@contextlib.contextmanager
def core_of_its_own(process: Process) -> Iterator[None]:
    """Give a core to a process, and the others to what is started meanwhile, where there are others.

    A short message that is sent while a process is busy is else late for a reason that has nothing to do with it: its
    receiver wakes up behind that process, although another core is idle.
    """
    all_cores = os.sched_getaffinity(0)
    own = max(all_cores)
    if len(all_cores) > 1:
        os.sched_setaffinity(process.pid, {own})
        os.sched_setaffinity(0, all_cores - {own})
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_cores)


class Node(Process):
    """One ``freeim-server``.

    Args:
        url: Redis.
        prefix: What its names in Redis begin with.
        bind: Its address, which is its name, too; port 0 for any.
        options: More options.
        steps: Told how long the steps of its event loop take; without it nothing is measured inside of the node.
    """

    def __init__(
        self,
        url: str,
        prefix: str,
        bind: str = "127.0.0.1:0",
        options: Iterable[str] = (),
        steps: Steps | None = None,
    ) -> None:
        command = [sys.executable, "-m", "freeim.cli", "--bind", bind, "--redis-url", url, "--prefix", prefix, *options]
        measured = {} if steps is None else steps.environment
        super().__init__(command, {**os.environ, "FREEIM_LOG_LEVEL": "warning", **measured})
        self.name = "freeim-server"
        self.node = self.hear().split()[-1]  # the banner ends with the name
        self.port = int(self.node.rsplit(":", 1)[1])


class Yardstick(Process):
    """The bare send loop of yardstick.c.

    Args:
        redis: How dial.h is told of a Redis whose messages are to be passed on.
    """

    def __init__(self, redis: Iterable[str] = ()) -> None:
        super().__init__([program("yardstick"), *redis])
        self.port = int(json.loads(self.hear())["port"])


class Crowd:
    """Connections, held by as many processes of load.c as they need.

    Args:
        clients: How many; their ids follow each other.
        per_process: How many of them one process holds.
        first: The lowest id.
    """

    def __init__(self, clients: int, per_process: int = PER_PROCESS, first: int = 1) -> None:
        self.clients = clients
        self.first = first
        self._per_process = per_process
        self.processes = [Process([program("load")]) for _ in range(0, clients, per_process)]

    def connect(
        self, ports: Sequence[int], tokens: Sequence[str], in_flight: int = IN_FLIGHT, path: str = "/ws"
    ) -> Tally:
        """Connect all, and return how it went; the histogram is of the times to the 101.

        Args:
            ports: Those of the nodes, in the order of their list: client N belongs to node N modulo their number.
            tokens: One for each client, in the order of their ids.
            in_flight: How many handshakes each process has under way at the same time.
            path: Where to; one that ends in ``=`` takes the token as it is, others as ``?token=``.
        """
        states = []
        for residue, port in enumerate(ports):
            # One node after another within a process, all processes at the same time.
            for number, process in enumerate(self.processes):
                mine = [client for client in self._clients_of(number) if client % len(ports) == residue]
                process.say(
                    f"connect 127.0.0.1 {port} {path} {in_flight} {len(mine)}",
                    *(f"{tokens[client - self.first]} {client}" for client in mine),
                )
            states.append(merge(json.loads(process.hear()) for process in self.processes))
        total = states[0]
        for state in states[1:]:
            total.refused += state.refused
            total.faults += state.faults
            total.histogram += state.histogram
            total.seconds += state.seconds
            total.busy = max(total.busy, state.busy)
            total.slowest = max(total.slowest, state.slowest)
            total.living = state.living
        return total

    def _clients_of(self, number: int) -> range:
        first = self.first + number * self._per_process
        return range(first, min(first + self._per_process, self.first + self.clients))

    def envelope(self, head: str, tail: str) -> None:
        """Say what stands before and behind each message; text frames without the head are not looked at any more."""
        self._ask_all(f"envelope {head} {tail}")

    def begin(self, size: int, pause: float = PAUSE_SECONDS) -> None:
        """Forget what was counted; payloads have `size` bytes from now on.

        Args:
            size: Bytes of a payload; 0 for any.
            pause: How long to rest before each look at what has come, in seconds; 0 where it is latency that counts.
        """
        self._ask_all(f"begin {size} {round(pause * 1e6)}")

    def wait(
        self, receivers: Iterable[int] | None = None, frames_each: int = 1, seconds: float = WAIT_SECONDS
    ) -> Tally:
        """Wait until these clients have received so many messages since `begin`; return the counts in any case.

        Args:
            receivers: Client ids, repeated for those who get more than one; None is everybody.
            frames_each: Messages for each of them.
            seconds: How long to wait at most.
        """
        wanted = [0] * len(self.processes)
        if receivers is None:
            wanted = [len(self._clients_of(number)) for number in range(len(self.processes))]
        else:
            for client in receivers:
                wanted[(client - self.first) // self._per_process] += 1
        for process, frames in zip(self.processes, wanted, strict=True):
            process.say(f"wait {frames * frames_each} {seconds}")
        return merge([json.loads(process.hear()) for process in self.processes])

    def watch(self, seconds: float) -> Tally:
        """Go on counting for a time, so that what is too much shows as well."""
        for process in self.processes:
            process.say(f"wait {1 << 62} {seconds}")
        return merge([json.loads(process.hear()) for process in self.processes])

    def settle(self, frames: int, seconds: float = WAIT_SECONDS) -> Tally:
        """Go on counting until so many messages have come to all together, and a moment longer."""
        until = time.monotonic() + seconds
        while self.watch(SETTLE_SECONDS).frames < frames and time.monotonic() < until:
            pass
        return self.watch(SETTLE_SECONDS)

    def sip(self, size: int, every: float) -> None:
        """Read slowly from now on: at most `size` bytes of each connection (0: nothing) each `every` s; 0 s ends it."""
        self._ask_all(f"sip {size} {round(every * 1e3)}")

    def complete(self, stream: int, last: int) -> int:
        """Return how many connections have received a stream up to this sequence number."""
        return sum(answer["complete"] for answer in self._ask_all(f"tail {stream} {last}"))

    def close(self, code: int = 1000, seconds: float = 20.0) -> Tally:
        """Close all connections and wait until the other side has, too."""
        return merge(self._ask_all(f"close {code} {seconds}"))

    def _ask_all(self, line: str) -> list[Any]:
        for process in self.processes:
            process.say(line)
        return [json.loads(process.hear()) for process in self.processes]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        for process in self.processes:
            process.__exit__(kind, exc, tb)
