"""The watcher of the embedded Redis: starts it, starts it again where it crashed, ends it after its last user.

A program of its own (``python -I -S watch.py FOLDER SOCKET BINARY``), detached from whoever started it; it imports
nothing of this package. It waits for an exclusive lock on the file of the users, who each hold a shared one: the kernel
drops a lock with its process, even after SIGKILL, so the wait ends exactly when the last user has gone. On its standard
output it tells whoever started it ``ready``, or why not.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time

LOG = "redis.log"
USERS_LOCK = "users.lock"
"""Shared by all users, exclusive once there is none."""
START_LOCK = "start.lock"
"""Held by whoever is about to join."""
WATCH_LOCK = "watch.lock"
"""Held by the watcher for as long as it runs."""

START_SECONDS = 10.0
STOP_SECONDS = 5.0
RESTART_SECONDS = 0.5
"""Pause until a server that crashed is started again."""

READY = "ready"

SETTINGS = (
    *("--port", "0", "--unixsocketperm", "700"),
    *("--save", "", "--appendonly", "no"),
    # Nobody may lose presence to an eviction, or a node's subscription to a burst of big messages.
    *("--maxmemory-policy", "noeviction"),
    *("--client-output-buffer-limit", "pubsub", "256mb", "128mb", "30"),
    *("--tracking-table-max-keys", "0"),
    *("--loglevel", "warning", "--logfile", LOG, "--always-show-logo", "no", "--daemonize", "no"),
)


def answers(path: str, seconds: float = 1.0) -> bool:
    """Tell whether a Redis answers a PING on a unix socket."""
    return ask(path, b"PING\r\n", seconds).startswith(b"+PONG")


def ask(path: str, command: bytes, seconds: float) -> bytes:
    """Send one command; return the first bytes of the answer, none where there is no answer in time."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(seconds)
        sock.connect(path)
        sock.sendall(command)
        return sock.recv(4096)
    return b""


class Server:
    """The server of one folder, the current one.

    Args:
        binary: What to run; empty where a server runs already whose watcher was killed.
        socket_name: Its socket, in the current folder.
    """

    def __init__(self, binary: str, socket_name: str) -> None:
        self._binary = binary
        self._socket = socket_name
        self._process: subprocess.Popen[bytes] | None = None
        self._ending = threading.Event()
        self._changing = threading.Lock()

    def start(self) -> str:
        """Start it; return `READY` once it answers, else why it does not."""
        try:
            process = self._process = subprocess.Popen(
                [self._binary, *SETTINGS, "--unixsocket", os.path.abspath(self._socket), "--dir", os.getcwd()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            return f"it cannot be run: {error.strerror}"
        end = time.monotonic() + START_SECONDS
        while process.poll() is None:
            if answers(self._socket):
                return READY
            if time.monotonic() > end:
                process.kill()
                process.wait()
                return f"it did not answer within {START_SECONDS:g} s"
            time.sleep(0.005)
        return f"it ended with exit code {process.returncode}"

    def keep(self) -> None:
        """Start it again whenever it has ended, until `end`."""
        while self._process is not None:
            self._process.wait()
            if self._ending.wait(RESTART_SECONDS):
                return
            with self._changing:
                if not self._ending.is_set():
                    self.start()

    def end(self) -> None:
        """End it, and take its files away."""
        self._ending.set()
        with self._changing:
            ask(self._socket, b"SHUTDOWN NOSAVE\r\n", STOP_SECONDS)
            if self._process is not None:
                try:
                    self._process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._socket)


def remove_locks(folder: str, start: int) -> None:
    """Take away what is left in a folder without users, and the folder.

    Args:
        folder: The folder.
        start: A descriptor of the start lock. Where somebody else holds it, he is about to join: it stays, and so does
            the folder.
    """
    names = [LOG, USERS_LOCK, WATCH_LOCK]
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(start, fcntl.LOCK_EX | fcntl.LOCK_NB)
        names.append(START_LOCK)
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, name))
    with contextlib.suppress(OSError):  # not empty: somebody is about to join, or it holds what is not ours
        os.rmdir(folder)


def main(folder: str, socket_name: str, binary: str) -> None:
    """Watch over the server of a folder until its last user has gone."""
    os.chdir(folder)
    users = os.open(USERS_LOCK, os.O_RDWR)  # whoever started us holds a shared lock on it
    if os.fork():
        os._exit(0)  # so that nobody has to wait for us
    os.setsid()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    watch = os.open(WATCH_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(watch, fcntl.LOCK_EX)
    server = Server(binary, socket_name)
    serves = False
    try:  # from here on a SIGTERM leaves no server behind
        outcome = server.start() if binary else READY
        serves = outcome == READY
        with contextlib.suppress(BrokenPipeError):  # whoever started us is gone, and perhaps every user
            os.write(1, outcome.encode())
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        if serves:
            if binary:
                threading.Thread(target=server.keep, daemon=True).start()
            fcntl.flock(users, fcntl.LOCK_EX)
    finally:
        server.end()
        if serves:  # else whoever started us tries another binary, or takes the files away
            remove_locks(folder, os.open(START_LOCK, os.O_RDWR | os.O_CREAT, 0o600))


if __name__ == "__main__":
    main(*sys.argv[1:])
