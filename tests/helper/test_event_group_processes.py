"""A group of event buses in real processes: gunicorn's workers, and asyncio programs; killed, frozen, told to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from freeim import event_group
from tests.helper.buses import publish, wait_for
from tests.servers import RedisServer, free_port

pytestmark = pytest.mark.slow

TAKE_OVER_SECONDS = 10.0

SHOP = """
    import os
    from freeim import ImHelper

    log = os.open("handled", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    helper = ImHelper(os.environ["REDIS"], nodes=["a"])

    def came(event):
        os.write(log, f"{os.getpid()} {event.client_id} {event.fence}\\n".encode())

    def again():
        os.write(log, f"{os.getpid()} 0 0\\n".encode())

    bus = helper.event_bus(online=came, resync=again, group="shop")
    print("started", flush=True)

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"shop"]
"""

PROGRAM = """
    import asyncio, os, signal
    from freeim import AsyncImHelper

    log = os.open("handled", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def main():
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)

        async def came(event):
            os.write(log, f"{os.getpid()} {event.client_id} {event.fence}\\n".encode())

        async def again():
            os.write(log, f"{os.getpid()} 0 0\\n".encode())

        async with AsyncImHelper(os.environ["REDIS"], nodes=["a"]) as helper:
            async with helper.event_bus(online=came, resync=again, group="shop"):
                print("started", flush=True)
                await ended.wait()

    asyncio.run(main())
