"""A terminal that comes back for what it missed, as docs/resume.md says; and what the tests of that share."""

from __future__ import annotations

import json
from typing import Any

from websockets.asyncio.client import connect

from freeim.names import ClientId
from tests.node.harness import Peer, Running, event, until

HEAD = "__FreeIM__(Resume)"
WINDOW = {"resume_window": 60.0}
"""Long enough for any machine; what is to end by itself has another."""


class Resumer:
    """A terminal with as many connections one after the other as it takes.

    Args:
        run: The node.
        client: Whose.
        port: Where it connects, where that is not the node itself.
    """

    def __init__(self, run: Running, client: ClientId, port: int | None = None) -> None:
        self.client = client
        self.last_id = ""
        self.missed: bool | None = None
        """What the last announcement said."""
        self.texts: list[str] = []
        """All messages of all connections."""
        self.fences = 0
        self._run = run
        self._port = port
        self._peer: Peer | None = None

    @property
    def peer(self) -> Peer:
        assert self._peer is not None
        return self._peer

    async def connect(self, last_id: str | None = None) -> Resumer:
        """Connect, and read the announcement."""
        token = self._run.token(self.client)
        url = f"ws://127.0.0.1:{self._port or self._run.node.port}/ws?token={token}"
        url += f"&resume={self.last_id if last_id is None else last_id}"
        socket = await connect(url, compression=None, ping_interval=None, max_size=None, proxy=None)
        first = await socket.recv()
        assert isinstance(first, str)
        said = announcement(first)
        self.missed = said["missed"]
        self.last_id = said["id"]
        peer = self._peer = Counted(self, self._run, self.client, socket)
        self._run.peers.append(peer)
        return self

    def got(self, text: str) -> None:
        log, _, number = self.last_id.rpartition("-")
        self.last_id = f"{log}-{int(number) + 1}"
        if not text.startswith('"fence '):
            self.texts.append(text)

    async def fence(self) -> list[str]:
        """Return all that has arrived since the last look."""
        await self.peer.fence()
        texts, self.texts = self.texts, []
        return texts

    async def lose(self) -> Resumer:
        """Vanish without a word, and wait until the node has seen it."""
        away = self._run.node._connections.resume.away
        self.peer.socket.transport.abort()
        await self.peer.ended()
        await until(lambda: self._run.node._connections.resume.away == away + 1, "it is away")
        return self


class Counted(Peer):
    """A connection that counts for its terminal."""

    def __init__(self, resumer: Resumer, *rest: Any) -> None:
        self._resumer = resumer
        super().__init__(*rest)

    async def _read(self) -> None:
        receive = self.socket.recv

        async def recv(*args: Any) -> Any:
            text = await receive(*args)
            self._resumer.got(text)
            return text

        self.socket.recv = recv  # type: ignore[method-assign, assignment]
        await super()._read()


def announcement(text: str) -> dict[str, Any]:
    """Return what the node's first text frame says."""
    assert text.startswith(HEAD)
    said = json.loads(text.removeprefix(HEAD))
    assert list(said) == ["id", "missed"]
    assert text == HEAD + json.dumps(said, separators=(",", ":"))
    return dict(said)


async def resumer(run: Running, client: ClientId, port: int | None = None) -> Resumer:
    """Connect a terminal for the first time."""
    terminal = await Resumer(run, client, port).connect()
    assert terminal.missed is False
    return terminal


def online(run: Running, client: ClientId, connections: int) -> tuple[str, str]:
    """Return what a listener hears of an opening."""
    return run.names.event_online, event(client, connections)


def offline(run: Running, client: ClientId, connections: int) -> tuple[str, str]:
    """Return what a listener hears of a close."""
    return run.names.event_offline, event(client, connections)


def results(run: Running) -> dict[str, int]:
    """Return how those who came back fared."""
    return {result: count for result, count in run.node._connections.resume.results.items() if count}


def ends(run: Running) -> dict[str, int]:
    """Return why connections are not away any more."""
    return {reason: count for reason, count in run.node._connections.resume.ends.items() if count}
