"""A process that makes clients join and leave channels at a steady pace, with the commands that the helper sends.

``python -m bench.churner URL PREFIX FIRST COUNT`` has the clients FIRST to FIRST + COUNT - 1. It is steered by lines of
JSON on stdin and answers each with another: ``{"channel": "c"}`` makes every second of them a member;
``{"channel": "c", "rate": 1000, "seconds": 2}`` lets one after another join if it is none and leave if it is one.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import redis

from bench.processes import BenchError, Process
from freeim.commands import Call, Commands
from freeim.names import Names
from freeim.notices import Notices

TICK_SECONDS = 0.005
"""What is due is sent so often, in one write."""
LATE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Churned:
    """What was done.

    Attributes:
        operations: Joins and leaves together.
        members: How many of the clients are members now.
        busy: CPU of the process, as a share of a core.
        late: How late, in seconds, 99 % of the operations had been answered by Redis at most.
    """

    operations: int
    members: int
    busy: float
    late: float

    @property
    def objection(self) -> str:
        """Why the pace was not kept, or nothing."""
        if self.late <= LATE_SECONDS:
            return ""
        return f"joins and leaves were {self.late:.2g} s late (99th percentile): their pace was not kept"


class Churner(Process):
    """The process.

    Args:
        url: Redis.
        names: The names of this run.
        clients: Who joins and leaves; adjacent ids.
    """

    def __init__(self, url: str, names: Names, clients: range) -> None:
        words = (url, names.prefix, str(clients[0]), str(len(clients)))
        super().__init__([sys.executable, "-m", "bench.churner", *words])
        self.name = "bench.churner"

    def prepare(self, channel: str) -> int:
        """Make every second client a member; return how many those are."""
        return int(self.ask(json.dumps({"channel": channel}))["members"])

    def start(self, channel: str, rate: float, seconds: float) -> None:
        """Begin to join and leave, so many times a second, and return; `finish` waits for the end."""
        self.say(json.dumps({"channel": channel, "rate": rate, "seconds": seconds}))

    def finish(self) -> Churned:
        """Wait until all is done, and tell how that went."""
        return Churned(**json.loads(self.hear()))


class _Work:
    """What the process does."""

    def __init__(self, url: str, prefix: str, first: int, count: int) -> None:
        self._commands = Commands(Names(prefix), "int", "/ws", 10, None, Notices())
        self._connection: Any = redis.Redis.from_url(url, protocol=2).connection_pool.get_connection()
        self._clients = range(first, first + count)
        self._members: dict[str, set[int]] = {}
        self._turn: dict[str, int] = {}

    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        channel = order["channel"]
        if "rate" in order:
            return self._churn(channel, order["rate"], order["seconds"])
        self._members[channel] = set(self._clients[::2])
        self._turn[channel] = 0
        for start in range(0, len(self._clients), 1000):
            joins = [self._commands.join_chan(each, (channel,)) for each in self._clients[start : start + 1000 : 2]]
            self._send(joins)
        return {"members": len(self._members[channel])}

    def _churn(self, channel: str, rate: float, seconds: float) -> dict[str, Any]:
        total = max(1, int(rate * seconds))
        late = []
        cpu, start = time.process_time(), time.monotonic()
        done = 0
        while done < total:
            due = min(total, int((time.monotonic() - start) * rate) + 1)
            self._send([self._next(channel) for _ in range(done, due)])
            now = time.monotonic() - start
            late += [now - number / rate for number in range(done, due)]
            done = due
            if done < total:
                time.sleep(TICK_SECONDS)  # what is due by then leaves together
        wall = time.monotonic() - start
        return {
            "operations": total,
            "members": len(self._members[channel]),
            "busy": (time.process_time() - cpu) / wall,
            "late": sorted(late)[int(0.99 * (len(late) - 1))],
        }

    def _next(self, channel: str) -> Call[Any]:
        members, client = self._members[channel], self._clients[self._turn[channel]]
        self._turn[channel] = (self._turn[channel] + 1) % len(self._clients)
        if client in members:
            members.discard(client)
            return self._commands.leave_chan(client, (channel,))
        members.add(client)
        return self._commands.join_chan(client, (channel,))

    def _send(self, calls: list[Call[Any]]) -> None:
        commands = [command for call in calls for command in call.commands(None)]
        self._connection.send_packed_command(self._connection.pack_commands(commands))
        for _ in commands:
            if self._connection.read_response() != 1:
                raise BenchError("a join or leave changed nothing")


def main() -> None:
    """Obey lines of stdin until it ends."""
    with contextlib.suppress(PermissionError):  # see publish.c
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    url, prefix, first, count = sys.argv[1:]
    work = _Work(url, prefix, int(first), int(count))
    for line in sys.stdin:
        print(json.dumps(work.obey(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
