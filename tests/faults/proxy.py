"""A proxy in front of Redis, as a process, that does to connections what networks do.

``python -m tests.faults.proxy '{"target": PORT}'`` prints its port; then each line of its stdin is an order, and is
answered with a line when it has been carried out.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from types import TracebackType
from typing import Any, Self

import uvloop

from tests.membership.delay_proxy import DelayProxy, End, Link
from tests.membership.processes import Helper


class FaultyEnd(End):
    """One side of a link that may keep back what comes, and may outlive the other side."""

    link: FaultyLink

    def hand_on(self, data: bytes) -> None:
        if self.link.frozen is not None:
            self.link.frozen.append((self, data))
        else:
            self.other.send(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.link.halved:
            super().connection_lost(exc)


class FaultyLink(Link):
    """One connection through the proxy."""

    client: End
    server: End

    def __init__(self, delay: float) -> None:
        super().__init__(delay)
        self.frozen: list[tuple[End, bytes]] | None = None
        self.halved = False
        self.client, self.server = FaultyEnd(self), FaultyEnd(self)
        self.client.other, self.server.other = self.server, self.client

    def thaw(self) -> None:
        """Hand on what was kept back."""
        frozen, self.frozen = self.frozen, None
        for end, data in frozen or ():
            end.other.send(data)


class FaultyProxy(DelayProxy):
    """The proxy inside of its process."""

    def __init__(self, target: int, round_trip: float = 0.0) -> None:
        super().__init__(target, round_trip)
        self._refusing = False
        self._freezing = False
        self._targets = itertools.cycle([target])

    def _new_link(self) -> Link:
        link = FaultyLink(self._delay)
        if self._freezing:
            link.frozen = []
        return link

    def _accepted(self) -> asyncio.Protocol:
        if self._refusing:
            return Refused()
        self._target = next(self._targets)
        return super()._accepted()

    @property
    def _open(self) -> list[FaultyLink]:
        return [link for link in self.links if isinstance(link, FaultyLink)]

    def obey(self, do: str, **what: Any) -> None:
        """Carry out one order; see `Proxy` for what they mean."""
        if do == "cut":
            for link in self._open:
                link.close()
        elif do == "refuse":
            self._refusing = what["on"]
        elif do == "freeze":
            self._freezing = True
            for link in self._open:
                link.frozen = []
        elif do == "thaw":
            self._freezing = False
            for link in self._open:
                link.thaw()
        elif do == "lead":
            self._targets = itertools.cycle(what["to"])
        elif do == "half":
            for link in self._open:
                if link.subscribes and link.server.transport is not None:
                    link.halved = True
                    link.server.transport.abort()
        else:
            raise ValueError(do)


class Refused(asyncio.Protocol):
    """A connection that is ended as soon as it is there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.abort()  # type: ignore[attr-defined]


async def main(target: int, round_trip: float = 0.0) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with FaultyProxy(target, round_trip) as proxy:
        print(json.dumps({"port": proxy.port}), flush=True)
        while line := await reader.readline():
            proxy.obey(**json.loads(line))
            print(json.dumps({"links": len(proxy.links)}), flush=True)


class Proxy:
    """The proxy as a test has it: a process. Use it in a ``with``.

    Args:
        target: The port of Redis on this machine.
        round_trip: Seconds that it adds to a command and its answer.
    """

    def __init__(self, target: int, round_trip: float = 0.0) -> None:
        self._process = Helper("tests.faults.proxy", target=target, round_trip=round_trip)
        self.port = int(self._process.answer()["port"])

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def _do(self, do: str, **what: Any) -> None:
        self._process.tell(do=do, **what)
        self._process.answer()

    def cut(self) -> None:
        """Reset all connections."""
        self._do("cut")

    def refuse(self, on: bool = True) -> None:
        """End each new connection at once, until told otherwise."""
        self._do("refuse", on=on)

    def freeze(self) -> None:
        """Hand nothing on any more, on old and new connections, without a word: packets are lost on the way."""
        self._do("freeze")

    def thaw(self) -> None:
        """End a `freeze`: what was sent meanwhile arrives, as TCP sends it again."""
        self._do("thaw")

    def lead(self, *to: int) -> None:
        """Let new connections lead to another port, as where an address was moved; to several ports in turn."""
        self._do("lead", to=to)

    def half(self) -> None:
        """End the subscribed connections on the side of Redis alone: the node's sockets stay up."""
        self._do("half")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.__exit__(kind, error, trace)


if __name__ == "__main__":
    uvloop.run(main(**json.loads(sys.argv[1])))
