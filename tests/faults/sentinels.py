"""A master, its replica, and Sentinels that watch them: all of them real processes.

Sentinels and the replica log in as users of their own, so that a test can cut a master off from them, and from nobody
else, by deleting these users there. Nodes and helpers are the user `node`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator

from tests.servers import RedisServer, Wire, free_port, server_binary

SERVICE = "mymaster"
WATCHERS = ("sentinel", "replica")
USERS = (*WATCHERS, "node")
_RIGHTS = ("on", ">secret", "~*", "&*", "+@all")


class Sentinel:
    """One Sentinel."""

    def __init__(self, folder: str, master: RedisServer, quorum: int) -> None:
        self.port = free_port()
        path = os.path.join(folder, f"{self.port}.conf")
        with open(path, "w", encoding="utf-8") as file:
            file.write(
                f"port {self.port}\nbind 127.0.0.1\ndir {folder}\n"
                f"sentinel monitor {SERVICE} 127.0.0.1 {master.port} {quorum}\n"
                f"sentinel auth-user {SERVICE} sentinel\nsentinel auth-pass {SERVICE} secret\n"
                f"sentinel down-after-milliseconds {SERVICE} 700\nsentinel failover-timeout {SERVICE} 3000\n"
            )
        self.process = subprocess.Popen(
            [server_binary(), path, "--sentinel"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )

    def facts(self) -> dict[str, str]:
        """Return what it says of the master."""
        with Wire(("127.0.0.1", self.port)) as wire:
            flat = [item.decode() for item in wire("SENTINEL", "MASTER", SERVICE)]
        return dict(zip(flat[::2], flat[1::2], strict=True))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


class Sentinels:
    """A watched pair of servers.

    Attributes:
        master: The master at the start.
        replica: Its replica.
        watching: The Sentinels.
    """

    def __init__(self, folder: str, master: RedisServer, replica: RedisServer, watching: list[Sentinel]) -> None:
        self._folder = folder
        self.master = master
        self.replica = replica
        self.watching = watching

    @property
    def url(self) -> str:
        """Where nodes and helpers are told that Redis is."""
        return f"redis+sentinel://node:secret@{','.join(f'127.0.0.1:{each.port}' for each in self.watching)}/{SERVICE}"

    def wait_ready(self) -> None:
        """Wait until all know each other and the replica, which has all data."""
        others = str(len(self.watching) - 1)
        self._wait(
            lambda facts: (
                facts.get("num-slaves") == "1"
                and facts.get("num-other-sentinels") == others
                and facts.get("flags") == "master"
            )
        )
        deadline = time.monotonic() + 20
        while b"master_link_status:up" not in self.replica.command("INFO", "replication"):
            assert time.monotonic() < deadline, "the replica has not come up"
            time.sleep(0.05)

    def wait_replicated(self) -> None:
        """Wait until the replica has all that has been written to the master so far."""
        with self.master.wire() as wire:
            wire("ECHO", "x")  # WAIT waits for what was written until the last command of its own connection
            assert wire("WAIT", 1, 5000) == 1

    def wait_failover(self) -> None:
        """Wait until the replica is the master, for itself and for all Sentinels."""
        self._wait(lambda facts: facts.get("port") == str(self.replica.port))
        deadline = time.monotonic() + 20
        while self.replica.command("ROLE")[0] != b"master":
            assert time.monotonic() < deadline, "the replica was not promoted"
            time.sleep(0.01)

    def isolate_master(self) -> None:
        """Cut the master off from its Sentinels and its replica; everybody else still reaches it."""
        self.master.command("ACL", "DELUSER", *WATCHERS)
        # Without their users they are the default user, whose PING a Sentinel must not find answered.
        self.master.command("ACL", "SETUSER", "default", "-ping")

    def stale(self, stack: contextlib.ExitStack) -> Sentinel:
        """Start one more that knows only the master of the start, as if it had been cut off from all others."""
        sentinel = Sentinel(self._folder, self.master, 1)
        stack.callback(sentinel.end)
        self._wait_for(sentinel, lambda facts: facts.get("port") == str(self.master.port))
        return sentinel

    def _wait(self, good: Callable[[dict[str, str]], bool]) -> None:
        for sentinel in self.watching:
            self._wait_for(sentinel, good)

    def _wait_for(self, sentinel: Sentinel, good: Callable[[dict[str, str]], bool]) -> None:
        deadline = time.monotonic() + 30
        facts: dict[str, str] = {}
        while not good(facts):
            assert time.monotonic() < deadline, f"the Sentinel says {facts}"
            time.sleep(0.05)
            with contextlib.suppress(OSError):
                facts = sentinel.facts()


@contextlib.contextmanager
def watched(count: int) -> Iterator[Sentinels]:
    """Run a master, a replica and so many Sentinels."""
    users = [word for user in USERS for word in ("--user", user, *_RIGHTS)]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="freeim-test-"))
        master = stack.enter_context(RedisServer(args=users))
        following = ["--replicaof", "127.0.0.1", str(master.port), "--masteruser", "replica", "--masterauth", "secret"]
        replica = stack.enter_context(RedisServer(args=[*users, *following, "--repl-diskless-sync-delay", "0"]))
        master.command("CONFIG", "SET", "repl-diskless-sync-delay", 0)
        watching = []
        for _ in range(count):
            watching.append(Sentinel(folder, master, count // 2 + 1))
            stack.callback(watching[-1].end)
        sentinels = Sentinels(folder, master, replica, watching)
        sentinels.wait_ready()
        yield sentinels
