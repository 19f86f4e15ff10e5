"""The connection of two instances of one name, and what they tell each other of their clients."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from freeim._core import Client, Router
from freeim.node.handover_messages import CLIENTS_PER_LINE, BadMessage, Clients, Complete, Left, Lines, Message, encode

if TYPE_CHECKING:
    from freeim.node.stream import Stream

log = logging.getLogger("freeim")


class Link(asyncio.Protocol):
    """Sends and receives messages.

    Args:
        on_message: Gets each message.
        on_end: Called once, when the connection has ended, whoever ended it.
    """

    def __init__(self, on_message: Callable[[Message], None], on_end: Callable[[], None]) -> None:
        self.paused = False
        self.ended = asyncio.get_running_loop().create_future()
        self.on_room: Callable[[], None] | None = None
        """Called when there is room again for what is sent."""
        self._on_message = on_message
        self._on_end = on_end
        self._lines = Lines()
        self._transport: asyncio.Transport | None = None

    def send(self, message: Message) -> None:
        """Send a message; it is lost where the connection has ended."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(message))

    def feed(self, data: bytes) -> None:
        """Take bytes that the other instance has sent."""
        try:
            for message in self._lines.feed(data):
                self._on_message(message)
        except BadMessage as error:
            log.warning("the hand-over is broken off: %s", error)
            self.abort()

    def close(self) -> None:
        """End the connection behind what was sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    data_received = feed

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self.on_room is not None:
            self.on_room()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._transport = None
        if not self.ended.done():
            self.ended.set_result(None)
        self._on_end()


class Roster:
    """Tells the other instance how many connections each client has here, and the router what it hears of the other.

    Args:
        router: The node's.
        link: The connection to the other instance.
        place_of: With ``--bus stream``, at the predecessor: returns how far a client came that has left; see
            `Stream.place_of`.
        stream: With ``--bus stream``, at the successor: learns how far clients came.
    """

    def __init__(
        self,
        router: Router,
        link: Link,
        *,
        place_of: Callable[[bytes], str | None] | None = None,
        stream: Stream | None = None,
    ) -> None:
        self._router = router
        self._link = link
        self._place_of = place_of
        self._stream = stream
        self._untold: dict[bytes, None] = {}
        self._all_told = True
        self._scheduled = False
        self._loop: Any = asyncio.get_running_loop()
        self._elsewhere: dict[bytes, int] = {}
        router.elsewhere = self._elsewhere
        link.on_room = self._schedule

    def tell_all(self) -> None:
        """Begin to tell of all clients, and say when that is done; what changes is told from now on."""
        self._all_told = False
        self._untold.update(dict.fromkeys(self._router.clients))
        self._schedule()

    def changed(self, client: Client) -> None:
        """A client got a connection here, or lost one."""
        if self._place_of is not None and not client.connections and not self._link.paused:
            place = self._place_of(client.id)
            if place is not None:
                # At once: its Close frame is not written yet, so that the other one knows before the client is there.
                self._link.send(Left({client.id.decode(): place}))
        self._untold[client.id] = None
        self._schedule()

    def learn(self, counts: dict[str, int]) -> None:
        """The other instance has told of its clients."""
        for text, count in counts.items():
            client_id = text.encode(errors="surrogatepass")
            if count:
                self._elsewhere[client_id] = count
            elif self._elsewhere.pop(client_id, None) and self._stream is not None:
                self._stream.left(client_id, None)

    def learn_left(self, places: dict[str, str]) -> None:
        """The last connections of some clients at the other instance begin to close."""
        for text, place in places.items():
            client_id = text.encode(errors="surrogatepass")
            self._elsewhere.pop(client_id, None)
            if self._stream is not None:
                self._stream.left(client_id, place)

    def end(self) -> None:
        """The other instance is gone, and its connections with it."""
        self._untold.clear()
        if self._stream is not None:
            self._stream.cut_off(self._elsewhere)
        if self._router.elsewhere is self._elsewhere:
            self._router.elsewhere = None

    def _schedule(self) -> None:
        if not self._scheduled and not self._link.paused:
            self._scheduled = True
            self._loop.call_soon(self._tell)

    def _tell(self) -> None:
        self._scheduled = False
        some = [self._untold.popitem()[0] for _ in range(min(CLIENTS_PER_LINE, len(self._untold)))]
        if some:
            self._link.send(Clients({client_id.decode(): self._count(client_id) for client_id in some}))
        if self._untold:
            self._schedule()
        elif not self._all_told:
            self._all_told = True
            self._link.send(Complete())

    def _count(self, client_id: bytes) -> int:
        client = self._router.clients.get(client_id)
        return 0 if client is None else len(client.connections)
