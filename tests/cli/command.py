"""Runs ``freeim-server`` as a process of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from freeim.embedded.place import FOLDER_VARIABLE

# -P: as in the installed script, the current folder is not searched for packages.
MODULE = (sys.executable, "-P", "-m", "freeim.cli")


def environment() -> dict[str, str]:
    """Return this process's environment without any option in it, but with the folder of the embedded Redis."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith("FREEIM_") or name == FOLDER_VARIABLE
    }


def run(*args: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return run_program(*MODULE, *args)


def run_program(*command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run any program to its end, with this text and then the end on its standard input."""
    return subprocess.run(
        command,
        env=environment(),
        cwd=tempfile.gettempdir(),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def free_ports(count: int) -> int:
    """Return the first of `count` consecutive ports that were free a moment ago."""
    while True:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            first = stack.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            for other in range(port + 1, port + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", other))
            return port


def is_running(process_id: int) -> bool:
    """Whether there is such a process. One that ended but was not waited for is none."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return not Path("/proc/self").exists()


class Server:
    """A running ``freeim-server``, the leader of a process group as a command at a terminal is.

    Args:
        args: Its command line.
        program: Another program to run, e.g. the same command with one constant changed.
        terminal: A descriptor of the terminal that it is started on, which is none else.
    """

    def __init__(self, *args: str, program: tuple[str, ...] = MODULE, terminal: int | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="freeim-test-")
        self.folder = Path(self._folder.name)
        self._stdout, self._stderr = self.folder / "stdout", self.folder / "stderr"
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*program, *args],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=self.folder,
                env=environment(),
                start_new_session=True,
                preexec_fn=None if terminal is None else lambda: fcntl.ioctl(terminal, termios.TIOCSCTTY, 0),
            )

    @property
    def stdout(self) -> str:
        return self._stdout.read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        return self._stderr.read_text(encoding="utf-8")

    def banner(self, seconds: float = 20.0) -> str:
        """Wait for the banner and return it."""
        self._wait_for(lambda: self.stdout.endswith("\n"), "a banner", seconds)
        return self.stdout

    def logged(self, pattern: str, count: int = 1, seconds: float = 20.0) -> list[Any]:
        """Wait until a pattern was found `count` times in the log, and return what `re.findall` found."""
        self._wait_for(lambda: len(re.findall(pattern, self.stderr)) >= count, f"{pattern!r} in the log", seconds)
        return re.findall(pattern, self.stderr)

    def _wait_for(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            ended = self.process.poll() is not None  # before the look: what it wrote last counts
            if condition():
                return
            assert not ended, f"ended with {self.process.returncode} without {what}:\n{self.stdout}\n{self.stderr}"
            assert time.monotonic() < deadline, f"{seconds} s without {what}:\n{self.stdout}\n{self.stderr}"
            time.sleep(0.02)

    def worker_ids(self, count: int) -> list[int]:
        """Wait until workers were started `count` times in all; return their process ids, worker 0 first."""
        lines = self.logged(r"worker (\d+) \(\S+\) serves as process (\d+)", count)
        latest = {int(worker): int(process_id) for worker, process_id in lines}
        return [latest[worker] for worker in sorted(latest)]

    def tell(self, number: signal.Signals) -> None:
        """Send a signal to the command."""
        self.process.send_signal(number)

    def reload(self) -> None:
        """Let it read its options again."""
        self.tell(signal.SIGHUP)

    def tell_group(self, number: signal.Signals) -> None:
        """Send a signal to the command and all its workers, as a terminal does on Ctrl-C."""
        os.killpg(self.process.pid, number)

    def wait(self, seconds: float = 20.0) -> int:
        """Return the exit code."""
        return self.process.wait(seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._folder.cleanup()


def wait_until_gone(process_ids: list[int], seconds: float = 20.0) -> None:
    """Wait until none of these processes runs."""
    deadline = time.monotonic() + seconds
    while running := [process_id for process_id in process_ids if is_running(process_id)]:
        assert time.monotonic() < deadline, f"still running after {seconds} s: {running}"
        time.sleep(0.02)
