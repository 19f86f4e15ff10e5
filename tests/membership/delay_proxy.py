"""A TCP proxy that makes Redis look far away: every byte takes half a round trip in each direction.

Inside of a test's loop it can also count what passes and stop the answers to one connection. As a process
(``python -m tests.membership.delay_proxy``) it is only slow.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self, cast

import uvloop

from tests.membership.processes import stdin_closed


class Link:
    """One proxied connection. Bytes go on in order, `delay` after they came."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.asked = bytearray()
        """Everything that the client has sent."""
        self.requests = 0
        """Chunks that came from the client: at least one write of its each."""
        self.on_request: Callable[[bytes], None] | None = None
        """Sees each chunk from the client before it goes on."""
        self.held: deque[bytes] | None = None
        self.client = End(self)
        self.server = End(self)
        self.client.other, self.server.other = self.server, self.client

    @property
    def subscribes(self) -> bool:
        """Whether this is a node's reader."""
        return b"SUBSCRIBE" in self.asked

    def hold(self) -> None:
        """Keep the answers back from now on."""
        self.held = deque()

    def release(self) -> None:
        """Hand on what was kept back, and go on."""
        held, self.held = self.held, None
        for data in held or ():
            self.client.send(data)

    def close(self) -> None:
        for end in (self.client, self.server):
            if end.transport is not None:
                end.transport.abort()


class End(asyncio.Protocol):
    """One side of a link."""

    other: End

    def __init__(self, link: Link) -> None:
        self.link = link
        self.transport: asyncio.Transport | None = None
        self.early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        for data in self.early:
            self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        link = self.link
        if self is link.client:
            link.asked += data
            link.requests += 1
            if link.on_request is not None:
                link.on_request(data)
        if link.delay:
            asyncio.get_running_loop().call_later(link.delay, self.hand_on, data)
        else:
            self.hand_on(data)

    def hand_on(self, data: bytes) -> None:
        if self is self.link.server and self.link.held is not None:
            self.link.held.append(data)
        else:
            self.other.send(data)

    def send(self, data: bytes) -> None:
        if self.transport is None:
            self.early.append(data)
        elif not self.transport.is_closing():
            self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other.transport is not None:
            self.other.transport.abort()


class DelayProxy:
    """A proxy on a port of its own, to be used in an ``async with``.

    Args:
        target: The port of Redis on this machine.
        round_trip: Seconds that it adds to a command and its answer.
    """

    def __init__(self, target: int, round_trip: float = 0.0) -> None:
        self.links: list[Link] = []
        self._target = target
        self._delay = round_trip / 2
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[object]] = set()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def writer(self) -> Link:
        """The link of the one node's writer."""
        (link,) = (link for link in self.links if not link.subscribes)
        return link

    @property
    def reader(self) -> Link:
        """The link of the one node's reader."""
        (link,) = (link for link in self.links if link.subscribes)
        return link

    def _new_link(self) -> Link:
        return Link(self._delay)

    def _accepted(self) -> asyncio.Protocol:
        link = self._new_link()
        self.links.append(link)
        loop = asyncio.get_running_loop()
        task = loop.create_task(loop.create_connection(lambda: link.server, "127.0.0.1", self._target))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return link.client

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(self._accepted, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for link in self.links:
            link.close()
        await asyncio.sleep(0)


async def main(target: int, round_trip: float) -> None:
    async with DelayProxy(target, round_trip) as proxy:
        print(json.dumps({"port": proxy.port}), flush=True)
        await stdin_closed()


if __name__ == "__main__":
    uvloop.run(main(**json.loads(sys.argv[1])))
