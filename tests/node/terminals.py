"""What the tests of terminals that misbehave share: one that does not read, and the look at what is left."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import cast

import pytest

from freeim.names import ClientId
from tests.node.harness import Peer, Raw, Running, direct, until

NEVER_CUT = {"close_timeout": 60}
"""What ends here must end by itself."""


def listen(caplog: pytest.LogCaptureFixture) -> None:
    """From here on nothing that the node logs is missed."""
    caplog.set_level(logging.INFO, "freeim")
    caplog.clear()


async def only_is_left(run: Running, peer: Peer) -> None:
    """Wait until one connection is all that the node holds and all that Redis counts; it must still receive."""
    await until(lambda: run.node._connections.accepted == 1, "only one connection is left")
    assert peer.is_open
    run.publish(direct({1, peer.client}, "still here"))
    assert await peer.next() == '"still here"'
    await run.settled()
    assert run.online == {str(peer.client): "1"}
    assert len(run.share) == 1
    assert f'"Item1":{peer.client},' in next(iter(run.share.values()))


async def only_is_left_after_rest(run: Running, raw: Raw, other: Peer) -> None:
    """Read a closed connection to its end, which must be empty; then `only_is_left`."""
    await run.heard_all()
    assert await raw.rest() == b"", "nothing may follow a Close frame"
    raw.close()
    await only_is_left(run, other)


async def slow_raw_client(run: Running, client: ClientId, query: str = "") -> Raw:
    """Connect a terminal with a small receive buffer that reads nothing after the 101, until `resume`."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", run.node.port))
    raw = Raw(*await asyncio.open_connection(sock=sock))
    run._raw.append(raw)
    raw.send(run.request(run.token(client) + query))
    assert (await raw.response())[0] == 101
    pause(raw)
    return raw


def pause(raw: Raw) -> None:
    cast(asyncio.Transport, raw.writer.transport).pause_reading()


def resume(raw: Raw) -> None:
    cast(asyncio.Transport, raw.writer.transport).resume_reading()
