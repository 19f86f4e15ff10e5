"""Two processes of one node, and terminals that come back when they are sent away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from freeim.names import new_token
from tests.cli.command import MODULE, Server
from tests.faults.nodes import metadata
from tests.membership.terminals import NAMES, Ended, Terminal
from tests.servers import RedisServer, free_port

GRACE = 2.0

HANDED_OVER = "handing the node .* over to process"


# Where a successor stops for good: before it has the name, with it, or just after it has begun to accept.
STOPS = {
    "before it has the name": "take = handover.Handover.take\nasync def stop(self):\n"
    "    print('stopped', file=sys.stderr, flush=True); await asyncio.sleep(100)\nhandover.Handover.take = stop",
    "with the name": "take = handover.Handover.take\nasync def stop(self):\n"
    "    await take(self); print('stopped', file=sys.stderr, flush=True); await asyncio.sleep(100)\n"
    "handover.Handover.take = stop",
    "when it accepts": "def stop(self, *_):\n"
    "    print('stopped', file=sys.stderr, flush=True); time.sleep(100)\nhandover.Handover.serving = stop",
}
# Where it only pauses.
PAUSES = {
    "before it has the name": "take = handover.Handover.take\nasync def later(self):\n"
    "    await asyncio.sleep(1.5); return await take(self)\nhandover.Handover.take = later",
    "with the name": "take = handover.Handover.take\nasync def later(self):\n"
    "    taken = await take(self); await asyncio.sleep(1.5); return taken\nhandover.Handover.take = later",
    "when it accepts": "serving = handover.Handover.serving\ndef later(self, *more):\n"
    "    time.sleep(1.5); serving(self, *more)\nhandover.Handover.serving = later",
}


def program(change: str = "") -> tuple[str, ...]:
    """Return the command with a short grace for those who come back, and with one more change."""
    code = (
        "import asyncio, os, signal, sys, time\n"
        "from freeim.node import handover, presence\n"
        f"vars(presence).update(GRACE_SECONDS={GRACE})\nvars(handover).update(GRACE_SECONDS={GRACE})\n"
        f"{change}\n"
        "from freeim.cli import main\nsys.exit(main())"
    )
    return (sys.executable, "-P", "-c", code)


class Place:
    """Where the processes of one node serve, one after the other.

    Args:
        redis: Their Redis.
        args: More options of all of them.
    """

    def __init__(self, redis: RedisServer, *args: str, workers: int = 1, port: int | None = None) -> None:
        self.redis = redis
        self.port = port or free_port()
        self.name = f"127.0.0.1:{self.port}"
        self._folder = tempfile.TemporaryDirectory(prefix="freeim-ho-")
        self.path = str(Path(self._folder.name) / "node.sock")
        self.args = ("--bind", self.name, "--redis-url", redis.unix_url, "--handover", self.path, *args)
        self._stack = contextlib.ExitStack()

    def start(self, *more: str, change: str = "", plain: bool = False) -> Server:
        """Start a process; whether it comes to serve is for the test to see."""
        return self._stack.enter_context(
            Server(*self.args, *more, program=MODULE if plain else program(change)),
        )

    def files(self) -> list[str]:
        """Return what is in the socket's folder."""
        return sorted(path.name for path in Path(self._folder.name).iterdir())

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()
        self._folder.cleanup()

    # ---- terminals

    def token(self, client: int) -> str:
        token = new_token()
        value = json.dumps({"Item1": client, "Item2": metadata(client)}, separators=(",", ":"))
        self.redis.command("SET", NAMES.token(token), value, "EX", 60)
        return token

    async def connect(self, client: int) -> Terminal:
        return await Terminal.connect(self.name, self.token(client))

    def tell(self, payload: str) -> None:
        """Publish on the node's channel."""
        self.redis.command("PUBLISH", NAMES.server(self.name), payload)

    def owner(self) -> str:
        """Return the epoch that has the name."""
        return str(self.redis.command("GET", NAMES.lease(self.name)).decode())


@contextlib.contextmanager
def serving(redis: RedisServer, *args: str, change: str = "") -> Iterator[tuple[Place, Server]]:
    """Start the first process of a node, and wait until it serves; `args` are as for `Place`."""
    with Place(redis, *args) as place:
        old = place.start(change=change)
        old.banner()
        yield place, old


class Guest:
    """A terminal that comes back whenever it is sent away with 1012, and remembers what each connection heard.

    Args:
        place: Where it connects.
        client: Whose it is.
        published: Returns the number of the next message that will be published.
    """

    def __init__(self, place: Place, client: int, published: Callable[[], int]) -> None:
        self.client = client
        self.codes: list[int | None] = []
        self.connections: list[tuple[int, list[int]]] = []
        """Of each connection, the number of the first message that was published after its 101, and all that came."""
        self.ends: list[tuple[int, int]] = []
        """Of each connection that ended, the number of the next message at that moment, and the last one that came."""
        self.terminal: Terminal | None = None
        self._place = place
        self._published = published
        self._task = asyncio.create_task(self._stay())

    async def _stay(self) -> None:
        while True:
            self.terminal = terminal = await self._place.connect(self.client)
            heard: list[int] = []
            self.connections.append((self._published(), heard))
            try:
                while True:
                    heard.append(int(json.loads(await terminal.next(60))))
            except Ended as ended:
                self.ends.append((self._published(), heard[-1] if heard else 0))
                self.codes.append(ended.args[0])
                await terminal.close()
                if ended.args[0] != 1012:
                    raise

    async def leave(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        if self.terminal is not None:
            await self.terminal.close()

    def check(self, last: int) -> None:
        """Show that each connection heard all that was published from its 101 on, once, and the last one up to now."""
        for next_number, heard in self.connections:
            if heard:
                assert heard[0] <= next_number, f"{self.client} was connected and missed {next_number}"
                assert heard == list(range(heard[0], heard[0] + len(heard))), (
                    f"{self.client} missed or repeats something"
                )
        assert self.connections[-1][1][-1] == last


async def end(writer: asyncio.StreamWriter) -> None:
    """Close a connection, and wait until it is closed."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