"""


class Handled(NamedTuple):
    """What a process wrote down: client 0 is a resync."""

    process_id: int
    client_id: int
    fence: int


class Workers:
    """Four processes that ask for the same group.

    Args:
        server: Their Redis.
        folder: Where their program is written to.
        kind: ``"gunicorn"`` or ``"asyncio"``.
        more: What is added to their environment.
    """

    def __init__(self, server: RedisServer, folder: Path, kind: str, more: Mapping[str, str] | None = None) -> None:
        self.server = server
        root = Path(sys.modules["freeim"].__file__ or "").parent.parent
        environment = {**os.environ, "REDIS": server.url, "PYTHONPATH": str(root), "HOME": str(folder), **(more or {})}
        if kind == "gunicorn":
            (folder / "shop.py").write_text(textwrap.dedent(SHOP), encoding="utf-8")
            bind = f"127.0.0.1:{free_port()}"
            commands = [[sys.executable, "-m", "gunicorn", "shop:app", "--workers", "4", "--bind", bind]]
        else:
            (folder / "program.py").write_text(textwrap.dedent(PROGRAM), encoding="utf-8")
            commands = [[sys.executable, "program.py"]] * 4
        self.log = folder / "log"
        self._handled = folder / "handled"
        with self.log.open("wb") as out:
            self.processes = [
                subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out) for command in commands
            ]
        self._published = 0
        self._stop = threading.Event()
        self._publisher = threading.Thread(target=self._publish)

    def ready(self) -> None:
        """Wait until all run and know where the leader is; then events begin to come, a hundred in a second."""
        started = "started\n"
        wait_for(lambda: self.log.read_text(encoding="utf-8").count(started) == 4 and self.handled(), 40.0)
        time.sleep(2 * event_group.BEAT_SECONDS + 0.5)
        self._publisher.start()
        wait_for(lambda: len(self.handled()) > 1)

    def _publish(self) -> None:
        while not self._stop.wait(0.01):
            publish(self.server, [self._published + 1])
            self._published += 1

    @property
    def published(self) -> int:
        """How many events were published: clients 1 to this."""
        return self._published

    def handled(self) -> list[Handled]:
        entries = self._handled.read_text(encoding="utf-8").splitlines() if self._handled.exists() else []
        return [Handled(*map(int, entry.split())) for entry in entries]

    def leader(self) -> int:
        """Return the process that handled the last event."""
        return self.handled()[-1].process_id

    def wait_for_another(self, old: int) -> float:
        """Wait until a process other than the old leader handles events; return how long that took, in seconds."""
        began = time.monotonic()
        wait_for(lambda: self.leader() != old, TAKE_OVER_SECONDS + 10)
        return time.monotonic() - began

    def finish(self) -> list[Handled]:
        """Publish no more, wait until all is handled, and return all that was."""
        self._stop.set()
        self._publisher.join()
        wait_for(lambda: any(entry.client_id == self._published for entry in self.handled()))
        time.sleep(0.5)
        return self.handled()

    def close(self) -> None:
        self._stop.set()
        for process in self.processes:
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.wait(30)


@pytest.fixture(params=["gunicorn", "asyncio"])
def workers(request: pytest.FixtureRequest, own_redis_server: RedisServer, tmp_path: Path) -> Iterator[Workers]:
    found = Workers(own_redis_server, tmp_path, request.param)
    try:
        found.ready()
        yield found
    finally:
        found.close()
        print(found.log.read_text(encoding="utf-8"))


def check(handled: list[Handled], published: int) -> None:
    """All events were handled, each process did so in order, and the fence grew with each change of the leader."""
    first, *handled = handled
    assert first.client_id == 0, "who begins cannot know what was before"
    assert {entry.client_id for entry in handled} == set(range(1, published + 1)), "nothing lost, and no other resync"
    for process_id in {entry.process_id for entry in handled}:
        own = [entry.client_id for entry in handled if entry.process_id == process_id]
        assert own == sorted(set(own)), "in order, and each event once"
    assert len({entry.process_id for entry in handled}) == len({entry.fence for entry in handled})


def test_when_the_leader_is_killed_another_goes_on_where_it_was(workers: Workers) -> None:
    time.sleep(1.5)
    old = workers.leader()
    last = workers.published
    os.kill(old, signal.SIGKILL)
    assert workers.wait_for_another(old) < TAKE_OVER_SECONDS
    time.sleep(1.0)
    handled = workers.finish()
    check(handled, workers.published)
    new = [entry.client_id for entry in handled if entry.process_id != old]
    twice = last - new[0] + 1
    assert twice <= 100 * 2 * event_group.BEAT_SECONDS + 100, "what comes again is of the last two beats"


def check_frozen(workers: Workers, meanwhile: Callable[[], object]) -> None:
    """Freeze the leader until another has taken over, then let it go on: it handles nothing more.

    Args:
        workers: The group.
        meanwhile: Called while it is frozen.
    """
    old = workers.leader()
    os.kill(old, signal.SIGSTOP)
    meanwhile()
    assert workers.wait_for_another(old) < TAKE_OVER_SECONDS
    time.sleep(1.0)
    workers.server.pause()  # so that nobody tells it that another leads: what it ought to handle waits in its socket
    before = len(workers.handled())
    os.kill(old, signal.SIGCONT)
    time.sleep(1.5)
    workers.server.resume()
    time.sleep(2.0)
    handled = workers.finish()
    late = [entry for entry in handled[before:] if entry.process_id == old]
    assert len(late) <= 1, "nothing but the event that it was at when it froze"
    check([entry for entry in handled if entry not in late], workers.published)


def test_a_leader_that_was_frozen_handles_nothing_more_when_it_goes_on(workers: Workers) -> None:
    check_frozen(workers, lambda: None)


def test_a_leader_that_is_told_to_end_hands_over_at_once(workers: Workers) -> None:
    old = workers.leader()
    os.kill(old, signal.SIGTERM)
    assert workers.wait_for_another(old) < event_group.LEASE_SECONDS - 2.0, "sooner than the lease would have run out"
    handled = workers.finish()
    check(handled, workers.published)
    clients = [entry.client_id for entry in handled[1:]]
    assert clients == sorted(set(clients)), "nothing twice either"


def test_nobody_waits_for_a_frozen_leader_that_never_goes_on(workers: Workers) -> None:
    """And not for the one after it: the second leader is killed while the first stands still."""
    first = workers.leader()
    os.kill(first, signal.SIGSTOP)
    workers.wait_for_another(first)
    time.sleep(1.5)
    second = workers.leader()
    os.kill(second, signal.SIGKILL)
    assert workers.wait_for_another(second) < TAKE_OVER_SECONDS
    os.kill(first, signal.SIGKILL)
    check(workers.finish(), workers.published)
