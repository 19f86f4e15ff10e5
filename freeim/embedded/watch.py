"""The watcher of the embedded Redis: starts it, starts it again where it crashed, ends it after its last user.

A program of its own (``python -I -S watch.py FOLDER SOCKET BINARY WATCH_LOCK``), detached from whoever started it; it
imports nothing of this package. It waits for an exclusive lock on the file of the users, who each hold a shared one:
the kernel drops a lock with its process, even after SIGKILL, so the wait ends exactly when the last user has gone. On
its standard output it tells whoever started it ``ready``, or why not.

The watch lock is taken by whoever starts a watcher and handed to it, so there is no moment at which a watcher that is
coming up could be missed.
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
DUMP = "redis.rdb"
"""What a SAVE that somebody sends leaves behind. The next server is not to read it."""
USERS_LOCK = "users.lock"
"""Shared by all users, exclusive once there is none."""
START_LOCK = "start.lock"
"""Held by whoever is about to join."""
WATCH_LOCK = "watch.lock"
"""Held by the watcher for as long as it runs."""
LOCKS = (USERS_LOCK, START_LOCK, WATCH_LOCK)

START_SECONDS = 10.0
STOP_SECONDS = 5.0
RESTART_SECONDS = 0.5
"""Pause until a server that crashed is started again."""
TOUCH_SECONDS = 3600.0
"""How often the files are touched: what cleans /tmp takes away what has not been used for days."""

READY = "ready"

SETTINGS = (
    *("--port", "0", "--unixsocketperm", "700"),
    *("--save", "", "--appendonly", "no", "--dbfilename", DUMP),
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
    """The server of one folder, which is the current one. It may run already: its former watcher was killed then.

    Args:
        binary: What to run.
        socket_name: Its socket.
    """

    def __init__(self, binary: str, socket_name: str) -> None:
        self._binary = binary
        self._socket = socket_name
        self._process: subprocess.Popen[bytes] | None = None
        # An open connection is how we hear of its end, whoever started it.
        self._line: socket.socket | None = None
        self._ending = threading.Event()
        self._changing = threading.Lock()

    def start(self) -> str:
        """Start it, or take over the one that runs; return `READY` once it answers, else why it does not."""
        if answers(self._socket):
            self._connect()
            return READY
        self._reap()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(DUMP)
        try:
            process = self._process = subprocess.Popen(
                # Relative: its end removes the socket, and by then the path may lead to the folder of another one.
                [self._binary, *SETTINGS, "--unixsocket", self._socket, "--dir", "."],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            return f"it cannot be run: {error.strerror}"
        end = time.monotonic() + START_SECONDS
        while process.poll() is None:
            if answers(self._socket):
                self._connect()
                return READY
            if time.monotonic() > end:
                process.kill()
                process.wait()
                return f"it did not answer within {START_SECONDS:g} s"
            time.sleep(0.005)
        return f"it ended with exit code {process.returncode}{_last_words()}"

    def _connect(self) -> None:
        self._line = socket.socket(socket.AF_UNIX)
        self._line.connect(self._socket)
        self._line.settimeout(TOUCH_SECONDS)

    def keep(self) -> None:
        """Start it again whenever it has ended, until `end`."""
        while not self._ending.is_set():
            self._wait_for_its_end()
            if self._ending.wait(RESTART_SECONDS):
                return
            with self._changing, contextlib.suppress(OSError):  # the folder may be gone, and we with it soon
                if not self._ending.is_set():
                    self.start()

    def _wait_for_its_end(self) -> None:
        while self._line is not None:
            try:
                if not self._line.recv(4096):
                    break
            except TimeoutError:
                for name in (".", LOG, self._socket, *LOCKS):
                    with contextlib.suppress(OSError):
                        os.utime(name)
            except OSError:
                break
        if self._line is not None:
            self._line.close()
            self._line = None

    def end(self) -> None:
        """End it, and take its files away."""
        self._ending.set()
        with self._changing:
            # Its answer is the end of the connection, when the process ends: until then it may write into its log.
            ask(self._socket, b"SHUTDOWN NOSAVE\r\n", STOP_SECONDS)
            if self._process is not None:
                self._process.terminate()
            self._reap()
        for name in (self._socket, LOG, DUMP):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)

    def _reap(self) -> None:
        if self._process is not None:
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _last_words() -> str:
    with contextlib.suppress(OSError), open(LOG, encoding="utf-8", errors="replace") as file:
        lines = file.read().split("\n")
        return f" ({lines[-2].strip()})" if len(lines) > 1 else ""
    return ""


def remove_locks(folder: str, opened: int, start: int) -> None:
    """Take away what is left in a folder without users, and the folder itself.

    Args:
        folder: Its path, which may lead to another folder by now.
        opened: A descriptor of it.
        start: A descriptor of the start lock. Where somebody else holds it, he is about to join: it stays, and so does
            the folder.
    """
    names = [LOG, USERS_LOCK, WATCH_LOCK]
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(start, fcntl.LOCK_EX | fcntl.LOCK_NB)
        names.append(START_LOCK)
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=opened)
    with contextlib.suppress(OSError):  # it is gone, or not empty: somebody is about to join
        if os.path.samestat(os.fstat(opened), os.stat(folder)):
            os.rmdir(folder)


def is_another(users: int) -> bool:
    """Tell whether there is a lock file of users, and not the one that we have opened."""
    try:
        return not os.path.samestat(os.fstat(users), os.stat(USERS_LOCK))
    except FileNotFoundError:
        return False


def main(folder: str, socket_name: str, binary: str, watch_lock: str) -> None:
    """Watch over the server of a folder until its last user has gone."""
    opened = os.open(folder, os.O_RDONLY)
    os.fchdir(opened)
    users = os.open(USERS_LOCK, os.O_RDWR)  # whoever started us holds a shared lock on it
    if os.fork():
        os._exit(0)  # so that nobody has to wait for us; the watch lock lives on with the descriptor of the child
    os.setsid()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # What cleans /tmp leaves folders alone that somebody has locked (systemd-tmpfiles does).
    fcntl.flock(opened, fcntl.LOCK_SH)
    os.ftruncate(int(watch_lock), 0)
    os.write(int(watch_lock), str(os.getpid()).encode())  # for people
    server = Server(binary, socket_name)
    serves = False
    try:  # from here on a SIGTERM leaves no server behind
        outcome = server.start()
        serves = outcome == READY
        with contextlib.suppress(BrokenPipeError):  # whoever started us is gone, and perhaps every user
            os.write(1, outcome.encode())
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_RDWR), stream)
        if serves:
            threading.Thread(target=server.keep, daemon=True).start()
            fcntl.flock(users, fcntl.LOCK_EX)
            if is_another(users):
                os._exit(0)  # ours was cleaned away, and those who came later have a watcher of their own
    finally:
        server.end()
        if serves:  # else whoever started us tries another binary, or takes the files away
            remove_locks(folder, opened, os.open(START_LOCK, os.O_RDWR | os.O_CREAT, 0o600))


if __name__ == "__main__":
    main(*sys.argv[1:])
